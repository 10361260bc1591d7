"""Counterparts of `segment_anything.utils`."""
