"""The configuration: its keys, defaults, and validation."""
