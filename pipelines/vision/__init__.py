"""Segmenters, captioner, tagger and upscalers, each behind a small protocol."""
