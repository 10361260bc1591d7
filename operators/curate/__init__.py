"""Quality measures, scorers, and image hashes that a curation computes per image."""
