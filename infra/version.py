"""The version of segmint. Only here: a cluster runs the checkout, which is not an installed package."""

VERSION = "0.1.0"
