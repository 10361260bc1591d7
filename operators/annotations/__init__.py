"""Readers of masks from COCO, Label Studio, Hugging Face exports, SA-1B's JSON, GeoJSON, and label maps."""
