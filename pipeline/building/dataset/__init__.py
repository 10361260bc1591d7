"""Create, open, pin, and grow a dataset."""
