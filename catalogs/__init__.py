if __name__ != "segmint.catalogs":
    raise ImportError(f"{__name__} is segmint.catalogs: import it by that name")
