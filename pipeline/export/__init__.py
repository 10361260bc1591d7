"""Implementation of `segmint export` for COCO, LVIS, CVAT, Label Studio, FiftyOne, YOLO, GeoJSON, and Hugging Face."""
