"""Triton kernels for the model's hot loops, each with an equivalent in plain torch."""
