"""A server of annotators in the test's process for real browsers, and what browsers do with its page."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import uvicorn
from pycocotools import mask as coco
from starlette.applications import Starlette

from segmint.catalogs.dataset.submissions import Submission, read_submissions
from segmint.pipeline.engine.annotate.app import ServedView, make_app, open_view
from segmint.pipeline.engine.annotate.requests import Team
from segmint.pipeline.serving.responses import listen
from tests.support.annotating import options
from tests.support.locations import location_of
from tests.support.viewed import mask_rows

if TYPE_CHECKING:
    from playwright.sync_api import Page


@dataclass
class AnnotationServer:
    """A server that browsers can open; its model is the one that a test may ask itself."""

    opened: ServedView
    team: Team
    dataset: Path

    def address(self, name: str = "ann") -> str:
        """Return an address of an annotator that no browser has opened."""
        return self.team.address(name)

    @property
    def predictor(self) -> Any:
        return self.opened.annotator_view.embeddings.predictor

    def embedding(self, image: int) -> Any:
        """Return the image's embedding, the one that clicks use."""
        annotator_view = self.opened.annotator_view
        return annotator_view.embeddings.get(annotator_view.source.read(image)).embedding


@contextmanager
def served(dataset: Path, *names: str, port: int = 0, **queue: Any) -> Iterator[AnnotationServer]:
    """Serve a dataset to browsers of annotators until the block ends."""
    with open_view(location_of(dataset), options(**queue)) as opened, serving(opened, dataset, *names, port=port) as it:
        yield it


@contextmanager
def serving(opened: ServedView, dataset: Path, *names: str, port: int = 0) -> Iterator[AnnotationServer]:
    """The same for an annotator view that is open."""
    with listening(lambda team: make_app(opened.annotator_view, team), *names, port=port) as team:
        yield AnnotationServer(opened, team, dataset)


@contextmanager
def listening(make: Callable[[Team], Starlette], *names: str, port: int = 0) -> Iterator[Team]:
    """Serve the application that `make` makes for a team, in a thread, until the block ends."""
    with closing(listen(port)) as listener:
        team = Team(listener.getsockname()[1], list(names or ["ann"]))
        config = uvicorn.Config(make(team), lifespan="off", ws="none", log_level="warning", access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield team
        finally:
            server.should_exit = True
            thread.join()


def place_of(page: "Page", x: float, y: float) -> tuple[float, float]:
    """The position in the window of a point of the image, [x, y] in its pixels."""
    picture = page.locator("#picture").bounding_box()
    assert picture is not None
    size = page.locator("#one-mask").evaluate("canvas => [canvas.width, canvas.height]")
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


def expect(found: Any) -> Any:
    from playwright.sync_api import expect

    expect.set_options(timeout=30_000)
    return expect(found)


def start(page: "Page", server: "AnnotationServer", image: int, name: str = "ann") -> None:
    """Open an image in a new browser of an annotator."""
    page.goto(f"{server.address(name)}#image/{image}")
    shown(page, image)


def shown(page: "Page", image: int) -> None:
    expect(page.locator("#picture")).to_have_attribute("src", f"/images/{image}.jpg")
    expect(page.locator("#clock")).to_be_visible()
    page.locator("#picture").evaluate("picture => picture.decode()")


def answered(page: "Page") -> None:
    """Wait for the model's answer to the last prompt."""
    expect(page.locator("#work:not(:has(.waiting)) #mask-title")).to_contain_text("IoU")


def save(page: "Page", server: AnnotationServer, image: int) -> Submission:
    """Save by the button, wait for the next image, and read the answer from the dataset."""
    page.locator("#save").click()
    expect(page.locator("#notice")).to_have_text("Saved.")
    return read_submissions(location_of(server.dataset), image - 1)[-1]


def truth(server: AnnotationServer, image: int) -> list[np.ndarray]:
    """The image's masks in the dataset, the largest first."""
    rows = sorted(mask_rows(server.dataset, image), key=lambda row: -row["area"])
    return [np.asarray(coco.decode(row["segmentation"])).astype(bool) for row in rows]


def inside(mask: np.ndarray) -> tuple[int, int]:
    """A pixel (column, row) inside a mask, far from its border."""
    import cv2

    distance = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = np.unravel_index(int(distance.argmax()), mask.shape)
    return int(column), int(row)


def draw_a_line(page: "Page") -> None:
    page.locator("[data-tool=brush]").click()
    drag(page, [(50, 40), (90, 60)])
    expect(page.locator("#mask-title")).to_have_text("New mask")
