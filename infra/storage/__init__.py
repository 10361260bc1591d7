"""Local files, S3, and fsspec stores behind one class, with retries and outages."""
