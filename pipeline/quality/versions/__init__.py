"""`segmint verify`, `sign`, and `diff`."""
