"""Faults at chosen moments of a real run: `make chaos`."""
