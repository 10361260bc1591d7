"""The annotator's page in a real Chromium, on a real server with real weights: what is drawn is what is saved."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from segmint.catalogs.dataset.reader import Dataset
from segmint.catalogs.dataset.submissions import read_submissions
from segmint.model.automatic.rle import Rle, decode, encode
from segmint.operators.overlay import cut_out
from segmint.pipeline.engine.annotate.drawing import clean_mask
from tests.support.annotated_pages import (
    AnnotationServer,
    answered,
    drag,
    draw_a_line,
    expect,
    inside,
    place_of,
    press_pixel,
    save,
    served,
    shown,
    start,
    truth,
)
from tests.support.browser import serious_violations, sideways_scroll, watch
from tests.support.locations import location_of
from tests.support.page_modules import disc_line
from tests.support.viewed import HOSTILE, mask_rows, vary

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def server(
    small_dataset: Path, chromium: "Browser", embedded_once: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AnnotationServer]:
    """One server for all tests, on a copy of the small real dataset: images 1, 2, 4 to 7, an image or more a test."""
    folder = tmp_path_factory.mktemp("annotated") / "dataset"
    shutil.copytree(small_dataset, folder)
    vary(folder)
    with served(folder, "ann", "bob") as running:
        yield running


@pytest.fixture
def page(chromium: "Browser", server: AnnotationServer) -> Iterator["Page"]:
    """Ann's page in a window of a desktop; nothing may have failed by the end."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    seen = watch(page)
    yield page
    context.close()
    # Requests that tests have refused, and one that a busy machine's model lets wait: the page asks it again.
    expected = ("net::ERR_FAILED", " 403 ", " 409 ", " 503 ")
    assert [error for error in seen.errors if not any(part in error for part in expected)] == []


def ask(
    server: AnnotationServer, image: int, points: list[Any], box: Any = None, before: Any = None
) -> tuple[Any, list[str]]:
    """The logits and run lengths that `Predictor` gives for prompts, in its own order."""
    given: dict[str, Any] = {"multimask": before is None}
    if points:
        given["points"] = np.array([[point[:2] for point in points]], np.float64)
        given["labels"] = np.array([[point[2] for point in points]])
    if box is not None:
        x, y, w, h = box
        given["boxes"] = np.array([[x, y, x + w, y + h]], np.float64)
    embedding = server.embedding(image)
    found = server.predictor.predict(embedding, masks=before, **given)
    logits = server.predictor.upscale(found.low_res_logits, embedding)[0]
    return found, [encode((each > 0).numpy()).counts for each in logits]


def test_clicks_and_boxes_save_the_masks_that_predictor_gives(page: "Page", server: AnnotationServer) -> None:
    start(page, server, 1)
    column, row = inside(truth(server, 1)[0])
    first = [[column, row, 1]]
    found, three = ask(server, 1, first)
    press_pixel(page, column, row)
    answered(page)
    page.keyboard.press("Enter")
    expect(page.locator("#made li")).to_have_count(1)

    # The smallest of the three, corrected by a point on what is not the object, from the logits of that mask.
    areas = [
        int(decode(Rle(tuple(server.opened.annotator_view.source.read(1).size), counts)).sum()) for counts in three
    ]
    smallest = int(np.argmin(areas))
    press_pixel(page, column, row)
    answered(page)
    page.keyboard.press("3")
    expect(page.locator("[data-part=subpart]")).to_have_attribute("aria-pressed", "true")
    _, corrected = ask(server, 1, [*first, [5, 6, 0]], before=found.low_res_logits[:, smallest : smallest + 1])
    press_pixel(page, 5, 6, button="right")
    expect(page.locator("[data-part=subpart]")).to_be_disabled()
    answered(page)
    page.keyboard.press("Enter")
    expect(page.locator("#made li")).to_have_count(2)

    page.keyboard.press("r")
    drag(page, [(30.5, 20.5), (80.5, 100.5), (150.5, 120.5)])
    answered(page)
    boxed, three_of_box = ask(server, 1, [], (30, 20, 120, 100))
    page.keyboard.press("Enter")
    expect(page.locator("#made li")).to_have_count(3)
    answer = save(page, server, 1)  # accepts the mask first

    best = int(found.predicted_iou[0].argmax())
    counts = [three[best], corrected[0], three_of_box[int(boxed.predicted_iou[0].argmax())]]
    size = tuple(server.opened.annotator_view.source.read(1).size)
    assert [mask.counts for mask in answer.masks] == [clean_mask(Rle(size, each)).counts for each in counts]
    assert {mask.source for mask in answer.masks} == {"assisted"}
    prompts = [[prompt.model_dump(exclude_none=True) for prompt in mask.prompts] for mask in answer.masks]
    point = {"kind": "point", "x": column, "y": row, "label": 1}
    assert prompts[0] == [point]
    assert prompts[1] == [point, {"kind": "point", "x": 5, "y": 6, "label": 0}]
    assert prompts[2] == [{"kind": "box", "x": 30, "y": 20, "w": 120, "h": 100}]
    assert (answer.annotator, answer.complete, answer.replaced, answer.deleted) == ("ann", False, (), ())
    assert 0 < sum(mask.seconds for mask in answer.masks) <= answer.seconds < 120


def test_a_cutout_is_the_masks_part_of_the_image(page: "Page", server: AnnotationServer) -> None:
    start(page, server, 2)
    expect(page.locator("#save-cutout")).to_be_disabled()
    row = max(mask_rows(server.dataset, 2), key=lambda row: row["area"])
    page.locator(f"[data-key=d{row['annotation_id']}] .pick").click()
    with page.expect_download() as download:
        page.locator("#save-cutout").click()
    assert download.value.suggested_filename == "sa_2.cutout.png"
    found = np.asarray(Image.open(download.value.path()))
    sample = next(sample for sample in Dataset.open(location_of(server.dataset)) if sample.id == 2)
    expected = cut_out(sample.image, coco.decode(row["segmentation"]).astype(bool))
    assert np.array_equal(found[..., 3], expected[..., 3])
    assert np.abs(found.astype(int) - expected).max() <= 4  # Chromium decodes the JPEG


def is_painted(page: "Page", canvas: str, column: int, row: int) -> bool:
    """Whether a canvas shows anything at a pixel of the image."""
    alpha = """(canvas, [x, y]) => {
        const size = document.getElementById("one-mask");
        const place = [x * canvas.width / size.width, y * canvas.height / size.height];
        const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
        copy.drawImage(canvas, 0, 0);
        return copy.getImageData(...place.map(Math.floor), 1, 1).data[3];
    }"""
    return bool(page.locator(f"#{canvas}").evaluate(alpha, [column + 0.5, row + 0.5]) > 0)


def test_strokes_have_the_pixels_of_a_second_way_and_correct_masks_of_the_dataset(
    page: "Page", server: AnnotationServer
) -> None:
    start(page, server, 2)
    expect(page.locator("#image-title")).to_have_text(HOSTILE)  # which is a text here, as everywhere
    expect(page).to_have_title(f"{HOSTILE} · segmint annotate")
    rows = sorted(mask_rows(server.dataset, 2), key=lambda row: -row["area"])
    size = tuple(rows[0]["segmentation"]["size"])

    # Masks are outlines. Select takes the smallest mask under the pointer, and fills before which one that is.
    column, row = inside(truth(server, 2)[-1])
    page.keyboard.press("v")
    page.mouse.move(*place_of(page, 0.5, 0.5))
    assert not is_painted(page, "all-masks", column, row)
    page.mouse.move(*place_of(page, column + 0.5, row + 0.5))
    expect(page.locator("#stage")).to_have_class(re.compile("pointing"))
    assert is_painted(page, "one-mask", column, row)
    # A hidden mask is neither drawn nor under the pointer; nothing else happens to it.
    smallest_row = page.locator(f"[data-key=d{rows[-1]['annotation_id']}]")
    smallest_row.locator(".hide").click()
    expect(page.locator("#stage")).to_have_attribute("data-masks", str(len(rows) - 1))
    press_pixel(page, column, row)
    expect(smallest_row.locator(".pick")).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("Escape")
    page.keyboard.press("Shift+H")
    expect(page.locator("#stage")).to_have_attribute("data-masks", str(len(rows)))
    press_pixel(page, column, row)
    expect(page.locator(f"[data-key=d{rows[-1]['annotation_id']}] .pick")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    expect(page.locator("#mask-title")).to_have_text("No mask started")

    def stroke(points: list[tuple[int, int]]) -> np.ndarray:
        """A stroke through whole pixels of the window; returns the same points in the image."""
        picture = page.locator("#picture").bounding_box()
        assert picture is not None
        at = [tuple(round(each) for each in place_of(page, *point)) for point in points]
        page.mouse.move(*at[0])
        page.mouse.down()
        for place in at[1:]:
            page.mouse.move(*place)
        page.mouse.up()
        across, down = size[1] / picture["width"], size[0] / picture["height"]
        return np.array([((x - picture["x"]) * across, (y - picture["y"]) * down) for x, y in at])

    page.keyboard.press("b")
    radius = float(page.locator("#radius").inner_text())
    drawn = disc_line(stroke([(40, 40), (90, 60), (60, 110)]), radius, size)
    page.keyboard.press("[")
    page.keyboard.press("[")
    smaller = float(page.locator("#radius").inner_text())
    assert smaller < radius
    page.keyboard.press("e")
    drawn &= ~disc_line(stroke([(20, 50), (120, 55)]), smaller, size)
    # A speck is cleaned when the mask is accepted, and undo restores it.
    page.keyboard.press("b")
    for _ in range(7):
        page.keyboard.press("[")
    smallest = float(page.locator("#radius").inner_text())
    drawn |= disc_line(stroke([(130, 15)]), smallest, size)
    page.keyboard.press("Enter")
    expect(page.locator("#notice")).to_contain_text("Small specks or holes in the mask were removed")
    page.keyboard.press("Control+z")
    expect(page.locator("#made li")).to_have_count(1)
    page.keyboard.press("e")

    # The dataset's largest mask loses a stroke, its smallest is deleted.
    page.locator(f"[data-key=d{rows[0]['annotation_id']}] .pick").click()
    expect(page.locator("#mask-title")).to_contain_text("Mask selected")
    old = np.asarray(coco.decode(rows[0]["segmentation"])).astype(bool)
    column, row = inside(old)
    kept = old & ~disc_line(stroke([(column - 5, row), (column + 5, row + 3)]), smallest, size)
    page.keyboard.press("Enter")
    page.locator(f"[data-key=d{rows[-1]['annotation_id']}] .pick").click()
    page.keyboard.press("Delete")
    expect(page.locator(f"[data-key=d{rows[-1]['annotation_id']}]")).to_have_count(0)
    page.locator("#made .pick").first.click()
    page.keyboard.press("Shift+H")
    expect(page.locator("#made .hidden")).to_have_count(1)
    answer = save(page, server, 2)

    by_source = {mask.source: mask for mask in answer.masks}
    assert len(answer.masks) == 2
    assert by_source["manual"].counts == encode(drawn).counts
    assert (by_source["manual"].prompts, by_source["manual"].parent) == ((), None)
    assert by_source["corrected"].counts == clean_mask(encode(kept)).counts
    assert by_source["corrected"].parent == rows[0]["annotation_id"]
    assert [former.id for former in answer.replaced] == [rows[0]["annotation_id"]]
    assert [former.id for former in answer.deleted] == [rows[-1]["annotation_id"]]


def test_steps_go_out_to_the_mask_around_one_and_in_to_those_inside(page: "Page", server: AnnotationServer) -> None:
    nested = [row for image in (4, 5, 6, 7) for row in mask_rows(server.dataset, image) if row["container"]]
    inner = min(nested, key=lambda row: row["area"])
    start(page, server, inner["id"])
    pressed, title = page.locator("#lists li:has([aria-pressed=true])"), page.locator("#mask-title")
    page.locator(f"[data-key=d{inner['annotation_id']}] .pick").click()
    name = ("subpart", "part", "whole")[inner["output"]]
    expect(page.locator("#mask-level")).to_have_text(f"{name} (output {inner['output']})")
    page.keyboard.press("u")
    expect(pressed).to_have_attribute("data-key", f"d{inner['container']}")
    expect(page.locator("#step-in")).to_have_text(re.compile(r"In \(\d+\)"))
    page.keyboard.press("i")  # to where the user came from
    expect(pressed).to_have_attribute("data-key", f"d{inner['annotation_id']}")
    page.locator("#step-out").click()
    expect(pressed).to_have_attribute("data-key", f"d{inner['container']}")
    page.locator("#step-in").click()
    page.keyboard.press("Delete")
    expect(title).to_have_text("No mask started")
    expect(page.locator("#step-out")).to_be_disabled()
    page.keyboard.press("u")
    expect(title).to_have_text("No mask started")


def looks(page: "Page") -> Any:
    """What the page shows of the work: canvases, prompts, and the list."""
    page.wait_for_timeout(50)  # the masks are drawn at the next frame
    return page.evaluate(
        """async () => {
            await new Promise(requestAnimationFrame);
            await new Promise(requestAnimationFrame);
            const images = ["all-masks", "active-mask"].map((id) => document.getElementById(id).toDataURL());
            const texts = ["prompts", "lists", "mask-title"].map((id) => document.getElementById(id).innerHTML);
            return [...images, ...texts];
        }"""
    )


@pytest.mark.long
def test_masks_have_the_screens_pixels_and_zoomed_in_the_images(page: "Page", server: AnnotationServer) -> None:
    start(page, server, 6)
    press_pixel(page, *inside(truth(server, 6)[0]))
    answered(page)

    def drawn(step: int) -> int:
        """The pixels that the active mask's canvas has painted, once it has the size for a step."""
        sizes = [[-(-side // step) for side in reversed(server.opened.annotator_view.source.read(6).size)]] * 2
        page.wait_for_function(
            """sizes => JSON.stringify(["active-mask", "all-masks"].map((id) => {
                const canvas = document.getElementById(id);
                return [canvas.width, canvas.height];
            })) === JSON.stringify(sizes)""",
            arg=sizes,
        )
        count = """canvas => {
            const { width, height } = canvas;
            const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
            copy.drawImage(canvas, 0, 0);
            const { data } = copy.getImageData(0, 0, width, height);
            return data.reduce((sum, value, place) => sum + (place % 4 === 3 && value > 0), 0);
        }"""
        return int(page.locator("#active-mask").evaluate(count))

    area = drawn(1)
    width = server.opened.annotator_view.source.read(6).size[1]
    page.locator("#stage").evaluate("(stage, width) => (stage.style.maxWidth = `${width}px`)", width // 3)
    assert area < 9 * drawn(3) < 1.5 * area
    for _ in range(4):
        page.keyboard.press("+")
    assert drawn(1) == area


def test_ten_gestures_are_undone_kept_over_a_reload_and_redone(page: "Page", server: AnnotationServer) -> None:
    start(page, server, 4)
    page.locator("#clean").uncheck()
    columns = [inside(mask) for mask in truth(server, 4)]
    before = looks(page)
    press_pixel(page, *columns[0])
    answered(page)
    page.keyboard.press("3")
    page.keyboard.press("Enter")
    page.keyboard.press("b")
    for number in range(3):
        drag(page, [(20 + 30 * number, 30), (40 + 30 * number, 90)])
    page.keyboard.press("e")
    drag(page, [(10, 60), (150, 60)])
    page.keyboard.press("Enter")
    expect(page.locator("#made li")).to_have_count(2)
    page.keyboard.press(",")
    page.keyboard.press("Delete")
    page.keyboard.press("c")
    press_pixel(page, *columns[-1])
    answered(page)
    after = looks(page)
    assert after != before

    page.reload()
    shown(page, 4)
    expect(page.locator("#notice")).to_have_text("Your draft of this image is restored.")
    assert looks(page) == after
    for _ in range(10):
        expect(page.locator("#undo")).to_be_enabled()
        page.keyboard.press("Control+z")
    expect(page.locator("#undo")).to_be_disabled()
    expect(page.locator("#save")).to_have_text("Unchanged, next")
    assert looks(page) == before
    for _ in range(10):
        page.keyboard.press("Control+Shift+z")
    expect(page.locator("#redo")).to_be_disabled()
    assert looks(page) == after


def test_the_keyboard_alone_annotates_an_image(page: "Page", server: AnnotationServer) -> None:
    start(page, server, 5)
    height, width = server.opened.annotator_view.source.read(5).size
    expect(page.locator("#stage")).to_be_focused()
    column, row = inside(truth(server, 5)[0])
    page.keyboard.press("/")
    expect(page.locator("#label-title")).to_have_text("Choose a mask to label first")
    page.keyboard.type("saucers")  # of which neither S nor R acts as a key
    page.keyboard.press("Enter")
    expect(page.locator("#label")).to_be_hidden()
    expect(page.locator("[data-tool=points]")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("ArrowLeft")
    at = [width // 2 - 1, height // 2]
    for axis, names in ((0, ("ArrowLeft", "ArrowRight")), (1, ("ArrowUp", "ArrowDown"))):
        way = (column, row)[axis] - at[axis]
        for step, held in ((100, "Control+"), (10, "Shift+"), (1, "")):
            for _ in range(abs(way) // step):
                page.keyboard.press(held + names[way > 0])
            way = way % step if way > 0 else -(-way % step)
    expect(page.locator("#cross-place")).to_have_text(f"Column {column}, row {row}")
    page.keyboard.press("Space")
    answered(page)
    page.keyboard.press("/")
    expect(page.locator("#label-text")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#mask-title")).to_contain_text("New mask")
    page.keyboard.press("/")
    page.keyboard.type('cup, "blue"')
    page.keyboard.press("Enter")
    expect(page.locator("#made")).to_contain_text('cup, "blue"')
    page.keyboard.press("r")
    page.keyboard.press("p")
    for key in ("Shift+ArrowRight", "Shift+ArrowRight", "Shift+ArrowDown", "ArrowDown"):
        page.keyboard.press(key)
    page.keyboard.press("p")
    answered(page)
    page.keyboard.press("d")
    page.keyboard.press("s")
    expect(page.locator("#notice")).to_have_text("Saved.")
    answer = read_submissions(location_of(server.dataset), 4)[-1]
    found, three = ask(server, 5, [[column, row, 1]])
    assert (
        answer.masks[0].counts == clean_mask(Rle((height, width), three[int(found.predicted_iou[0].argmax())])).counts
    )
    right, below = min(width - 1, column + 20), min(height - 1, row + 11)
    assert answer.masks[1].prompts[0].model_dump(exclude_none=True) == {
        "kind": "box", "x": column, "y": row, "w": right - column, "h": below - row,
    }  # fmt: skip
    assert answer.complete is True
    assert [mask.label for mask in answer.masks] == ['cup, "blue"', None]


def test_nothing_is_lost_while_the_server_does_not_answer(page: "Page", server: AnnotationServer) -> None:
    start(page, server, 6)
    column, row = inside(truth(server, 6)[0])
    page.route("**/predict", lambda route: route.abort())
    press_pixel(page, column, row)
    expect(page.locator("#problem")).to_contain_text("The server isn't responding")
    page.reload()
    shown(page, 6)
    expect(page.locator("#prompts .positive")).to_have_count(1)
    expect(page.locator("#problem")).to_contain_text("The server isn't responding")
    page.unroute("**/predict")
    answered(page)  # it was asked again
    expect(page.locator("#problem")).to_be_hidden()

    # The reply to the answer is lost, and it is sent again: one answer is there.
    page.route("**/submissions/*", lambda route: (route.fetch(), route.abort()))
    page.locator("#save").click()
    expect(page.locator("#double")).to_be_visible()  # the dataset has this mask
    expect(page.locator("#notice")).to_contain_text("Not saved yet")
    page.locator("#save").click()
    expect(page.locator("#problem")).to_contain_text("The server isn't responding")
    assert len(read_submissions(location_of(server.dataset), 5)) == 1
    page.unroute("**/submissions/*")
    expect(page.locator("#notice")).to_have_text("Saved.")
    assert len(read_submissions(location_of(server.dataset), 5)) == 1


def test_who_is_slower_sees_the_winners_masks(page: "Page", chromium: "Browser", server: AnnotationServer) -> None:
    start(page, server, 7)
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    other = context.new_page()
    start(other, server, 7, "bob")
    for each, at in ((page, (50, 40)), (other, (120, 90))):
        each.keyboard.press("b")
        drag(each, [at, (at[0] + 20, at[1])])
        each.keyboard.press("Enter")
        expect(each.locator("#made li")).to_have_count(1)
    answer = save(other, server, 7)
    context.close()
    page.keyboard.press("n")
    expect(page.locator("#lost-text")).to_contain_text("bob saved this image first")
    expect(page.locator("#made li")).to_have_count(1)
    assert page.locator("#made li").get_attribute("data-key") == "a1.0"
    page.locator("#lost-next").click()
    expect(page.locator("#lost")).to_be_hidden()
    assert read_submissions(location_of(server.dataset), 6) == [answer]


def test_a_finger_draws_two_zoom_and_a_palm_beside_a_pen_does_nothing(
    chromium: "Browser", server: AnnotationServer
) -> None:
    context = chromium.new_context(viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    page = context.new_page()
    seen = watch(page)
    start(page, server, 4)
    session = context.new_cdp_session(page)

    def touch(kind: str, *places: tuple[float, float]) -> None:
        points = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(places)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    page.touchscreen.tap(*place_of(page, 90, 60))
    answered(page)
    expect(page.locator("#prompts .positive")).to_have_count(1)
    page.locator("#flip").tap()
    page.touchscreen.tap(*place_of(page, 10, 10))
    expect(page.locator("#prompts .negative")).to_have_count(1)
    page.locator("#accept").tap()
    expect(page.locator("#lists-title")).to_contain_text(str(len(truth(server, 4)) + 1))
    page.locator("[data-tool=brush]").tap()
    one, other = place_of(page, 60, 60), place_of(page, 100, 100)
    touch("touchStart", one)
    touch("touchMove", other)
    touch("touchEnd")
    expect(page.locator("#mask-title")).to_have_text("New mask")
    active = page.locator("#stage").get_attribute("data-active")
    # A second finger gives the stroke up and zooms.
    touch("touchStart", one)
    touch("touchStart", one, other)
    for far in (10, 25, 40):
        touch("touchMove", (one[0] - far, one[1]), (other[0] + far, other[1]))
    touch("touchEnd")
    assert float(page.locator("#zoom-level").inner_text().split()[0]) > 1.2
    assert page.locator("#stage").get_attribute("data-active") == active

    def pen(force: float, palm: str) -> str | None:
        """A stroke by a pen; the palm of its hand comes before the pen's first event or after it, and moves."""
        path = [place_of(page, 50 + step, 80) for step in (0, 20, 40)]
        kinds = ["mousePressed", "mouseMoved", "mouseReleased"]
        if palm == "before":
            touch("touchStart", other)
        for kind, (x, y) in zip(kinds, path, strict=True):
            event = {"type": kind, "x": x, "y": y, "button": "left", "buttons": 1, "clickCount": 1}
            session.send("Input.dispatchMouseEvent", {**event, "pointerType": "pen", "force": force})
            if (kind, palm) == ("mousePressed", "after"):
                touch("touchStart", other)
            touch("touchMove", (other[0] + x / 9, other[1]))
        touch("touchEnd")
        expect(page.locator("#stage")).not_to_have_attribute("data-active", "")
        return page.locator("#stage").get_attribute("data-active")

    page.locator("#accept").tap()
    page.locator("#zoom-fit").tap()
    one, other = place_of(page, 20, 20), place_of(page, 100, 120)
    light = pen(0.1, "before")
    page.locator("#undo").tap()
    expect(page.locator("#mask-title")).to_have_text("No mask started")
    assert pen(0.9, "after") == light
    expect(page.locator("#zoom-level")).to_have_text("1.0 ×")
    assert sideways_scroll(page) == 0
    assert serious_violations(page) == []
    context.close()
    assert seen.errors == []


def test_time_stops_without_input_and_half_a_minute_on_a_mask_is_said(page: "Page", server: AnnotationServer) -> None:
    page.clock.install()
    start(page, server, 4)
    draw_a_line(page)
    page.clock.fast_forward(20_000)
    expect(page.locator("#clock")).to_contain_text("Mask 0:2")
    expect(page.locator("#hint")).to_be_hidden()
    page.mouse.move(300, 300)
    page.clock.fast_forward(12_000)
    expect(page.locator("#hint")).to_contain_text("save to get the next image")
    expect(page.locator("#clock")).not_to_contain_text("paused")
    page.clock.fast_forward(31_000)
    expect(page.locator("#clock")).to_contain_text("paused")
    expect(page.locator("#clock")).to_contain_text("Mask 0:5")
    # Nor does it go on while the progress is looked at.
    page.locator("#to-progress").click()
    page.mouse.move(310, 300)
    page.clock.fast_forward(20_000)
    page.mouse.move(320, 300)
    page.locator("#to-work").click()
    page.clock.fast_forward(1000)
    expect(page.locator("#clock")).to_contain_text("Mask 0:5")
    # A server that was started again does not know the browser: the work stays.
    page.context.clear_cookies()
    page.keyboard.press("s")
    expect(page.locator("#problem")).to_contain_text("The server restarted and no longer recognizes this browser")
    expect(page.locator("#made li")).to_have_count(1)


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.long)])
def test_every_page_is_accessible(page: "Page", server: AnnotationServer, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    start(page, server, 4)
    count = page.locator("#made li").count()
    for _ in range(2):
        draw_a_line(page)
        page.keyboard.press("Enter")
    expect(page.locator("#double-text")).to_have_text("A mask is already here (IoU 1.00). Replace it?")
    expect(page.locator("#double")).to_be_visible()
    assert serious_violations(page) == []
    page.keyboard.press("y")
    expect(page.locator("#made li")).to_have_count(count + 1)
    expect(page.locator("#double")).to_be_hidden()
    page.keyboard.press("Control+z")
    expect(page.locator("#made li")).to_have_count(count + 2)
    expect(page.locator("#double")).to_be_visible()
    draw_a_line(page)
    page.keyboard.press("s")  # not before the question is answered
    expect(page.locator("#notice")).to_contain_text("Not saved yet")
    page.get_by_role("button", name="Keep both").click()
    expect(page.locator("#double")).to_be_hidden()
    draw_a_line(page)
    assert serious_violations(page) == []
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    assert serious_violations(page) == []
    page.locator("#help-close").click()
    page.locator("#to-progress").click()
    expect(page.locator("#progress-count")).to_have_text(re.compile(r"^\d of 6 images saved"))
    expect(page.locator("#progress-rows tr")).to_have_count(2)
    assert serious_violations(page) == []
    page.locator("#to-work").click()
    shown(page, 4)
    expect(page.locator("#mask-title")).to_have_text("New mask")  # the work is as it was left
