"""`segmint masks`: masks of single photographs and folders, without a dataset."""
