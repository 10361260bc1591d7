"""The version of segmint. Only here: a cluster runs the checkout, which is not an installed package."""

VERSION = "0.2.0.dev0"

BITS_VERSION = "0.1.0"
"""The last version that changed a bit of what a build writes: a later one may go on with datasets of this one."""
