"""Functions that write, commit, read back, revise, and restore shards."""
