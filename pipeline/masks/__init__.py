"""Implementation of `segmint masks`, which makes masks for single photographs and folders without a dataset."""
