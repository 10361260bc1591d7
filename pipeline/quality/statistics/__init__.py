"""Statistics of masks and images, computed with DuckDB."""
