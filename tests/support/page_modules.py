"""Modules of the annotator's page in a real Chromium, without its server."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.support.builds import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

ORIGIN = "http://modules.test"
_FOLDERS = [ROOT / "pipeline" / "engine" / "annotate" / "assets", ROOT / "pipeline" / "serving" / "assets"]
_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}


def module_page(browser: "Browser") -> "Page":
    """An empty page that may import the modules of the annotator, and those that pages share, by their names."""
    page = browser.new_page()

    def answer(route: "Route") -> None:
        name = Path(route.request.url).name
        found = next((folder / name for folder in _FOLDERS if (folder / name).is_file()), None)
        if found is None:
            route.fulfill(body="<!doctype html><title>modules</title>", content_type="text/html")
        else:
            route.fulfill(body=found.read_bytes(), content_type=_TYPES[found.suffix])

    page.route(f"{ORIGIN}/**", answer)
    page.goto(f"{ORIGIN}/empty")
    return page


def run(page: "Page", modules: str, body: str, given: Any = None) -> Any:
    """The value that JavaScript returns; `modules` are names of imported modules, `given` its argument.

    Values pass as JSON's text: Playwright's own way takes long for many numbers.
    """
    imports = "".join(f'const {name} = await import("/{name}.js");' for name in modules.split())
    script = f"async text => {{ const given = JSON.parse(text); {imports} {body} }}"
    return page.evaluate(script, json.dumps(given))


def disc_line(points: np.ndarray, radius: float, size: tuple[int, int]) -> np.ndarray:
    """The pixels whose centers are at most `radius` from a line, by the distances of all pixels to all its parts."""
    rows, columns = np.indices(size)
    centers = np.stack([columns + 0.5, rows + 0.5], axis=-1)
    held = np.zeros(size, bool)
    for a, b in zip(points[: len(points) - 1 or 1], points[1:] if len(points) > 1 else points, strict=True):
        along = b - a
        length = float(along @ along)
        share = np.clip((centers - a) @ along / length, 0, 1) if length else np.zeros(size)
        nearest = a + share[..., None] * along
        held |= ((centers - nearest) ** 2).sum(axis=-1) <= radius * radius
    return held
