"""Metrics of predicted masks against the ground truth of one image."""
