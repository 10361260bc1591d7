"""Segmenters: users' code that makes the masks of a build in place of SAM."""
