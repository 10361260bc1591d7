"""`segmint view`: show a dataset in a web browser."""
