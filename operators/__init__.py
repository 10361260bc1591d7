"""Stages of a build and of an audit as functions from rows to rows, without Ray Data."""

if __name__ != "segmint.operators":
    raise ImportError(f"{__name__} is segmint.operators: import it by that name")
