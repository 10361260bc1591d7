"""Writes, commits, reads back, revises, and restores shards."""
