"""Checks of one shard's files: tar, tables, masks, regions, and near-duplicates."""
