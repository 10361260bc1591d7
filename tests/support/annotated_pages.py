"""A server of annotators in the test's process for real browsers, and what browsers do with its page."""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

from segmint.pipeline.annotate.access import Team
from segmint.pipeline.annotate.app import make_app
from segmint.pipeline.annotate.server import Opened, open_desk
from segmint.pipeline.view.server import listen
from tests.support.annotating import options
from tests.support.locations import location_of

if TYPE_CHECKING:
    from playwright.sync_api import Page


@dataclass
class Served:
    """A server that browsers can open; its model is the one that a test may ask itself."""

    opened: Opened
    team: Team
    dataset: Path

    def address(self, name: str = "ann") -> str:
        """Return an address of an annotator that no browser has opened."""
        return self.team.address(name)

    @property
    def predictor(self) -> Any:
        return self.opened.desk.embeddings._predictor

    def embedding(self, image: int) -> Any:
        """Return the image's embedding, the one that clicks use."""
        desk = self.opened.desk
        return desk.embeddings.get(desk.source.read(image))


@contextmanager
def served(dataset: Path, *names: str, port: int = 0, **queue: Any) -> Iterator[Served]:
    """Serve a dataset to browsers of annotators until the block ends."""
    with open_desk(location_of(dataset), options(**queue)) as opened, serving(opened, dataset, *names, port=port) as it:
        yield it


@contextmanager
def serving(opened: Opened, dataset: Path, *names: str, port: int = 0) -> Iterator[Served]:
    """The same for a desk that is open."""
    with closing(listen(port)) as listener:
        team = Team(listener.getsockname()[1], list(names or ["ann"]))
        app = make_app(opened.desk, team)
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", ws="none", log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Served(opened, team, dataset)
        finally:
            server.should_exit = True
            thread.join()


def place_of(page: "Page", x: float, y: float) -> tuple[float, float]:
    """The position in the window of a point of the image, [x, y] in its pixels."""
    picture = page.locator("#picture").bounding_box()
    assert picture is not None
    size = page.locator("#active-mask").evaluate("canvas => [canvas.width, canvas.height]")
    return picture["x"] + x / size[0] * picture["width"], picture["y"] + y / size[1] * picture["height"]


def press_pixel(page: "Page", x: int, y: int, **options: Any) -> None:
    """Click the center of a pixel of the image."""
    page.mouse.click(*place_of(page, x + 0.5, y + 0.5), **options)


def drag(page: "Page", points: list[tuple[float, float]]) -> None:
    """Press the mouse at the first point of the image, move it through the others, and release it."""
    page.mouse.move(*place_of(page, *points[0]))
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*place_of(page, *point))
    page.mouse.up()
