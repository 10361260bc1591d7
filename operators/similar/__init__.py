"""Finds near-duplicate images by perceptual hashes."""
