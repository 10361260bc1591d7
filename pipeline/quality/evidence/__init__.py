"""`segmint audit --evidence`: a folder that others can verify without segmint."""
