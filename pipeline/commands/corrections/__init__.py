"""Commands that change a committed dataset."""
