"""The annotator's page in a real Chromium: gestures in their order, saves that are tried again, drafts, and people."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from segmint.catalogs.dataset.submissions import Submission, read_submissions
from segmint.pipeline.corrections.merge import merge_submissions
from tests.support.annotated_pages import (
    AnnotationServer,
    answered,
    drag,
    expect,
    inside,
    press_pixel,
    save,
    served,
    shown,
    start,
    truth,
)
from tests.support.browser import serious_violations, sideways_scroll, watch
from tests.support.locations import location_of
from tests.support.viewed import image_rows

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

GONE = "The server isn't responding"
LATE = "The server hasn't responded for 20 seconds"


@pytest.fixture(scope="module")
def server(
    small_dataset: Path, embedded_once: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AnnotationServer]:
    """One server for all tests, on a copy of the small real dataset: images 1, 2, 4 to 7, an image or more a test."""
    folder = tmp_path_factory.mktemp("annotated") / "dataset"
    shutil.copytree(small_dataset, folder)
    with served(folder, "ann", "bob") as running:
        yield running


@pytest.fixture
def page(chromium: "Browser", server: AnnotationServer) -> Iterator["Page"]:
    """Ann's page in a window of a desktop; nothing may have failed by the end but what tests have refused."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    seen = watch(page)
    yield page
    context.close()
    expected = ("net::ERR_FAILED", " 403 ", " 404 ", " 409 ", " 503 ")
    assert [error for error in seen.errors if not any(part in error for part in expected)] == []


def draw(page: "Page", number: int, others: int | None = None) -> None:
    """Make a mask of a line with the brush, the line with this number; `others` are there already."""
    page.keyboard.press("b")
    drag(page, [(30, 25 + 30 * number), (70, 25 + 30 * number)])
    page.wait_for_timeout(150)  # which is time spent on the mask
    page.keyboard.press("Enter")
    expect(page.locator("#made li")).to_have_count((number if others is None else others) + 1)


def until(page: "Page", is_so: Callable[[], bool]) -> None:
    """Wait until something is so, while the page goes on."""
    for _ in range(600):
        if is_so():
            return
        page.wait_for_timeout(50)
    raise AssertionError("it never was so")


def answers(server: AnnotationServer, image: int) -> list[Submission]:
    return read_submissions(location_of(server.dataset), image - 1)


def test_a_save_that_is_tried_again_sends_what_was_there_when_it_was_asked_for(
    page: "Page", server: AnnotationServer
) -> None:
    start(page, server, 1)
    page.route("**/submissions/*", lambda route: route.abort())
    draw(page, 0)  # a request just after `route` may pass it
    page.keyboard.press("s")
    expect(page.locator("#problem")).to_contain_text(GONE)
    expect(page.locator("#notice")).to_contain_text("Not saved yet")
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    expect(page.locator("#made-box")).to_be_hidden()
    draw(page, 1, others=0)
    expect(page.locator("#problem")).to_contain_text(GONE)
    page.unroute("**/submissions/*")
    expect(page.locator("#notice")).to_contain_text("Saved, but without the changes that you made since.")
    expect(page.locator("#problem")).to_be_hidden()
    (first,) = answers(server, 1)
    assert len(first.masks) == 1

    page.reload()
    shown(page, 1)
    expect(page.locator("#notice")).to_have_text("Your draft of this image is restored.")
    expect(page.locator("#made li")).to_have_count(1)
    second = save(page, server, 1)
    assert (second.n, len(second.masks)) == (2, 1)
    assert second.masks[0].counts != first.masks[0].counts
    assert second.seconds >= first.seconds > 0


def test_what_is_never_answered_holds_no_gesture_back_and_is_saved_once(page: "Page", server: AnnotationServer) -> None:
    page.clock.install()  # runs on, and can be put forward
    start(page, server, 1)
    before = len(answers(server, 1))
    held: list[Route] = []
    page.route("**/predict", lambda route: held.append(route))
    press_pixel(page, *inside(truth(server, 1)[0]))
    expect(page.locator("#mask-title")).to_contain_text("Waiting for the model")
    until(page, lambda: len(held) == 1)
    page.keyboard.press("Enter")  # waits for the click's answer
    page.keyboard.press("Escape")
    page.clock.fast_forward(21_000)
    expect(page.locator("#problem")).to_contain_text(LATE)
    expect(page.locator("#mask-title")).to_have_text("No mask started")  # the gestures were done
    page.clock.fast_forward(4_000)
    expect(page.locator("#problem")).to_be_hidden()  # nobody waits for the model any more

    # The server saves, and its reply never comes.
    number = page.locator("#made li").count()
    draw(page, number)

    def swallow(route: "Route") -> None:
        held.append(route)
        route.fetch()

    page.route("**/submissions/*", swallow)
    page.keyboard.press("s")
    until(page, lambda: len(answers(server, 1)) == before + 1)
    page.keyboard.press("v")
    page.clock.fast_forward(40_000)
    expect(page.locator("#problem")).to_contain_text(LATE)
    page.clock.fast_forward(4_000)  # it is sent again, and not answered again: gestures go on
    until(page, lambda: len(held) == 3)
    page.keyboard.press("d")
    expect(page.locator("#complete")).to_be_checked()
    page.keyboard.press("d")
    draw(page, number + 1)
    page.unroute("**/submissions/*")
    page.clock.fast_forward(40_000)
    page.clock.fast_forward(4_000)
    expect(page.locator("#notice")).to_contain_text("Saved, but without the changes that you made since.")
    expect(page.locator("#problem")).to_be_hidden()
    expect(page.locator("#made li")).to_have_count(number + 2)
    saved = answers(server, 1)
    assert len(saved) == before + 1
    assert len(saved[-1].masks) == number + 1

    # An image that is not opened: the page looks again by itself.
    page.route("**/api/images/2", lambda route: held.append(route))
    page.evaluate("location.hash = '#image/2'")
    until(page, lambda: held[-1].request.url.endswith("/api/images/2"))
    page.clock.fast_forward(21_000)
    expect(page.locator("#problem")).to_contain_text(LATE)
    page.unroute("**/api/images/2")
    page.clock.fast_forward(4_000)
    shown(page, 2)
    expect(page.locator("#problem")).to_be_hidden()
    for route in held:
        route.abort()


def test_undo_and_delete_wait_their_turn_and_a_new_mask_is_not_one_selected_before(
    page: "Page", server: AnnotationServer
) -> None:
    start(page, server, 2)
    page.locator("#clean").uncheck()  # which would be another step to undo
    held: list[Route] = []
    holds = True
    page.route("**/predict", lambda route: held.append(route) if holds else route.continue_())
    first, second = inside(truth(server, 2)[0]), inside(truth(server, 2)[-1])
    press_pixel(page, *first)
    expect(page.locator("#mask-title")).to_contain_text("Waiting for the model")
    # Nothing waits for the answer that does not need it.
    press_pixel(page, *second)
    expect(page.locator("#prompts .positive")).to_have_count(2)
    page.keyboard.press("+")
    expect(page.locator("#zoom-level")).not_to_have_text("1.0 ×")
    page.keyboard.press("f")
    page.keyboard.press("h")
    expect(page.locator("#stage")).to_have_class(re.compile("bare"))
    page.keyboard.press("h")
    page.keyboard.press("Control+z")  # the second point
    expect(page.locator("#prompts .positive")).to_have_count(1)
    expect(page.locator("#redo")).to_be_enabled()
    # Accept waits, and undo its turn.
    page.keyboard.press("Enter")
    page.keyboard.press("Control+z")
    page.wait_for_timeout(200)
    expect(page.locator("#prompts .positive")).to_have_count(1)
    assert len(held) == 1
    holds = False
    held[0].continue_()
    answered(page)
    page.keyboard.press("Control+y")
    expect(page.locator("#made li")).to_have_count(1)
    page.keyboard.press("Control+z")
    answered(page)
    expect(page.locator("#prompts .positive")).to_have_count(1)
    assert float(page.locator("#prompts .positive").get_attribute("cx") or 0) == first[0] + 0.5

    # The new mask is undone, a mask of the dataset selected, and the new one is back: Delete deletes that.
    there = page.locator("#found li")
    count = there.count()
    page.keyboard.press("Control+z")
    expect(page.locator("#mask-title")).to_have_text("No mask started")
    there.first.locator(".pick").click()
    expect(page.locator("#mask-title")).to_contain_text("Mask selected")
    page.keyboard.press("Control+y")
    expect(page.locator("#mask-title")).to_contain_text("New mask")
    page.keyboard.press("Delete")
    expect(page.locator("#prompts .positive")).to_have_count(0)
    expect(there).to_have_count(count)

    # An image that is skipped during a click, and a stroke under way, leave nothing on the next one.
    holds = True
    press_pixel(page, *first)
    expect(page.locator("#mask-title")).to_contain_text("Waiting for the model")
    page.keyboard.press("b")
    page.mouse.down()
    page.keyboard.press("Shift+S")
    shown(page, 4)
    holds = False
    held[-1].abort()
    page.mouse.move(500, 300)
    page.mouse.up()
    expect(page.locator("#notice")).to_have_text("Skipped. A draft is kept.")
    expect(page.locator("#undo")).to_be_disabled()
    expect(page.locator("#problem")).to_be_hidden()
    page.keyboard.press("Shift+N")
    shown(page, 2)
    answered(page)  # it is asked again
    expect(page.locator("#prompts .positive")).to_have_count(1)


def test_drafts_are_carried_to_masks_that_changed_and_what_was_merged_is_there_once(
    page: "Page", server: AnnotationServer
) -> None:
    start(page, server, 5)
    draw(page, 0)
    kept = save(page, server, 5)
    page.goto(f"{page.url.split('#')[0]}#image/5")
    page.reload()
    shown(page, 5)
    draw(page, 1)
    column, row = inside(truth(server, 5)[0])
    press_pixel_with_points(page, column, row)
    page.keyboard.press("1")
    expect(page.locator("[data-part=whole]")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("d")
    page.wait_for_timeout(300)  # the browser writes it
    page.reload()
    shown(page, 5)
    expect(page.locator("#notice")).to_have_text("Your draft of this image is restored.")
    expect(page.locator("#complete")).to_be_checked()
    expect(page.locator("[data-part=whole]")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")

    # Another image: the reply to its answer is lost, and a merge comes before it is sent again.
    other = page.context.new_page()
    # From the beginning: a request that comes at once after may pass by it.
    other.route("**/submissions/*", lambda route: (route.fetch(), route.abort()))
    start(other, server, 6)
    own = other.locator("#found li").count()
    draw(other, 0)
    other.keyboard.press("s")
    expect(other.locator("#problem")).to_contain_text(GONE)
    assert merge_submissions(location_of(server.dataset)).listed.images >= 2
    other.unroute("**/submissions/*")
    expect(other.locator("#notice")).to_contain_text("Your masks are already there")
    expect(other.locator("#made-box")).to_be_hidden()
    expect(other.locator("#found li")).to_have_count(own + 1)
    other.close()

    page.reload()
    shown(page, 5)
    expect(page.locator("#notice")).to_contain_text("The masks that still fit are here")
    expect(page.locator("#made li")).to_have_count(1)
    expect(page.locator("#complete")).to_be_checked()
    answer = save(page, server, 5)
    assert [mask.counts == kept.masks[0].counts for mask in answer.masks] == [False]
    assert answer.masks[0].seconds > 0
    assert answer.seconds >= answer.masks[0].seconds
    assert (answer.complete, answer.deleted, answer.replaced) == (True, (), ())


def press_pixel_with_points(page: "Page", column: int, row: int) -> None:
    page.keyboard.press("c")
    press_pixel(page, column, row)
    answered(page)


def test_two_windows_of_one_annotator_know_of_each_other(page: "Page", server: AnnotationServer) -> None:
    start(page, server, 7)
    draw(page, 0)
    second = other_window(page, 7)
    expect(second.locator("#notice")).to_have_text("Your draft of this image is restored.")
    expect(page.locator("#shared")).to_be_hidden()
    draw(page, 1)
    page.wait_for_timeout(300)  # the browser writes it
    page.close()
    expect(second.locator("#shared")).to_be_hidden()
    expect(second.locator("#made li")).to_have_count(2)  # the draft of the first window
    mine = save(second, server, 7)
    assert min(mask.seconds for mask in mine.masks) > 0

    # Saved again in another browser of hers, and a draft here: the times of what was saved stay.
    second.goto(f"{second.url.split('#')[0]}#image/7")
    shown(second, 7)
    draw(second, 2)
    elsewhere = second.context.browser.new_context()  # type: ignore[union-attr]
    there = elsewhere.new_page()
    start(there, server, 7)
    there.keyboard.press("v")
    there.locator("#made li button").first.click()
    there.keyboard.press("Delete")
    saved = save(there, server, 7)
    elsewhere.close()
    second.reload()
    shown(second, 7)
    expect(second.locator("#notice")).to_contain_text("This image was saved elsewhere after your draft.")
    expect(second.locator("#made li")).to_have_count(1)
    again = save(second, server, 7)
    assert [mask.seconds for mask in again.masks] == [mask.seconds for mask in saved.masks]
    assert again.seconds >= saved.seconds


def test_a_browser_that_is_another_persons_now_saves_nothing_in_her_name(
    page: "Page", server: AnnotationServer
) -> None:
    start(page, server, 4)
    draw(page, 0)
    page.locator("#to-progress").click()
    page.locator("#address-name").fill("cy")
    page.get_by_role("button", name="Create address").click()
    expect(page.locator("#address")).to_have_value(re.compile(r"^http://127\.0\.0\.1:\d+/"))
    address = page.locator("#address").input_value()
    page.locator("#to-work").click()
    other = page.context.new_page()
    other.goto(address)
    expect(other.locator("#annotator")).to_have_text("cy")
    other.locator("#to-progress").click()
    expect(other.locator("#agreement")).to_be_visible()
    expect(other.locator("#addresses")).to_be_hidden()
    other.close()
    before = answers(server, 4)
    page.keyboard.press("s")
    expect(page.locator("#problem")).to_contain_text("The address of cy was opened in this browser")
    expect(page.locator("#made li")).to_have_count(1)
    assert answers(server, 4) == before


def test_there_is_a_way_on_from_links_and_images_that_do_not_open(page: "Page", server: AnnotationServer) -> None:
    start(page, server, 4)
    page.locator("#skip").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#stage")).to_be_focused()
    assert page.url.endswith("#image/4")

    page.evaluate("location.hash = '#image/3'")  # a refused row
    expect(page.locator("#done-title")).to_have_text("Can't open this image")
    expect(page.locator("#problem")).to_be_visible()
    page.route("**/api/next", lambda route: route.abort())
    page.locator("#look-again").click()
    expect(page.locator("#problem")).to_contain_text(GONE)
    page.unroute("**/api/next")
    expect(page.locator("#picture")).to_be_visible()  # it looks again by itself
    expect(page.locator("#problem")).to_be_hidden()

    name = next(row["image_id"] for row in image_rows(server.dataset) if row["id"] == 7)
    page.keyboard.press("j")
    page.keyboard.type("3")
    page.keyboard.press("Enter")
    expect(page.locator("#go-problem")).to_have_text("this dataset has no image 3")
    page.locator("#go-text").fill(name)
    page.keyboard.press("Enter")
    shown(page, 7)
    expect(page.locator("#go")).to_be_hidden()

    # Brush sizes without brackets, and with them where AltGr writes them.
    radius = page.locator("#radius").inner_text()
    page.keyboard.press("w")
    expect(page.locator("#radius")).not_to_have_text(radius)
    page.keyboard.press("q")
    expect(page.locator("#radius")).to_have_text(radius)


@pytest.mark.parametrize("windows", [2, pytest.param(3, marks=pytest.mark.long)])
def test_of_windows_with_work_on_an_image_none_loses_it(page: "Page", server: AnnotationServer, windows: int) -> None:
    start(page, server, 4)
    there = page.locator("#made li").count()
    draw(page, there)
    second = other_window(page, 4)
    expect(second.locator("#made li")).to_have_count(there + 1)
    draw(second, there + 1)
    draw(page, there + 2, others=there + 1)
    draw(page, there + 3, others=there + 2)

    # Its work is in the second window alone: that asks before it is closed, and has it after another image, too.
    asked: list[str] = []
    second.once("dialog", lambda dialog: (asked.append(dialog.type), dialog.dismiss()))
    second.close(run_before_unload=True)
    until(page, lambda: asked == ["beforeunload"])
    for image in (7, 4):
        second.evaluate(f"location.hash = '#image/{image}'")
        shown(second, image)
    expect(second.locator("#made li")).to_have_count(there + 2)
    page.wait_for_timeout(300)  # the browser writes it
    page.close()
    left = "The other window has left this image. Undo restores its draft."
    expect(second.locator("#notice")).to_have_text(left)
    undo_shows(second, there + 3, there + 2)
    second.wait_for_timeout(300)
    second.reload()
    shown(second, 4)
    undo_shows(second, there + 3, there + 2)

    if windows == 2:
        return

    # The first one leaves the image while the other is at another one.
    third = other_window(second, 4)
    draw(third, there + 1, others=there + 2)
    third.evaluate("location.hash = '#image/7'")
    shown(third, 7)
    draw(second, there + 4, others=there + 2)
    draw(second, there, others=there + 3)
    second.evaluate("location.hash = '#image/5'")
    shown(second, 5)
    third.evaluate("location.hash = '#image/4'")
    shown(third, 4)
    expect(third.locator("#notice")).to_have_text(left)
    undo_shows(third, there + 4, there + 3)
    third.wait_for_timeout(300)
    third.close()
    second.evaluate("location.hash = '#image/4'")
    shown(second, 4)
    undo_shows(second, there + 4, there + 3)

    # One saves while the other has work: it sees that, and has its own by undo.
    third = other_window(second, 4)
    draw(third, there + 4, others=there + 3)
    saved = save(second, server, 4)
    assert len(saved.masks) == there + 3
    expect(third.locator("#shared")).to_be_hidden()
    third.keyboard.press("s")
    expect(third.locator("#lost-text")).to_contain_text("You saved this image in another window")
    expect(third.locator("#made li")).to_have_count(there + 3)
    assert len(answers(server, 4)) == saved.n
    third.keyboard.press("Control+z")
    expect(third.locator("#made li")).to_have_count(there + 4)
    again = save(third, server, 4)
    assert (again.n, len(again.masks)) == (saved.n + 1, there + 4)


def other_window(page: "Page", image: int) -> "Page":
    """Open the image that a window has open in another one of the same person."""
    other = page.context.new_page()
    other.goto(page.url)
    shown(other, image)
    expect(other.locator("#shared")).to_be_visible()
    return other


def undo_shows(page: "Page", before: int, now: int) -> None:
    """Undo shows so many masks, and redo those of now."""
    for key, number in (("z", before), ("y", now)):
        page.keyboard.press(f"Control+{key}")
        expect(page.locator("#made li")).to_have_count(number)


def test_the_owner_returns_an_image_that_a_comment_is_on(page: "Page", server: AnnotationServer) -> None:
    start(page, server, 6)
    page.locator("#note-box summary").click()
    expect(page.locator("#save")).to_have_text("Unchanged, next")
    page.locator("#comment").fill("The hand\nis cut off.")
    expect(page.locator("#save")).to_have_text("Save and next")
    page.locator("#flag").check()
    assert serious_violations(page) == []
    page.wait_for_timeout(300)  # the browser writes it
    page.reload()
    shown(page, 6)
    expect(page.locator("#comment")).to_have_value("The hand\nis cut off.")
    answer = save(page, server, 6)
    assert (answer.comment, answer.flag) == ("The hand\nis cut off.", True)
    page.locator("#to-progress").click()
    page.locator("#images-show").select_option("flagged")
    row = page.locator("#images-rows tr")
    expect(row).to_have_count(1)
    name = next(row["image_id"] for row in image_rows(server.dataset) if row["id"] == 6)
    expect(row).to_contain_text(re.compile(rf"^{re.escape(name)}submittedann.*Needs a look.*The hand", re.DOTALL))
    expect(page.locator("#time-left")).to_contain_text("Too few images were timed")
    page.set_viewport_size({"width": 390, "height": 844})
    schemes: tuple[Any, ...] = ("light", "dark")
    for scheme in schemes:
        page.emulate_media(color_scheme=scheme)
        assert serious_violations(page) == []
        row.locator("button").click()
        expect(page.locator("#sent[open] #sent-about")).to_contain_text("ann: The hand")
        expect(page.locator("#sent-title")).to_have_text(f"{name} by ann")
        assert serious_violations(page) == []
        assert sideways_scroll(page) == 0
        page.keyboard.press("Escape")
    row.locator("button").click()
    expect(page.locator("#sent[open]")).to_be_visible()
    drawn = "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(Boolean)"
    assert page.locator("#sent-masks").evaluate(drawn)
    page.set_viewport_size({"width": 1440, "height": 400})  # the whole picture is in the window, below its masks
    picture = page.locator("#sent-picture").bounding_box()
    assert picture
    assert picture["height"] < 300
    assert page.locator("#sent-masks").bounding_box() == picture
    page.locator("#return-comment").fill("Add the hand.")
    page.get_by_role("button", name="Return to the annotator").click()
    expect(page.locator("#return-said")).to_have_text("Returned to ann.")
    expect(page.locator("#return-form")).to_be_hidden()
    page.keyboard.press("Escape")
    expect(row).to_contain_text("Add the hand.")
    page.locator("#to-work").click()
    page.evaluate("location.hash = '#image/6'")
    shown(page, 6)
    expect(page.locator("#returned")).to_have_text("Returned by ann: Add the hand.")
    page.locator("#to-progress").click()
    expect(page.locator("#returned")).to_be_hidden()  # as on the page without an image
    page.locator("#to-work").click()
    expect(page.locator("#returned")).to_be_visible()
    expect(page.locator("#flag")).to_be_checked()
    page.locator("#flag").uncheck()
    again = save(page, server, 6)
    assert (again.n, again.comment, again.flag) == (answer.n + 1, answer.comment, False)
    expect(page.locator("#returned")).to_be_hidden()


def test_time_without_a_gesture_outlives_a_crash(page: "Page", server: AnnotationServer) -> None:
    stop = "addEventListener('pagehide', (event) => event.stopImmediatePropagation(), { capture: true });"
    page.add_init_script(stop + stop.replace("pagehide", "visibilitychange"))  # as in a crash
    page.clock.install()
    start(page, server, 4)
    page.mouse.move(500, 400)
    before = seconds(page)
    page.clock.fast_forward(20_000)
    page.wait_for_timeout(300)
    page.reload()
    shown(page, 4)
    assert before + 20 <= seconds(page) < before + 40  # once
    expect(page.locator("#notice")).to_have_text("")
    expect(page.locator("#undo")).to_be_disabled()


def seconds(page: "Page") -> int:
    """The clock of the image."""
    found = re.search(r"Image (\d+):(\d+)", page.locator("#clock").inner_text())
    assert found is not None
    return 60 * int(found[1]) + int(found[2])
