"""The report in a real browser: nothing fails, nothing is fetched, and it is accessible."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from tests.support.browser import WatchedPage, serious_violations, sideways_scroll, watch

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture
def pages(built_report: Path, report_folder: Path) -> dict[str, str]:
    """URLs of two reports: of a real dataset without findings, and of one with findings and hostile names."""
    return {
        name: (path / "index.html").as_uri() for name, path in (("built", built_report), ("reported", report_folder))
    }


@pytest.fixture
def page(chromium: "Browser") -> "Iterator[Page]":
    with chromium.new_context() as context:
        yield context.new_page()


def opened(page: "Page", url: str) -> WatchedPage:
    watched = watch(page)
    page.goto(url)
    return watched


@pytest.mark.parametrize("name", ["built", "reported"])
def test_nothing_fails_and_nothing_is_fetched(page: "Page", pages: dict[str, str], name: str) -> None:
    watched = opened(page, pages[name])
    assert watched.errors == []
    assert [url for url in watched.requests if not url.startswith("data:")] == [pages[name]]
    assert page.locator("img").count() > 0
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0 && image.alt)")


@pytest.mark.parametrize("name", ["built", "reported"])
def test_it_fits_every_screen(page: "Page", pages: dict[str, str], name: str) -> None:
    for width in (320, 768, 1920):
        page.set_viewport_size({"width": width, "height": 800})
        opened(page, pages[name])
        assert sideways_scroll(page) == 0, width
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert sideways_scroll(page) == 0, width


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("reported", "dark"),
        pytest.param("built", "light", marks=pytest.mark.long),
        pytest.param("built", "dark", marks=pytest.mark.long),
        pytest.param("reported", "light", marks=pytest.mark.long),
    ],
)
def test_the_report_is_accessible(
    page: "Page", pages: dict[str, str], name: str, scheme: Literal["light", "dark"]
) -> None:
    page.emulate_media(color_scheme=scheme)
    opened(page, pages[name])
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert serious_violations(page) == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background.removeprefix("rgb(").rstrip(")").split(","))) < 384) == (scheme == "dark")


def test_it_works_by_keyboard(page: "Page", pages: dict[str, str]) -> None:
    opened(page, pages["reported"])
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the findings"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#integrity"
    summary = page.locator("#masks summary").first
    summary.focus()
    page.keyboard.press("Enter")
    assert page.locator("#masks details[open]").count() == 1


def test_pictures_are_under_the_verdict_and_the_page_is_full(page: "Page", pages: dict[str, str]) -> None:
    page.set_viewport_size({"width": 1440, "height": 900})
    opened(page, pages["built"])
    verdict, *pictures = (each.bounding_box() for each in page.locator(".verdict, .leading img").all())
    assert verdict
    assert len(pictures) == 3
    assert all(box and 0 <= box["y"] - verdict["y"] - verdict["height"] < 40 for box in pictures)
    assert max(box["height"] for box in pictures if box) - min(box["height"] for box in pictures if box) < 1
    right = max(box["x"] + box["width"] for box in pictures if box)
    assert right == pytest.approx(verdict["x"] + verdict["width"], abs=1)
    for section in page.locator("main > section:has(table, figure)").all():
        parts = section.locator("table, figure, .grid > *")
        ends = parts.evaluate_all("all => all.map(one => one.getBoundingClientRect().right)")
        assert max(ends) == pytest.approx(right, abs=1), section.get_attribute("id")


def test_bars_of_regions_are_seen(page: "Page", pages: dict[str, str]) -> None:
    for width in (390, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        opened(page, pages["reported"])
        boxes = [each.bounding_box() for each in page.locator("#geography .bar:not(.none)").all()]
        assert max(box["width"] for box in boxes if box) >= 60, width
        assert all(box and box["height"] >= 12 for box in boxes), width


def test_contents_stay_on_a_phone_and_cover_no_heading(page: "Page", pages: dict[str, str]) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    opened(page, pages["built"])
    contents = page.locator(".contents")
    assert contents.get_attribute("open") is None
    page.evaluate("scrollTo({ top: document.body.scrollHeight / 2, behavior: 'instant' })")
    line = contents.bounding_box()
    assert line
    assert line["y"] == 0
    assert line["height"] < 60
    contents.locator("summary").click()
    page.emulate_media(reduced_motion="reduce")
    contents.get_by_role("link", name="Licenses").click()
    opened_line, heading = contents.bounding_box(), page.locator("#licenses h2").bounding_box()
    assert opened_line
    assert heading
    assert opened_line["height"] > line["height"]
    assert opened_line["y"] == 0
    assert opened_line["y"] + opened_line["height"] <= heading["y"] < 844


def test_every_picture_is_printed(page: "Page", pages: dict[str, str]) -> None:
    opened(page, pages["built"])
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Subtype /Image") >= page.locator("img").count()


def test_these_checks_detect_planted_faults(page: "Page") -> None:
    watched = watch(page)
    page.set_viewport_size({"width": 320, "height": 800})
    page.set_content(
        "<html lang=en><title>t</title><main><h1>t</h1><img src='data:,'><p style='color:#ccc'>faint</p>"
        "<div style='width:500px'>wide</div><script>console.error('told'); missing()</script></main></html>"
    )
    assert {line.split()[0] for line in serious_violations(page)} == {"image-alt", "color-contrast"}
    assert sideways_scroll(page) > 0
    assert [line.split(":")[0] for line in watched.errors] == ["error", "exception"]
