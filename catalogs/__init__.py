"""Formats and records of datasets and source catalogs. They need storage, but neither a model nor Ray."""

if __name__ != "segmint.catalogs":
    raise ImportError(f"{__name__} is segmint.catalogs: import it by that name")
