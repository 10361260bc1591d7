"""Python API for single images: `MaskGenerator` and `Predictor`."""
