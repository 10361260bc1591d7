"""Readers of masks from COCO, Label Studio, SA-1B's JSON, and label maps."""
