"""`segmint study`: how people judge samples of a dataset."""
