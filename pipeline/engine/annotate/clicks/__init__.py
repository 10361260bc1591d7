"""Masks for annotators' clicks: the predictor thread, embeddings, and drawing."""
