"""Ray Data pipelines, the configuration, and every command."""

if __name__ != "segmint.pipeline":
    raise ImportError(f"{__name__} is segmint.pipeline: import it by that name")
