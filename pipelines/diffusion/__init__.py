"""The inpainting sampler: methods, branches, blends, BrushNet, mask guidance and LoRAs."""
