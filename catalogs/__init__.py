"""Formats and records of datasets and source catalogs; reads and writes storage, but needs no model and no Ray."""

if __name__ != "segmint.catalogs":
    raise ImportError(f"{__name__} is segmint.catalogs: import it by that name")
