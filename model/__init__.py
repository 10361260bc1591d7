"""SAM, automatic mask generation, and face and license plate detectors; depends on neither storage nor Ray."""

if __name__ != "segmint.model":
    raise ImportError(f"{__name__} is segmint.model: import it by that name")
