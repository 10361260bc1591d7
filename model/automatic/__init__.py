"""Automatic mask generation: point grids, crops, filters, NMS, and run-length encoding."""
