"""The paper's method: one sampler, its branches, its blends, BrushNet and mask guidance."""
