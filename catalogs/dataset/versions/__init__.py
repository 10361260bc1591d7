"""The digest of a dataset, recorded versions, and signatures."""
