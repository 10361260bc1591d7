"""`segmint report`: a dataset card and pages with plots."""
