"""Detectors of faces, license plates, and objects."""
