"""`segmint study`: human evaluation of samples from a dataset."""
