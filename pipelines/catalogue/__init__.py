"""The shop's catalogue: feeds and the photos that their links name."""
