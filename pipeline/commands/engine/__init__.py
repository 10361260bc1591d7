"""Commands of the data engine: annotate, train, and evaluate."""
