"""`segmint merge`: write annotators' submissions into the tables."""
