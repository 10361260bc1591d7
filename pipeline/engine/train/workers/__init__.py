"""Training in several processes with Ray Train."""
