"""`segmint audit --evidence`: an audit's record that others can verify without segmint."""
