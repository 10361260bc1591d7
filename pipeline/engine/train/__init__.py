"""`segmint train`: fine-tune SAM, or train a detector of objects."""
