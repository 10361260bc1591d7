"""Shuffled batches of a dataset for training: `open_dataset`, its cache, and its PyTorch loader."""
