"""The raters' page in a real Chromium: what is pressed is what is saved, and the views show the mask."""

import base64
import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from segmint.catalogs.dataset.ratings import Rating, last_ratings, list_ratings, read_ratings
from segmint.pipeline.engine.annotate.rating import RaterView, SampleOptions, make_rating_app, open_rater_view
from segmint.pipeline.engine.annotate.requests import Team
from tests.support.annotated_pages import expect, listening
from tests.support.browser import serious_violations, sideways_scroll, watch
from tests.support.locations import location_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

MASKS = 4
RED = (226, 27, 27)
YELLOW, GROUND = (253, 231, 37), (68, 1, 84)


@dataclass
class RatingServer:
    """A server of raters, and its dataset."""

    rater_view: RaterView
    team: Team
    dataset: Path

    def ratings(self, rater: str) -> list[Rating]:
        """The last ratings of a rater, in the order in which masks were shown."""
        location = location_of(self.dataset)
        read = [
            each for each in read_ratings(location, last_ratings(list_ratings(location))) if isinstance(each, Rating)
        ]
        found = {each.mask: each for each in read if each.rater == rater}
        return [found[each.mask] for each in self.rater_view.order_of(rater) if each.mask in found]


@pytest.fixture(scope="module")
def server(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RatingServer]:
    """One server for all tests, on a copy of the small real dataset."""
    folder = tmp_path_factory.mktemp("rated") / "dataset"
    shutil.copytree(small_dataset, folder)
    with (
        open_rater_view(location_of(folder), SampleOptions(masks=MASKS)) as rater_view,
        listening(lambda team: make_rating_app(rater_view, team), "ann", "bo", "cy") as team,
    ):
        yield RatingServer(rater_view, team, folder)


def shown(page: "Page", item: int | str) -> None:
    """Wait until the mask of this place is shown."""
    expect(page.locator("body")).to_have_attribute("data-item", str(item))


def colors(page: "Page", view: str) -> np.ndarray:
    """The pixels of a view's canvas, (height, width, 3)."""
    url = page.locator(f"[data-view={view}] canvas").evaluate("canvas => canvas.toDataURL('image/png')")
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        return np.asarray(image)[..., :3]


def test_masks_are_rated_by_keys_taken_back_and_found_again(chromium: "Browser", server: RatingServer) -> None:
    context = chromium.new_context(viewport={"width": 900, "height": 700})
    page = context.new_page()
    seen = watch(page)
    page.clock.install(time=0)
    page.goto(server.team.address("ann"))
    shown(page, 0)
    expect(page.locator("#rated-count")).to_have_text(f"0 of {MASKS} rated")
    assert serious_violations(page) == []
    page.clock.pause_at(3_600_000)
    page.keyboard.press("7")
    shown(page, 1)
    page.keyboard.press("1")  # and nothing more: a 1
    expect(page.locator("#notice")).to_have_text("1. Press 0 to make it 10.")
    page.clock.run_for(700)
    shown(page, 2)
    expect(page.locator("#notice")).to_have_text("Rated 1.")
    page.keyboard.press("z")
    shown(page, 1)
    expect(page.locator("#notice")).to_have_text("Rating undone.")
    expect(page.locator("#rated-count")).to_have_text(f"1 of {MASKS} rated")
    page.keyboard.press("1")
    page.keyboard.press("0")  # 10 of this mask, and nothing of the next one
    shown(page, 2)
    expect(page.locator("#notice")).to_have_text("Rated 10.")
    page.clock.resume()
    page.reload()
    shown(page, 2)
    expect(page.locator("#undo")).to_be_disabled()
    page.route("**/api/rate/3/1", lambda route: route.abort())  # early, so that no request gets past it
    page.locator("#scores button[value='5']").click()
    shown(page, 3)

    # A server that does not answer loses nothing: the rating is sent again.
    page.keyboard.press("9")
    expect(page.locator("#problem")).to_contain_text("The server isn't responding")
    page.unroute("**/api/rate/3/1")
    expect(page.locator("#done-title")).to_have_text("All masks are rated")
    expect(page.locator("#problem")).to_be_hidden()
    assert serious_violations(page) == []
    context.close()
    ratings = server.ratings("ann")
    assert [each.score for each in ratings] == [7, 10, 5, 9]
    assert [each.n for each in ratings] == [1, 3, 1, 1]
    assert [error for error in seen.errors if "net::ERR_FAILED" not in error] == []


@pytest.mark.long
def test_the_views_show_the_mask_on_a_phone_and_one_is_enlarged(chromium: "Browser", server: RatingServer) -> None:
    context = chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True, color_scheme="dark")
    page = context.new_page()
    seen = watch(page)
    page.goto(server.team.address("bo"))
    shown(page, 0)
    told = server.rater_view.show("bo", 0)
    height, width = told["size"]
    mask = np.asarray(coco.decode({"size": [height, width], "counts": told["counts"].encode()})).astype(bool)
    pixels = colors(page, "whole")
    scale = min(pixels.shape[1] / width, pixels.shape[0] / height)
    left, top = ((side - length * scale) / 2 for side, length in zip(pixels.shape[1::-1], (width, height), strict=True))
    there = np.asarray(Image.fromarray(mask).resize((round(width * scale), round(height * scale))))
    part = pixels[round(top) : round(top) + there.shape[0], round(left) : round(left) + there.shape[1]].astype(int)
    redness = part[..., 0] - part[..., 1:].mean(axis=2)
    assert redness[there].mean() > redness[~there].mean() + 40
    alone = colors(page, "alone")
    yellow, ground, beside = ((alone == color).all(axis=2) for color in (YELLOW, GROUND, (0, 0, 0)))
    assert yellow.any()
    assert ground.any()
    assert (yellow | ground | beside).mean() > 0.95  # but for the pixels at the mask's border
    assert (np.abs(colors(page, "outline").astype(int) - RED).sum(axis=2) < 12).any()

    page.locator("[data-view=outline]").tap()
    expect(page.locator("[data-view=close]")).to_be_hidden()
    expect(page.locator("[data-view=outline]")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    expect(page.locator("[data-view=close]")).to_be_visible()
    assert (serious_violations(page), sideways_scroll(page)) == ([], 0)
    page.locator("#scores button[value='8']").tap()
    shown(page, 1)
    context.close()
    assert [each.score for each in server.ratings("bo")] == [8]
    assert seen.errors == []


def test_the_close_up_of_a_large_mask_is_the_part_with_its_boundary(chromium: "Browser", server: RatingServer) -> None:
    """A mask of the whole image, but for a square that is a twelfth of its longer side."""
    gray = io.BytesIO()
    Image.new("RGB", (30, 20), (120, 120, 120)).save(gray, "JPEG")
    context = chromium.new_context(viewport={"width": 900, "height": 700})
    page = context.new_page()
    page.route("**/images/*.jpg", lambda route: route.fulfill(body=gray.getvalue(), content_type="image/jpeg"))
    sizes = []

    def answer(route: "Route") -> None:
        response = route.fetch()
        sizes[:] = response.json()["size"]
        side = max(sizes) // 12
        mask = np.ones(sizes, np.uint8)
        mask[-3 * side : -2 * side, -3 * side : -2 * side] = 0
        counts = coco.encode(np.asfortranarray(mask))["counts"].decode()
        route.fulfill(response=response, json={**response.json(), "counts": counts})

    page.route("**/api/rate/next", answer)
    page.goto(server.team.address("cy"))
    shown(page, 0)
    assert page.locator("[data-view=close]").inner_text() == "Close-up of the boundary"
    pixels = colors(page, "close").astype(int)
    hole = (np.abs(pixels - 120) < 12).all(axis=2)
    scale = min(length / side for length, side in zip(pixels.shape, sizes, strict=False))  # in the image
    assert np.count_nonzero(hole) == pytest.approx((2 * scale * (max(sizes) // 12)) ** 2, rel=0.2)
    context.close()
