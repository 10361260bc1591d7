"""From the viewer of a folder to its annotator in a real browser, and back into the photograph's JSON file."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests.support.annotated_pages import answered, expect, press_pixel, shown
from tests.support.browser import serious_violations, sideways_scroll, watch
from tests.support.described_rows import rectangle_mask
from tests.support.photographs import photograph
from tests.support.viewed import running_viewer

if TYPE_CHECKING:
    from playwright.sync_api import Browser

WIDTH, HEIGHT = 300, 200


@pytest.mark.long
@pytest.mark.usefixtures("mobile_sam_path")
def test_a_mask_is_added_through_the_viewers_button(chromium: "Browser", tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("coffee", "rocket"):
        Image.fromarray(photograph(name, (WIDTH, HEIGHT))).save(folder / f"{name}.jpg")
    mask = rectangle_mask(HEIGHT, WIDTH, 5, 5, 60, 80)
    keys = ("segmentation", "bbox", "area", "predicted_iou", "stability_score", "crop_box", "point_coords")
    image = {"image_id": 5, "width": WIDTH, "height": HEIGHT, "file_name": "coffee.jpg"}
    before: dict[str, Any] = {"image": image, "annotations": [{"id": 50_000, **{key: mask[key] for key in keys}}]}
    (folder / "coffee.masks.json").write_text(json.dumps(before))

    with running_viewer(folder) as address:
        context = chromium.new_context(viewport={"width": 1440, "height": 900})
        page = context.new_page()
        seen = watch(page)
        page.goto(address)
        expect(page.locator("#totals")).to_have_text("2 images, 1 mask")
        page.locator("#results .tile").first.click()
        button = page.get_by_role("button", name="Correct masks")
        expect(button).to_be_visible()
        for width in (390, 900, 1440):
            page.set_viewport_size({"width": width, "height": 900})
            assert sideways_scroll(page) == 0
        assert serious_violations(page) == []
        button.click()
        page.wait_for_url(lambda url: not url.startswith(address.partition("?")[0]), timeout=300_000)
        shown(page, 1)
        assert page.url.endswith("#image/1")
        press_pixel(page, 150, 100)
        answered(page)
        page.keyboard.press("Enter")
        expect(page.locator("#made li")).to_have_count(1)
        page.locator("#save").click()
        expect(page.locator("#notice")).to_have_text("Saved.")
        saved = json.loads((folder / "coffee.masks.json").read_text())
        assert saved["annotations"][0] == before["annotations"][0]
        assert len(saved["annotations"]) == 2
        shown(page, 2)
        press_pixel(page, 150, 100)  # whose answer ends all requests, so that the server can end at once
        answered(page)
        context.close()
        assert [error for error in seen.errors if " 503 " not in error] == []
