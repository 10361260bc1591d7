"""Where the templates of the page and the card are, and the filters that both use."""

from pathlib import Path

from segmint.infra.wording import count, counted, listed, number, share, size
from segmint.pipeline.quality.study.privacy.score import percent

ASSETS = Path(__file__).parent / "assets"

FILTERS = {
    "count": count,
    "counted": counted,
    "share": share,
    "number": number,
    "size": size,
    "listed": listed,
    "bound": percent,
}
"""How templates write numbers, by the names of the filters."""
