"""Commands that inspect a dataset."""
