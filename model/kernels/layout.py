"""How tokens are laid out for the kernels of `factored_image.py`."""

HEADS = 8

SEATS = 8
"""Rows of a head: places for tokens."""

ROWS = HEADS * SEATS
"""Rows of a block."""

CONSTANT = SEATS - 1
"""The row of the constant; no token sits there."""
