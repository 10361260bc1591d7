"""Where the templates of the page and the card are, and the filters that both use."""

from pathlib import Path

from segmint.infra.wording import count, counted, listed, number, share, size

ASSETS = Path(__file__).parent / "assets"

FILTERS = {"count": count, "counted": counted, "share": share, "number": number, "size": size, "listed": listed}
"""How templates write numbers, by the names of the filters."""
