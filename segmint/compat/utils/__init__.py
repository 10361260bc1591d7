"""Counterparts of the `segment_anything.utils` modules."""
