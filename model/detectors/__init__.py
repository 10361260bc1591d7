"""Detectors of faces and license plates."""
