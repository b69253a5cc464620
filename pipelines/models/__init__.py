"""Models as files: profiles, digests, downloads, checkpoints."""
