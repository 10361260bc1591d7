"""`segmint export`: COCO, CVAT, Label Studio, FiftyOne, YOLO, GeoJSON, and Hugging Face datasets."""
