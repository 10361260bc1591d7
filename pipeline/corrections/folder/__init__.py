"""Correction of the masks in a folder of photographs, through a working dataset."""
