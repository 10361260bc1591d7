"""Source catalogs: reading, checking, normalizing, and creating them from a folder or bucket."""
