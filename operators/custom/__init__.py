"""Custom stages: callables of users that judge images or add columns, in a build or over a committed dataset."""
