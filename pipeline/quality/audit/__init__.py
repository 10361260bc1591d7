"""`segmint audit`: verify files, licenses, privacy, and duplicates."""
