"""CUDA graphs, and copies between host and device that overlap with computation."""
