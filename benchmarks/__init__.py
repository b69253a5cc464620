"""Measurements of packshot itself: `make bench` and `make bench-memory`."""
