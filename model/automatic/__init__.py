"""Automatic mask generation: the point grid, filters, NMS, crops, and run-length encoding."""
