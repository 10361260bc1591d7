if __name__ != "segmint.operators":
    raise ImportError(f"{__name__} is segmint.operators: import it by that name")
