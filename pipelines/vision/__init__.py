"""Image analysis: segmenters, mattes, captions, tags, placement, upscaling."""
