"""`segmint view`: browse a dataset in a web browser."""
