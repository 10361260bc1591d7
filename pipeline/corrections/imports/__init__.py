"""`segmint import`: add masks from a file or another dataset."""
