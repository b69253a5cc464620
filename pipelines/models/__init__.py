"""The models of a profile: what they are, where their files are, and how they are read."""
