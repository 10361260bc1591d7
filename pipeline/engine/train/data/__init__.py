"""Training images, splits, draws, and the embedding cache."""
