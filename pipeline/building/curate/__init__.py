"""`segmint catalog curate` and `segmint catalog prompts`: make a catalog from another one before a build."""
