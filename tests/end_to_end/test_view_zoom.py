"""Zooming the viewer's image in a real browser: what is shown, and that masks are found where they are shown."""

import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tests.end_to_end.test_view_browser import expect, masks_of, open_image
from tests.support.browser import serious_violations, sideways_scroll, watch
from tests.support.viewed import Addresses, image_rows, viewing

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Box = dict[str, float]


@pytest.fixture(scope="module")
def addresses(small_dataset: Path, chromium: "Browser") -> Iterator[Addresses]:
    with viewing(small_dataset) as opened:
        yield Addresses(opened)


@pytest.fixture
def address(addresses: Addresses) -> str:
    """An address that no browser has opened."""
    return addresses.next()


@pytest.fixture(params=[pytest.param(1280, id="wide"), pytest.param(700, id="narrow", marks=pytest.mark.long)])
def page(request: pytest.FixtureRequest, chromium: "Browser", address: str) -> Iterator["Page"]:
    """A page with an image of many masks; nothing may have failed by the end."""
    context = chromium.new_context(viewport={"width": request.param, "height": 800})
    page = context.new_page()
    seen = watch(page)
    page.goto(address)
    yield page
    context.close()
    assert seen.errors == []


@pytest.fixture
def opened(page: "Page", small_dataset: Path) -> int:
    """The number of the image that the page shows."""
    image = most_masks(small_dataset)
    open_image(page, image)
    return image


def most_masks(small_dataset: Path) -> int:
    return int(max(image_rows(small_dataset), key=lambda row: row["masks"])["id"])


def pixels_of(small_dataset: Path, image: int) -> Image.Image:
    for path in (small_dataset / "shards").iterdir():
        with tarfile.open(path) as archive:
            if f"sa_{image}.jpg" in archive.getnames():
                stream = archive.extractfile(f"sa_{image}.jpg")
                assert stream is not None
                return Image.open(io.BytesIO(stream.read())).convert("RGB")
    raise AssertionError(f"no image {image}")


def box(page: "Page", selector: str) -> Box:
    found = page.locator(selector).bounding_box()
    assert found is not None
    return dict(found)


def scale(page: "Page") -> float:
    return box(page, "#picture")["width"] / box(page, "#stage")["width"]


def place_of(page: "Page", x: float, y: float, size: tuple[int, int]) -> tuple[float, float]:
    """The position in the window of a point of the image (x, y in its pixels)."""
    picture = box(page, "#picture")
    return picture["x"] + x / size[0] * picture["width"], picture["y"] + y / size[1] * picture["height"]


def held_at(page: "Page", at: tuple[float, float], size: tuple[int, int]) -> tuple[float, float]:
    """The point of the image, in its pixels, at a position in the window."""
    picture = box(page, "#picture")
    x, y = (at[0] - picture["x"]) / picture["width"], (at[1] - picture["y"]) / picture["height"]
    return x * size[0], y * size[1]


def hold_masks_to_numpy(page: "Page", masks: list[tuple[dict[str, Any], np.ndarray]]) -> int:
    """Point at a grid of visible positions and expect the smallest mask there; return how many masks were met."""
    height, width = masks[0][1].shape
    page.locator("#stage").scroll_into_view_if_needed()
    stage, met = box(page, "#stage"), set()
    picture = box(page, "#picture")
    for across in np.linspace(0.04, 0.96, 5):
        for down in np.linspace(0.04, 0.96, 3):
            x = int((stage["x"] + across * stage["width"] - picture["x"]) / picture["width"] * width)
            y = int((stage["y"] + down * stage["height"] - picture["y"]) / picture["height"] * height)
            page.mouse.move(*place_of(page, x + 0.5, y + 0.5, (width, height)))
            under = [place for place, (_, pixels) in enumerate(masks, 1) if pixels[y, x]]
            if not under:
                expect(page.locator("#pointed")).to_be_empty()
                continue
            expect(page.locator("#pointed")).to_contain_text(f"mask {under[-1]} of {len(masks)} ")
            met.add(under[-1])
    return len(met)


def hold_picture_to_jpeg(page: "Page", jpeg: Image.Image) -> None:
    """Check that the stage shows the part of the JPEG that it claims to show."""
    page.get_by_label("Show masks").uncheck()
    page.mouse.move(1, 1)
    expect(page.locator("#stage")).to_have_attribute("data-masks", "0")
    shown = Image.open(io.BytesIO(page.locator("#stage").screenshot())).convert("RGB")
    stage, picture = box(page, "#stage"), box(page, "#picture")
    left, top = stage["x"] - picture["x"], stage["y"] - picture["y"]
    part = [left, top, left + stage["width"], top + stage["height"]]
    across, down = jpeg.width / picture["width"], jpeg.height / picture["height"]
    seen = jpeg.resize(shown.size, Image.Resampling.BILINEAR, box=tuple(np.multiply(part, [across, down] * 2)))
    assert difference(shown, seen) < 6
    assert difference(shown, jpeg.resize(shown.size)) > 12


def difference(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


def test_the_wheel_keeps_what_is_under_it_and_masks_are_where_they_are_seen(
    page: "Page", opened: int, small_dataset: Path
) -> None:
    masks, jpeg = masks_of(small_dataset, opened), pixels_of(small_dataset, opened)
    smallest = masks[-1][1]
    ys, xs = np.nonzero(smallest)
    across, down = place_of(page, xs[len(xs) // 2] + 0.5, ys[len(ys) // 2] + 0.5, jpeg.size)
    at = round(across), round(down)  # wheel events have whole pixels
    x, y = held_at(page, at, jpeg.size)
    page.mouse.move(*at)
    for _ in range(5):
        page.mouse.wheel(0, -120)
    expect(page.locator("#zoom-level")).to_have_text("3.3 ×")
    assert scale(page) == pytest.approx(np.exp(1.2), rel=1e-3)
    assert place_of(page, x, y, jpeg.size) == pytest.approx(at, abs=0.5)
    hold_masks_to_numpy(page, masks)
    page.mouse.move(*at)
    expect(page.locator("#pointed")).to_contain_text(f"mask {len(masks)} of {len(masks)} ")
    page.mouse.click(*at)
    expect(page.locator("#mask-title")).to_have_text(f"Mask {len(masks)} of {len(masks)}")
    page.keyboard.press("Escape")
    hold_picture_to_jpeg(page, jpeg)


def test_dragging_moves_the_picture_and_is_no_click(page: "Page", opened: int, small_dataset: Path) -> None:
    masks, jpeg = masks_of(small_dataset, opened), pixels_of(small_dataset, opened)
    for _ in range(2):
        page.get_by_role("button", name="Zoom in").click()
    stage = box(page, "#stage")
    middle = stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 2
    before = box(page, "#picture")
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 40, middle[1] + 25, steps=4)
    page.mouse.up()
    after = box(page, "#picture")
    assert (after["x"] - before["x"], after["y"] - before["y"]) == pytest.approx((40, 25), abs=0.5)
    expect(page.locator("#mask-box")).to_be_hidden()
    assert hold_masks_to_numpy(page, masks) > 1
    window = page.viewport_size
    assert window is not None
    for _ in range(2):
        page.mouse.move(*middle)
        page.mouse.down()
        page.mouse.move(window["width"] - 2, window["height"] - 2, steps=3)  # out of the image
        page.mouse.up()
    corner = box(page, "#picture")
    assert (corner["x"], corner["y"]) == pytest.approx((stage["x"], stage["y"]), abs=0.5), "no further than its edge"
    hold_picture_to_jpeg(page, jpeg)
    page.get_by_label("Show masks").check()
    assert hold_masks_to_numpy(page, masks) > 0, "the pointer was let go outside, and is no drag any more"


def test_keys_and_buttons(page: "Page", opened: int, small_dataset: Path) -> None:
    masks = masks_of(small_dataset, opened)
    level, stage = page.locator("#zoom-level"), page.locator("#stage")
    stage.focus()
    for key, shown in (("+", "1.5 ×"), ("=", "2.3 ×"), ("-", "1.5 ×"), ("+", "2.3 ×"), ("0", "1.0 ×"), ("-", "1.0 ×")):
        page.keyboard.press(key)
        expect(level).to_have_text(shown)
    for _ in range(30):
        page.keyboard.press("+")
    most = scale(page)
    width = masks[0][1].shape[1]
    assert most == pytest.approx(max(8, 12 * width / box(page, "#stage")["width"]), rel=1e-2)
    here = box(page, "#picture")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    there, seen = box(page, "#picture"), box(page, "#stage")
    moved = (here["x"] - there["x"]) / seen["width"], (here["y"] - there["y"]) / seen["height"]
    assert moved == pytest.approx((0.2, 0.2), abs=0.01)
    expect(page.locator("#mask-box")).to_be_hidden()
    for row, pixels in masks:
        page.keyboard.press("ArrowRight")
        expect(page.locator("#mask-details")).to_contain_text(str(row["annotation_id"]))
        ys, xs = np.nonzero(pixels)
        x, y = place_of(page, (xs.min() + xs.max() + 1) / 2, (ys.min() + ys.max() + 1) / 2, pixels.shape[::-1])
        assert seen["x"] - 1 <= x <= seen["x"] + seen["width"] + 1, "a mask that is shown alone is in sight"
        assert seen["y"] - 1 <= y <= seen["y"] + seen["height"] + 1
    for name, shown in (("Fit", "1.0 ×"), ("Zoom in", "1.5 ×"), ("Zoom out", "1.0 ×")):
        page.get_by_role("button", name=name).press("Enter")
        expect(level).to_have_text(shown)
    page.get_by_role("button", name="Zoom in").press("Enter")
    stage.focus()
    page.keyboard.press("n" if opened == 1 else "p")
    expect(page).not_to_have_url(re.compile(f"#image/{opened}$"))
    expect(level).to_have_text("1.0 ×")


def test_marks_keep_their_size(page: "Page", opened: int) -> None:
    page.locator("#stage").focus()
    page.keyboard.press("ArrowRight")
    point = page.locator("#marks .point")
    shown = box(page, "#marks .point")["width"]
    page.keyboard.press("+")
    page.keyboard.press("+")
    expect(point).to_have_count(1)
    assert box(page, "#marks .point")["width"] == pytest.approx(shown, abs=1)
    size = page.locator("#picture").evaluate("picture => [picture.naturalWidth, picture.naturalHeight]")
    x, y = (float(point.get_attribute(name) or "nan") for name in ("cx", "cy"))
    mark = box(page, "#marks .point")
    middle = mark["x"] + mark["width"] / 2, mark["y"] + mark["height"] / 2
    assert middle == pytest.approx(place_of(page, x, y, tuple(size)), abs=1), "marks are moved with the picture"


def test_the_page_scrolls_where_there_is_nothing_to_shrink(page: "Page", opened: int) -> None:
    page.locator("#stage").hover()
    page.mouse.wheel(0, 200)
    # Not `wait_for_function`: it makes the page evaluate text, which its Content-Security-Policy forbids.
    for _ in range(200):
        if page.evaluate("scrollY") > 0:
            break
        page.wait_for_timeout(50)
    assert page.evaluate("scrollY") > 0
    expect(page.locator("#zoom-level")).to_have_text("1.0 ×")


def test_touch(chromium: "Browser", address: str, small_dataset: Path) -> None:
    masks = masks_of(small_dataset, most_masks(small_dataset))
    height, width = masks[0][1].shape
    context = chromium.new_context(viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    page = context.new_page()
    # On a busy machine a finger may seem to rest: this must not count as a long press, nor must taps have to be quick.
    page.add_init_script("addEventListener('contextmenu', event => event.preventDefault())")
    page.goto(address)
    open_image(page, most_masks(small_dataset))
    fingers = context.new_cdp_session(page)

    def touch(kind: str, *places: tuple[float, float]) -> None:
        points = [{"x": x, "y": y, "id": index} for index, (x, y) in enumerate(places)]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    stage = box(page, "#stage")
    x, y = stage["x"] + stage["width"] / 3, stage["y"] + stage["height"] / 3
    held = held_at(page, (x, y), (width, height))
    touch("touchStart", (x - 20, y), (x + 20, y))
    for apart in (25, 30, 35, 40, 50):
        touch("touchMove", (x - apart, y), (x + apart, y))
    touch("touchEnd")
    expect(page.locator("#zoom-level")).to_have_text("2.5 ×")
    assert place_of(page, *held, (width, height)) == pytest.approx((x, y), abs=1)
    expect(page.locator("#mask-box")).to_be_hidden()

    touch("touchStart", (x, y))
    for step in range(1, 6):
        touch("touchMove", (x - 8 * step, y - 6 * step))
    touch("touchEnd")
    assert place_of(page, *held, (width, height)) == pytest.approx((x - 40, y - 30), abs=1)
    expect(page.locator("#mask-box")).to_be_hidden()

    page.get_by_role("button", name="Fit").press("Enter")
    expect(page.locator("#zoom-level")).to_have_text("1.0 ×")
    smallest = masks[-1][1]
    ys, xs = np.nonzero(smallest)
    page.mouse.click(*place_of(page, xs[len(xs) // 2] + 0.5, ys[len(ys) // 2] + 0.5, (width, height)))
    expect(page.locator("#mask-title")).to_have_text(f"Mask {len(masks)} of {len(masks)}")
    assert serious_violations(page) == []
    assert sideways_scroll(page) == 0
    context.close()
