"""The viewer in a real browser: what is shown, clicked, typed and hidden, and its accessibility."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from pycocotools import mask as coco

from tests.support.browser import WatchedPage, serious_violations, sideways_scroll, watch
from tests.support.committed import write_dataset
from tests.support.locations import location_of
from tests.support.viewed import (
    HOSTILE,
    OVER_1,
    Addresses,
    image_rows,
    mask_rows,
    reject_rows,
    vary,
    viewing,
    write_audit,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def looked_at(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the small real dataset whose rows differ: images 1, 2, 4 to 7."""
    folder = tmp_path_factory.mktemp("looked_at")
    shutil.copytree(small_dataset, folder / "dataset")
    return vary(folder / "dataset")


@pytest.fixture(scope="module")
def addresses(looked_at: Path, chromium: "Browser") -> Iterator[Addresses]:
    """A running viewer's addresses; image 4 has findings, one of them with markup in it."""
    box = {"id": 4, "kind": "face", "detector": HOSTILE, "score": 0.9, "x": 10, "y": 10, "w": 30, "h": 30, "shard": 0}
    privacy = {"images_checked": 1, "detectors": [], "found": [box], "found_total": 1, "inside_regions": 0}
    findings = [{"where": "mask 40000", "found": HOSTILE}]
    audit = write_audit(looked_at.parent / "audit.json", findings, privacy=privacy)
    with viewing(looked_at, audit) as opened:
        yield Addresses(opened)


@pytest.fixture
def address(addresses: Addresses) -> str:
    """An address that no browser has opened."""
    return addresses.next()


@pytest.fixture
def watched(chromium: "Browser", address: str) -> Iterator[tuple["Page", WatchedPage]]:
    """A page of the viewer with the grid; by the end nothing may have failed or come from elsewhere."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    seen = watch(page)
    page.goto(address)
    page.locator("#results .tile").first.wait_for()
    yield page, seen
    context.close()
    assert seen.errors == []
    origin = f"http://{urlsplit(address).netloc}/"
    assert {url for url in seen.requests if not url.startswith(origin)} == set()


@pytest.fixture
def page(watched: tuple["Page", WatchedPage]) -> "Page":
    return watched[0]


def expect(found: Any) -> Any:
    from playwright.sync_api import expect

    return expect(found)


def open_image(page: "Page", image: int) -> None:
    page.locator(f"#tile-{image}").click()
    expect(page.locator("#shown")).to_contain_text("shown")


def masks_of(looked_at: Path, image: int) -> list[tuple[dict[str, Any], np.ndarray]]:
    """The rows of an image's masks with their pixels, the largest first, as in the viewer."""
    rows = sorted(mask_rows(looked_at, image), key=lambda row: -row["area"])
    return [(row, np.asarray(coco.decode(row["segmentation"])).astype(bool)) for row in rows]


def drawn(page: "Page", canvas: str, alpha: str = "alpha > 0") -> int:
    """Count the pixels of a canvas whose alpha meets a condition."""
    script = f"""canvas => {{
        const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", {{ willReadFrequently: true }});
        copy.drawImage(canvas, 0, 0);
        const data = copy.getImageData(0, 0, canvas.width, canvas.height).data;
        let found = 0;
        for (let place = 3; place < data.length; place += 4) {{ const alpha = data[place]; if ({alpha}) found++; }}
        return found;
    }}"""
    return int(page.locator(canvas).evaluate(script))


def test_the_grid_and_its_filters(page: "Page", looked_at: Path) -> None:
    rows = image_rows(looked_at)
    tiles = page.locator("#results .tile")
    expect(page).to_have_title("small · segmint view")
    expect(page.locator("#dataset-name")).to_have_text("small")
    expect(tiles).to_have_count(len(rows))
    expect(page.locator("#count")).to_have_text(f"{len(rows)} images")
    page.locator("select[name=country]").select_option(label="FR (2)")
    expect(tiles).to_have_count(2)
    expect(page.locator("#tile-5")).to_be_visible()
    expect(page).to_have_url(re.compile(r"\?country=FR$"))
    page.reload()
    expect(tiles).to_have_count(2)
    page.get_by_role("button", name="Clear all").click()
    expect(tiles).to_have_count(len(rows))
    least = sorted(row["masks"] for row in rows)[-1]
    page.get_by_label("Masks, at least").fill(str(least))
    expect(tiles).to_have_count(sum(row["masks"] >= least for row in rows))
    page.get_by_label("Masks, at least").fill("100000")
    expect(page.locator("#count")).to_have_text("No matching images")
    page.get_by_role("button", name="Clear all").click()
    page.locator("select[name=finding]").select_option("any")
    expect(tiles).to_have_count(1)
    expect(page.locator("#tile-4 .badge")).to_have_text("2 findings")


def test_unknown_values_and_the_order(page: "Page", looked_at: Path) -> None:
    rows = image_rows(looked_at)
    page.locator("select[name=order]").select_option("coverage:down")
    falling = sorted(rows, key=lambda row: (-row["statistics"]["coverage"], row["id"]))
    expect(page.locator("#results .tile").first).to_have_attribute("id", f"tile-{falling[0]['id']}")
    found = page.locator("#results .tile").evaluate_all("tiles => tiles.map(tile => tile.id)")
    assert found == [f"tile-{row['id']}" for row in falling]
    unknown = [row["id"] for row in rows if row["country"] is None]
    page.locator("select[name=country]").select_option(label=f"unknown ({len(unknown)})")
    expect(page.locator("#results .tile")).to_have_count(len(unknown))


def test_pages_load_while_scrolling(chromium: "Browser", tmp_path: Path) -> None:
    write_dataset(location_of(tmp_path / "many"), shards=70)
    ids = [row["id"] for row in image_rows(tmp_path / "many")]
    assert len(ids) == 140  # three pages
    context = chromium.new_context(viewport={"width": 500, "height": 500})
    with viewing(tmp_path / "many") as opened:
        page = context.new_page()
        page.goto(opened)
        tiles = page.locator("#results .tile")
        for shown in (60, 120, 140):
            tiles.nth(shown - 1).scroll_into_view_if_needed()
        expect(tiles).to_have_count(len(ids))
        expect(page.locator("#more")).to_be_hidden()
        found = tiles.evaluate_all("tiles => tiles.map(tile => tile.id)")
        assert found == [f"tile-{number}" for number in ids]
        page.locator("#filters-box summary").click()
        page.locator("select[name=order]").select_option("id:down")
        expect(tiles.first).to_have_attribute("id", f"tile-{ids[-1]}")
        for shown in (60, 120, 140):
            tiles.nth(shown - 1).scroll_into_view_if_needed()
        found = tiles.evaluate_all("tiles => tiles.map(tile => tile.id)")
        assert found == [f"tile-{number}" for number in reversed(ids)]
        page.goto(f"http://{urlsplit(opened).netloc}/?after={ids[9]}")  # as "Show more" in a new tab
        expect(tiles.first).to_have_attribute("id", f"tile-{ids[10]}")
        expect(page.locator("#count")).to_have_text("140 images")
        expect(page.locator("#more")).to_have_attribute("href", f"/?after={ids[69]}")
        expect(page.get_by_role("link", name="Back to the first")).to_have_attribute("href", "/")
        context.close()


def test_thumbnails_are_loaded(page: "Page") -> None:
    for picture in page.locator("#results img").all():
        picture.scroll_into_view_if_needed()
        expect(picture).to_have_js_property("complete", True)
        assert picture.evaluate("picture => picture.naturalWidth") > 100


def test_masks_are_decoded_as_pycocotools_does(page: "Page", looked_at: Path) -> None:
    decode = """async masks => {
        const { decodeCounts, endsOf, holds } = await import("/assets/rle.js");
        return masks.map(({ size: [height, width], counts }) => {
            const ends = endsOf(decodeCounts(counts, height, width));
            const bits = [];
            for (let position = 0; position < height * width; position++) bits.push(holds(ends, position) ? 1 : 0);
            return bits.join("");
        });
    }"""
    for image in (1, 2, 4):
        masks = masks_of(looked_at, image)
        assert masks
        found = page.evaluate(decode, [row["segmentation"] for row, _ in masks])
        for text, (_, pixels) in zip(found, masks, strict=True):
            assert text == (pixels.ravel(order="F") + np.uint8(ord("0"))).tobytes().decode()
    broken = masks[0][0]["segmentation"]
    for counts in (broken["counts"][:-1], broken["counts"] + "1", ""):
        assert page.evaluate(
            """async ([counts, height, width]) => {
                const { decodeCounts } = await import("/assets/rle.js");
                try { decodeCounts(counts, height, width); return false; } catch { return true; }
            }""",
            [counts, *broken["size"]],
        )


def test_a_click_isolates_the_smallest_mask_and_escape_leaves(page: "Page", looked_at: Path) -> None:
    masks = masks_of(looked_at, 1)
    height, width = masks[0][1].shape
    row, pixels = min(masks, key=lambda mask: mask[0]["area"])
    ys, xs = np.nonzero(pixels)
    x, y = int(xs[len(xs) // 2]), int(ys[len(ys) // 2])
    open_image(page, 1)
    stage = page.locator("#stage")
    expect(stage).to_have_attribute("data-masks", str(len(masks)))
    assert drawn(page, "#all-masks") == int(np.logical_or.reduce([mask for _, mask in masks]).sum())
    frame = stage.bounding_box()
    assert frame is not None
    at = {"x": (x + 0.5) * frame["width"] / width, "y": (y + 0.5) * frame["height"] / height}
    stage.hover(position=at)
    expect(page.locator("#pointed")).to_contain_text(f"mask {len(masks)} of {len(masks)}")
    assert drawn(page, "#one-mask") == row["area"]
    stage.click(position=at)
    expect(page.locator("#mask-title")).to_have_text(f"Mask {len(masks)} of {len(masks)}")
    expect(page.locator("#mask-details")).to_contain_text(str(row["annotation_id"]))
    expect(stage).to_have_class("alone")
    assert drawn(page, "#one-mask", "alpha === 190") == height * width - row["area"]
    crop = page.locator("#marks .crop")
    assert [crop.get_attribute(name) for name in ("x", "y", "width", "height")] == [f"{v:g}" for v in row["crop_box"]]
    point = page.locator("#marks .point")
    assert [point.get_attribute(name) for name in ("cx", "cy")] == [f"{v:g}" for v in row["point_coords"][0]]
    page.keyboard.press("Escape")
    expect(page.locator("#mask-box")).to_be_hidden()
    expect(page.locator("#marks .crop")).to_have_count(0)


def test_everything_works_by_keyboard(page: "Page", looked_at: Path) -> None:
    masks = masks_of(looked_at, 4)
    page.locator("#tile-4").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#stage")).to_be_focused()
    expect(page.locator("#image-title")).to_have_text("image-3")
    title, details = page.locator("#mask-title"), page.locator("#mask-details")
    page.keyboard.press("ArrowRight")
    expect(title).to_have_text(f"Mask 1 of {len(masks)}")
    expect(details).to_contain_text(str(masks[0][0]["annotation_id"]))
    page.keyboard.press("ArrowLeft")
    expect(title).to_have_text(f"Mask {len(masks)} of {len(masks)}")
    expect(details).to_contain_text(str(masks[-1][0]["annotation_id"]))
    page.keyboard.press("Home")
    expect(title).to_have_text(f"Mask 1 of {len(masks)}")
    page.keyboard.press("Escape")
    expect(title).to_be_hidden()
    buttons = page.locator("#mask-list button")
    buttons.first.focus()
    expect(page.locator("#pointed")).to_contain_text(f"mask 1 of {len(masks)}")
    page.keyboard.press("Tab" if len(masks) > 1 else "ArrowDown")
    expect(buttons.nth(min(1, len(masks) - 1))).to_be_focused()
    page.keyboard.press("Enter")
    expect(buttons.nth(min(1, len(masks) - 1))).to_have_attribute("aria-pressed", "true")
    page.locator("#stage").focus()
    page.keyboard.press("n")
    expect(page).to_have_url(re.compile("#image/5$"))
    expect(page.locator("#image-title")).to_have_text("image-4")
    page.keyboard.press("p")
    expect(page).to_have_url(re.compile("#image/4$"))
    expect(page.locator("#image-title")).to_have_text("image-3")
    page.locator("#back").press("Enter")
    expect(page.locator("#tile-4")).to_be_focused()


def test_steps_go_out_to_the_mask_around_one_and_in_to_those_inside(page: "Page", looked_at: Path) -> None:
    nested = [(row["id"], row) for image in image_rows(looked_at) for row in mask_rows(looked_at, image["id"])]
    image, inner = min((each for each in nested if each[1]["container"] is not None), key=lambda each: each[1]["area"])
    masks = [row for row, _ in masks_of(looked_at, image)]
    ids = [row["annotation_id"] for row in masks]
    outer = masks[ids.index(inner["container"])]
    inside = [row for row in masks if row["container"] == outer["annotation_id"]]

    def title(row: dict[str, Any]) -> str:
        return f"Mask {ids.index(row['annotation_id']) + 1} of {len(masks)}"

    page.goto(f"{page.url.partition('#')[0]}#image/{image}")
    expect(page.locator("#shown")).to_contain_text("shown")
    page.locator("#mask-list button").nth(ids.index(inner["annotation_id"])).click()
    expect(page.locator("#mask-title")).to_have_text(title(inner))
    name = ("subpart", "part", "whole")[inner["output"]]
    expect(page.locator("#pointed")).to_contain_text(f"{name} (output {inner['output']})")
    expect(page.locator("#mask-details")).to_contain_text(f"{name} (output {inner['output']})")
    expect(page.locator("#mask-details")).to_contain_text(str(inner["container"]))
    expect(page.locator("#output-order")).to_contain_text(" % of ")
    page.locator("#stage").focus()
    page.keyboard.press("u")
    expect(page.locator("#mask-title")).to_have_text(title(outer))
    expect(page.locator("#inside button")).to_have_count(len(inside))
    page.keyboard.press("i")  # to where the user came from, not to the largest one
    expect(page.locator("#mask-title")).to_have_text(title(inner))
    page.locator("#step-out").click()
    expect(page.locator("#mask-title")).to_have_text(title(outer))
    page.locator("#inside button").first.click()
    expect(page.locator("#mask-title")).to_have_text(title(inside[0]))
    page.keyboard.press("Escape")
    page.locator("#mask-list button").first.click()
    expect(page.locator("#step-out")).to_have_text("In no other shown mask")
    expect(page.locator("#step-out")).to_be_disabled()
    page.locator("#stage").focus()
    page.keyboard.press("u")
    expect(page.locator("#mask-title")).to_have_text(title(masks[0]))


def test_sliders_hide_masks(page: "Page", looked_at: Path) -> None:
    image = max(image_rows(looked_at), key=lambda row: row["masks"])["id"]
    masks = masks_of(looked_at, image)
    open_image(page, image)
    for slider, column in (("#iou", "predicted_iou"), ("#stability", "stability_score")):
        scores = sorted(row[column] for row, _ in masks)
        limit = round(scores[len(scores) // 2], 3)
        kept = [pixels for row, pixels in masks if row[column] >= limit]
        assert 0 < len(kept) < len(masks)
        page.locator(slider).fill(str(limit))
        expect(page.locator("#shown")).to_contain_text(f"{len(kept)} of {len(masks)} masks")
        expect(page.locator("#stage")).to_have_attribute("data-masks", str(len(kept)))
        assert drawn(page, "#all-masks") == int(np.logical_or.reduce(kept).sum())
        expect(page.locator("#mask-list li:visible")).to_have_count(len(kept))
        page.locator(slider).fill(page.locator(slider).get_attribute("min") or "0")
    page.get_by_label("Show masks").uncheck()
    expect(page.locator("#stage")).to_have_attribute("data-masks", "0")
    assert drawn(page, "#all-masks") == 0


def test_texts_of_a_dataset_are_never_markup(page: "Page") -> None:
    expect(page.locator("#tile-2")).to_contain_text(HOSTILE)
    page.locator("select[name=provider]").select_option(HOSTILE)
    expect(page.locator("#results .tile")).to_have_count(1)
    open_image(page, 2)
    expect(page.locator("#image-title")).to_have_text(HOSTILE)
    expect(page.locator("#image-details")).to_contain_text(HOSTILE)
    page.goto(page.url.partition("?")[0] + "#image/4")
    expect(page.locator("#findings")).to_contain_text(HOSTILE)
    page.get_by_role("button", name="Show", exact=True).last.click()
    expect(page.locator("#marks .found")).to_have_count(1)
    assert page.locator("main script, main [onerror]").count() == 0
    assert "owned" not in page.title().replace(HOSTILE, "")


def test_an_address_names_an_image(page: "Page", address: str) -> None:
    page.goto(f"http://{urlsplit(address).netloc}/?country=FR#image/5")
    expect(page.locator("#image-title")).to_have_text("image-4")
    expect(page.locator("#next")).not_to_have_attribute("href", re.compile("."))
    page.locator("#previous").click()
    expect(page.locator("#image-title")).to_have_text("image-0")


def test_rejected_rows_have_a_page_and_no_picture(page: "Page", looked_at: Path) -> None:
    rows = reject_rows(looked_at)
    page.get_by_role("link", name="Rejected rows").click()
    expect(page.locator("#rejected-count")).to_have_text(
        "2 catalog rows rejected. segmint shows no pictures of rejected rows."
    )
    for row in rows:
        expect(page.locator("#rejected-rows")).to_contain_text(row["detail"])
    expect(page.locator("#rejected-page img")).to_have_count(0)
    page.locator("#reasons a", has_text=rows[1]["reason"]).click()
    expect(page.locator("#reasons [aria-current]")).to_contain_text(f"{rows[1]['reason']} (1)")
    expect(page.locator("#rejected-rows tr")).to_have_text([re.compile(f"^{rows[1]['id']}")])
    page.locator("#rejected-page").get_by_role("link", name="All images").click()
    expect(page.locator("#tile-4")).to_be_visible()


def test_no_predicted_iou_is_over_1(page: "Page", looked_at: Path) -> None:
    assert mask_rows(looked_at, 4)[0]["predicted_iou"] == OVER_1
    open_image(page, 4)
    page.locator("#mask-list button", has_text="IoU 1.000").first.click()
    expect(page.locator("#pointed")).to_contain_text("predicted IoU 1.000")
    expect(page.locator("#mask-details")).to_contain_text("Predicted IoU1")
    assert page.locator("#iou").get_attribute("max") == "1"
    assert "1.02" not in page.locator("#image-page").inner_text()


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (1280, "light"),
        (390, "dark"),
        pytest.param(1280, "dark", marks=pytest.mark.long),
        pytest.param(390, "light", marks=pytest.mark.long),
    ],
)
def test_accessibility(chromium: "Browser", address: str, scheme: Any, width: int) -> None:
    context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto(address)
    page.locator("#results .tile").first.wait_for()
    page.locator("#filters-box").evaluate("details => details.open = true")
    assert serious_violations(page) == []
    assert page.locator(".caption").evaluate_all("all => all.every(one => one.scrollWidth <= one.clientWidth)")
    assert sideways_scroll(page) == 0
    open_image(page, 4)
    page.keyboard.press("ArrowRight")
    expect(page.locator("#mask-box")).to_be_visible()
    page.keyboard.press("+")
    assert serious_violations(page) == []
    assert sideways_scroll(page) == 0
    page.get_by_role("link", name="Rejected rows").click()
    expect(page.locator("#rejected-rows tr")).to_have_count(2)
    assert serious_violations(page) == []
    assert sideways_scroll(page) == 0
    context.close()


def test_without_the_key_a_browser_sees_nothing(chromium: "Browser", address: str) -> None:
    context = chromium.new_context()
    page = context.new_page()
    answer = page.goto(f"http://{urlsplit(address).netloc}/")
    assert answer is not None
    assert answer.status == 403
    assert "contains the key" in page.content()
    context.close()


def test_an_address_opens_one_browser_and_the_page_gives_another(chromium: "Browser", address: str) -> None:
    contexts = [chromium.new_context(viewport={"width": 500, "height": 600}) for _ in range(2)]
    first, second = (context.new_page() for context in contexts)
    first.goto(address)
    first.locator("#results .tile").first.wait_for()
    assert urlsplit(first.url).query == ""  # the key is not in the history's last address
    answer = second.goto(address)
    assert answer is not None
    assert answer.status == 403
    expect(second.get_by_role("main").get_by_role("heading")).to_have_text("This address was used before")
    assert second.evaluate("getComputedStyle(document.body).fontFamily") == "system-ui, sans-serif"
    assert serious_violations(second) == []
    first.goto(address)  # the browser that it opened may open it again
    first.locator("#results .tile").first.wait_for()
    first.get_by_role("button", name="Open in another browser").click()
    field = first.get_by_label("Address for another browser")
    expect(field).to_have_value(re.compile(r"^http://127\.0\.0\.1:\d+/\?key=[\w-]{43}$"))
    assert serious_violations(first) == []
    assert sideways_scroll(first) == 0
    second.goto(field.input_value())
    second.locator("#results .tile").first.wait_for()
    first.get_by_role("button", name="Open in another browser").click()
    expect(field).to_be_hidden()
    for context in contexts:
        context.close()
