"""Commands that create a catalog or a dataset."""
