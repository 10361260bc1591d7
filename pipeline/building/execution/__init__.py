"""One window of a build: stages, writers, stalls, suspects, outages, and accounting."""
