"""Checks: what judges cutouts, images and tables."""
