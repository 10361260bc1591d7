if __name__ != "segmint.model":
    raise ImportError(f"{__name__} is segmint.model: import it by that name")
