"""Infrastructure: storage, Ray sessions, devices, logs, metrics, and weight files."""

if __name__ != "segmint.infra":
    raise ImportError(f"{__name__} is segmint.infra: import it by that name")
