"""SAM, automatic mask generation, and detectors of faces and plates; needs neither storage nor Ray."""

if __name__ != "segmint.model":
    raise ImportError(f"{__name__} is segmint.model: import it by that name")
