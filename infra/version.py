"""The version of segmint, here alone: a cluster runs the checkout as it stands, which is not an installed package."""

VERSION = "0.1.0"
