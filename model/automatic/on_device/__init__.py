"""Mask generation whose candidates stay on the GPU until suppression has removed most of them."""
