"""The viewer's grid and links in a real browser: masks on thumbnails, addresses, touch, and what cannot be shown."""

import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from segmint.catalogs.dataset.tombstones import TakedownRequest
from segmint.pipeline.corrections.takedown import takedown
from segmint.pipeline.quality.view.app import LOOK_S
from tests.end_to_end.test_view_browser import drawn, expect, masks_of, open_image
from tests.support.browser import serious_violations, sideways_scroll, watch
from tests.support.committed import write_dataset
from tests.support.locations import location_of
from tests.support.viewed import HOSTILE, Addresses, image_rows, vary, viewing

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route


@pytest.fixture(scope="module")
def looked_at(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the small real dataset whose rows differ: images 1, 2, 4 to 7."""
    folder = tmp_path_factory.mktemp("linked")
    shutil.copytree(small_dataset, folder / "dataset")
    return vary(folder / "dataset")


@pytest.fixture(scope="module")
def addresses(looked_at: Path, chromium: "Browser") -> Iterator[Addresses]:
    with viewing(looked_at) as opened:
        yield Addresses(opened)


@pytest.fixture
def address(addresses: Addresses) -> str:
    """An address that no browser has opened."""
    return addresses.next()


@pytest.fixture
def page(chromium: "Browser", address: str) -> Iterator["Page"]:
    """A page with the grid; nothing may have failed by the end."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    seen = watch(page)
    page.goto(address)
    page.locator("#results .tile").first.wait_for()
    yield page
    context.close()
    assert seen.errors == []


def test_masks_on_thumbnails(page: "Page", looked_at: Path) -> None:
    switch, canvases = page.get_by_label("Masks on thumbnails"), page.locator("#results canvas")
    expect(switch).not_to_be_checked()
    switch.check()
    rows = image_rows(looked_at)
    expect(canvases).to_have_count(len(rows))
    for image in (1, 4):
        masks = [pixels for _, pixels in masks_of(looked_at, image)]
        union = np.logical_or.reduce(masks)
        canvas = page.locator(f"#tile-{image} canvas")
        width, height = (int(canvas.evaluate(f"canvas => canvas.{side}")) for side in ("width", "height"))
        assert max(width, height) == min(480, max(union.shape))
        middles = [
            np.floor((np.arange(n) + 0.5) * side / n).astype(int)
            for n, side in zip((height, width), union.shape, strict=True)
        ]
        assert drawn(page, f"#tile-{image} canvas") == int(union[np.ix_(*middles)].sum())
    page.reload()
    expect(switch).to_be_checked()
    expect(canvases).to_have_count(len(rows))
    switch.uncheck()
    expect(canvases).to_have_count(0)


def test_filters_are_links_and_steps_to_go_back_by(page: "Page", looked_at: Path) -> None:
    tiles, filters = page.locator("#results .tile"), page.locator("#active a")
    page.locator("select[name=country]").select_option(label="FR (2)")
    expect(tiles).to_have_count(2)
    page.get_by_label("Masks, at least").fill("1")
    expect(filters).to_have_count(2)
    expect(filters).to_have_text(["country: FR ×", "masks, at least: 1 ×"])
    assert [each.get_attribute("href") for each in filters.all()] == ["/?masks_min=1", "/?country=FR"]
    page.go_back()
    expect(tiles).to_have_count(len(image_rows(looked_at)))
    expect(page.locator("select[name=country]")).to_have_value("")
    open_image(page, 5)
    page.locator("#image-details").get_by_role("link", name="FR").click()
    expect(page).to_have_url(re.compile(r"/\?country=FR$"))
    expect(tiles).to_have_count(2)


def test_what_cannot_be_shown_leaves_nothing_of_the_image_before(chromium: "Browser", address: str) -> None:
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.route("**/images/2.jpg", lambda _: None)  # never answered
    page.route("**/images/5.jpg", lambda route: route.fulfill(status=404, json={"error": "it was taken away"}))
    page.goto(address)
    open_image(page, 4)
    picture, stage = page.locator("#picture"), page.locator("#stage")
    expect(picture).to_have_css("opacity", "1")
    page.evaluate("location.hash = '#image/2'")
    expect(page.locator("#image-title")).to_have_text(HOSTILE)
    expect(picture).to_have_css("opacity", "0")
    page.evaluate("location.hash = '#image/5'")
    expect(page.locator("#picture-problem")).to_have_text("No picture: it was taken away")
    expect(picture).to_have_css("opacity", "0")
    expect(stage).to_have_attribute("data-masks", re.compile(r"\d"))  # its own masks are shown all the same
    page.evaluate("location.hash = '#image/99999'")
    expect(page.locator("#problem")).to_contain_text("this dataset has no image 99999")
    expect(page.locator("#image-title")).to_have_text("Image 99999")
    expect(page).to_have_title(re.compile("^Image 99999 · "))
    expect(stage).to_be_hidden()
    expect(page.locator("#image-details, #mask-list, #findings").locator("*")).to_have_count(0)
    assert page.locator("#all-masks").evaluate("canvas => canvas.width * canvas.height") == 0
    page.go_back()
    expect(page.locator("#problem")).to_be_hidden()
    expect(page.locator("#image-title")).to_have_text("image-4")
    expect(stage).to_be_visible()
    page.goto(page.url.partition("#")[0] + "?masks_min=few")
    expect(page.locator("#problem")).to_contain_text("expected a number")
    expect(page.locator("#results .tile")).to_have_count(0)
    context.close()


def test_a_touch_screen_has_its_own_hints(chromium: "Browser", address: str) -> None:
    context = chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(address)
    page.get_by_label("Masks on thumbnails").tap()
    expect(page.locator("#results canvas").first).to_be_visible()
    assert serious_violations(page) == []
    page.locator("#tile-4").tap()
    expect(page.locator("#keys")).to_contain_text("with two fingers")
    expect(page.get_by_text("with two fingers")).to_be_visible()
    expect(page.get_by_text("Arrow keys step through")).to_be_hidden()
    assert sideways_scroll(page) == 0
    context.close()


@pytest.fixture(scope="module")
def many(chromium: "Browser", tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """A running viewer's addresses; its dataset has 62 images, two pages of the grid."""
    folder = tmp_path_factory.mktemp("many") / "dataset"
    write_dataset(location_of(folder), shards=31)
    with viewing(folder) as opened:
        yield Addresses(opened)


@pytest.mark.long
def test_a_page_that_could_not_be_loaded_is_asked_for_again(chromium: "Browser", many: Addresses) -> None:
    context = chromium.new_context(viewport={"width": 500, "height": 500})
    page = context.new_page()
    problem = {"status": 502, "json": {"error": "the store is out"}}
    page.route("**/api/images?*after=*", lambda route: route.fulfill(**problem))
    page.goto(many.next())
    tiles = page.locator("#results .tile")
    tiles.nth(59).scroll_into_view_if_needed()
    expect(page.locator("#problem")).to_have_text("the store is out")
    page.unroute("**/api/images?*after=*")
    expect(tiles).to_have_count(62, timeout=15_000)
    expect(page.locator("#problem")).to_be_hidden()
    context.close()


def test_masks_of_a_thumbnail_that_has_left_the_view_are_not_drawn(chromium: "Browser", many: Addresses) -> None:
    context = chromium.new_context(viewport={"width": 500, "height": 500})
    page = context.new_page()
    held: list[Route] = []
    page.route("**/api/images/1/masks", lambda route: held.append(route))
    page.goto(many.next())
    with page.expect_request("**/api/images/1/masks"):
        page.get_by_label("Masks on thumbnails").check()
    expect(page.locator("#tile-2 canvas")).to_have_count(1)
    page.locator("#results .tile").nth(59).scroll_into_view_if_needed()
    expect(page.locator("#tile-2 canvas")).to_have_count(0)
    with page.expect_response("**/api/images/1/masks") as answered:
        held[0].continue_()
    answered.value.finished()
    page.evaluate("() => new Promise(done => setTimeout(done, 300))")
    expect(page.locator("#tile-1 canvas")).to_have_count(0)
    context.close()


def test_an_image_that_is_taken_down_is_no_longer_shown(
    chromium: "Browser", small_dataset: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_dataset, tmp_path / "dataset")
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    with viewing(tmp_path / "dataset") as opened:
        page = context.new_page()
        page.goto(opened)
        expect(page.locator("#results .tile")).to_have_count(6)
        asked = TakedownRequest(ids=(image_rows(small_dataset)[1]["image_id"],))
        takedown(location_of(tmp_path / "dataset"), asked, "asked for", datetime(2026, 3, 4, tzinfo=UTC))
        page.wait_for_timeout(1000 * LOOK_S)
        page.evaluate("location.hash = '#image/4'")
        expect(page.locator("#shown")).to_contain_text("shown")
        page.locator("#previous").click()
        expect(page.locator("#problem")).to_contain_text("shard 0 has changed since this viewer was started")
        expect(page.locator("#stage")).to_be_hidden()
        assert page.locator("#all-masks").evaluate("canvas => canvas.width * canvas.height") == 0
        assert page.locator("#picture").get_attribute("src") is None
        context.close()
