"""The version of segmint. Only here: a cluster runs the checkout, which is not an installed package."""

VERSION = "0.3.0.dev0"

BITS_VERSION = "0.3.0"
"""The last version that changed a bit of what a build writes: later ones continue its datasets."""
