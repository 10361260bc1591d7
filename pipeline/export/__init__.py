"""Implementation of `segmint export` for COCO, CVAT, Label Studio, FiftyOne, YOLO, GeoJSON, and Hugging Face."""
