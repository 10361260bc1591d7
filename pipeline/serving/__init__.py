"""Web parts that the viewer, annotator, report, and evaluation pages share."""
