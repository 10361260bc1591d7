"""A detector that `segmint train` makes of a dataset prefills the images of another in `segmint annotate`."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco

from segmint.catalogs.dataset.submissions import read_submissions
from tests.support.annotating import annotate_process
from tests.support.browser import watch
from tests.support.builds import ROOT
from tests.support.committed import mask_row, row_of, write_dataset
from tests.support.locations import location_of
from tests.support.photographs import photograph

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SIDE = 128
NAMES = ("coffee", "rocket", "chelsea", "astronaut")
UNSEEN = 1000
"""The first scene of the dataset that is annotated; those that are trained on are before it."""

IMAGES = range(1, 7)


def scene(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A window of a photograph with a pink rectangle, (128, 128, 3) uint8 RGB, and the rectangle's mask."""
    random = np.random.default_rng(number)
    photo = photograph(NAMES[number % len(NAMES)])
    y, x = (int(random.integers(0, side - SIDE)) for side in photo.shape[:2])
    image, mask = photo[y : y + SIDE, x : x + SIDE].copy(), np.zeros((SIDE, SIDE), np.uint8)
    width, height = (int(side) for side in random.integers(40, 70, 2))
    x, y = int(random.integers(0, SIDE - width)), int(random.integers(0, SIDE - height))
    cv2.rectangle(mask, (x, y), (x + width - 1, y + height - 1), 1, -1)
    image[mask > 0] = (220, 40, 200)
    return image, mask > 0


def scene_row(ordinal: int, number: int, masks: list[dict[str, Any]]) -> dict[str, Any]:
    """A row of a scene, as it reaches a shard's writer."""
    encoded = io.BytesIO()
    Image.fromarray(scene(number)[0]).save(encoded, "JPEG", quality=92)
    changed = {"width": SIDE, "height": SIDE, "release": encoded.getvalue(), "masks": masks}
    return {**row_of(ordinal, refused=False), **changed}


def trained_on(ordinal: int, _: bool) -> dict[str, Any]:
    """A row whose mask a person drew."""
    return scene_row(ordinal, ordinal, [{**mask_row(scene(ordinal)[1]), "source": "manual"}])


def annotated(ordinal: int, _: bool) -> dict[str, Any]:
    """A row of a scene that no training saw, without a mask."""
    return scene_row(ordinal, UNSEEN + ordinal, [])


def run_training(folder: Path) -> Path:
    """Train a detector of objects by the command; returns its file."""
    write_dataset(location_of(folder / "people"), 20, make_row=trained_on, refuse=0)
    objects = {"backbone": "mobilenet_v3_large", "short_side": SIDE, "long_side": SIDE, "learning_rate": 5e-4}
    tree = {
        "task": "objects",
        "datasets": [{"uri": str(folder / "people")}],
        "output": str(folder / "run"),
        "objects": {**objects, "images": 2, "steps": 300, "warmup": 20, "decay_steps": [240]},
        "resources": {"device": "cpu", "threads": 1},
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "segmint", "train", str(folder / "train.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "run" / json.loads((folder / "run" / "objects.json").read_bytes())["file"]


def opened(page: "Page", image: int) -> dict[str, Any]:
    """What the server tells a page that opens an image; it is asked again while the model looks at the image."""
    script = "async image => { const r = await fetch(`/api/images/${image}`); return [r.status, await r.text()]; }"
    until = time.monotonic() + 120
    while True:
        status, text = page.evaluate(script, image)
        if status == 200:
            return dict(json.loads(text))
        assert time.monotonic() < until, text
        time.sleep(0.2)


def best_iou(counts: list[str], truth: np.ndarray) -> float:
    """The largest IoU of compressed run lengths with a mask; 0 if there are none."""
    known = coco.encode(np.asfortranarray(truth.astype(np.uint8)))
    codes = [{"size": [SIDE, SIDE], "counts": each.encode()} for each in counts]
    return float(np.max(coco.iou(codes, [known], [0]), initial=0.0))


@pytest.mark.long
def test_a_trained_detector_prefills_what_people_go_on_with(tmp_path: Path, chromium: "Browser") -> None:
    from playwright.sync_api import expect

    detector = run_training(tmp_path)
    dataset = tmp_path / "new"
    write_dataset(location_of(dataset), len(IMAGES) // 3, make_row=annotated, refuse=0)
    expect.set_options(timeout=60_000)
    with annotate_process(dataset, "--stage", "semi", "--prefill", f"detector:{detector}") as (_, address):
        page = chromium.new_page(viewport={"width": 1100, "height": 800})
        seen = watch(page)
        page.goto(f"{address}#image/1")
        expect(page.locator("#clock")).to_be_visible(timeout=120_000)
        found = {image: [mask["counts"] for mask in opened(page, image)["prefill"]] for image in IMAGES}
        filled = [image for image in IMAGES if found[image]]
        assert len(filled) >= 2, "the model is sure of the boxes' masks in too few images"
        for image in filled:
            assert best_iou(found[image], scene(UNSEEN + image - 1)[1]) > 0.9
            assert best_iou(found[image], scene(UNSEEN + image % len(IMAGES))[1]) < 0.5, "another image's"

        image = filled[0]
        page.goto(f"{page.url.split('#')[0]}#image/{image}")
        number = len(found[image])
        expect(page.locator("#filled-title")).to_have_text(f"Prefilled: {number}, locked: {number}")
        page.locator("#filled li button").first.click()
        expect(page.locator("#mask-title")).to_have_text("Locked mask")
        page.keyboard.press("Delete")
        expect(page.locator("#notice")).to_contain_text("This mask is locked")
        page.keyboard.press("s")
        expect(page.locator("#notice")).to_have_text("Saved.")
        assert opened(page, image)["prefill"] == []
        page.close()
    assert seen.errors == []
    (answer,) = read_submissions(location_of(dataset), image - 1)
    assert (answer.stage, [mask.counts for mask in answer.masks]) == ("semi", found[image])
