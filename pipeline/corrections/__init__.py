"""Changes to a committed dataset, which all follow the recipe in `correction.py`."""
