"""The first stage of a build: fetch, check, decode, resize, and redact one photograph."""
