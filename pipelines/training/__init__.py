"""Data sets and trainers of the bundled small models."""
