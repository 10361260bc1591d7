"""The prepare stage of a build, which fetches, checks, decodes, resizes, and redacts one photograph."""
