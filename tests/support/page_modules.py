"""Modules of the annotator's page in a real Chromium, without its server."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.builds import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

ORIGIN = "http://modules.test"
_FOLDERS = [ROOT / "pipeline" / "annotate" / "assets", ROOT / "pipeline" / "view" / "assets"]
_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}


def module_page(browser: "Browser") -> "Page":
    """An empty page that may import the modules of the annotator and the viewer by their names."""
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
