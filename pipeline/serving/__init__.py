"""Web components shared by the viewer, annotator, report, and evaluation pages."""
