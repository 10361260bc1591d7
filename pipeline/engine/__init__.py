"""The data engine: annotate, train, and evaluate."""
