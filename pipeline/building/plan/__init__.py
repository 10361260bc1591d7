"""`segmint plan`: estimate the time, storage, and cost of a build."""
