"""Measurements of SA-1B-style data that segmint didn't write."""
