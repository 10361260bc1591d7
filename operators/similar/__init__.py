"""Search for near-duplicate images by perceptual hashes."""
