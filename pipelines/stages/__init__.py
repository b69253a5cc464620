"""The paper's workflow, one file a stage: cutout, describe, generate, upscale, inspect, publish."""
