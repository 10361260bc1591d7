"""Custom stages: users' callables that judge images or add columns, in a build or over a committed dataset."""
