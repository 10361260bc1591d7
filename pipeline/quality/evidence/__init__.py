"""`segmint audit --evidence`: a record of an audit that others can verify without segmint."""
