"""Mask generation whose candidates stay on the GPU until NMS has removed most of them."""
