"""Templates of standalone HTML documents without scripts or external resources."""

from dataclasses import dataclass
from pathlib import Path

import jinja2

from segmint.infra.wording import count, counted, listed, number, share, size, upper_bound

_SHARED = Path(__file__).parent / "assets"

FILTERS = {
    "count": count,
    "counted": counted,
    "share": share,
    "number": number,
    "size": size,
    "listed": listed,
    "bound": upper_bound,
}
"""Template filters that format numbers and other values, by name."""


@dataclass(frozen=True)
class Tick:
    """Tick on the axis of a plot. `at` is its position in percent of the frame, from the left or from the bottom."""

    at: float
    text: str


def document_templates(folder: Path) -> jinja2.Environment:
    """Load the templates of a folder. Each one includes the shared style, `document.css.j2`."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, _SHARED]), autoescape=True, undefined=jinja2.StrictUndefined
    )
    templates.filters.update(FILTERS)
    return templates
