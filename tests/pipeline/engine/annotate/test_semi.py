"""The semi-automatic stage: what a detector's boxes prefill is there when an image is opened, until it is answered."""

import shutil
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from torch import Tensor, nn

from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.dataset.submissions import read_submissions
from segmint.operators.images import decode_jpeg
from segmint.pipeline.engine.annotate.app import ServedView, open_view
from segmint.pipeline.engine.annotate.prefill import SAME_IOU, mask_settings, prefill
from tests.support.annotated_pages import serving
from tests.support.annotating import Annotators, draft, options
from tests.support.browser import serious_violations, watch
from tests.support.locations import location_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


class NinthsDetector(nn.Module):
    """Finds the nine parts of an image as objects; fails on an image whose first pixel is `first` (blue)."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if int(image[0, 0, 0]) == self.first:
            raise RuntimeError("not this one")
        high, wide = image.shape[1] / 3, image.shape[2] / 3
        corners = [[n // 3 * wide, n % 3 * high] for n in range(9)]
        boxes = torch.tensor([[x, y, x + wide, y + high] for x, y in corners])
        return boxes, torch.ones(9, dtype=torch.int64), torch.full((9,), 0.9), torch.zeros(2)


def ninths(size: tuple[int, int]) -> list[tuple[float, float, float, float]]:
    high, wide = size[0] / 3, size[1] / 3
    corners = [(n // 3 * wide, n % 3 * high) for n in range(9)]
    boxes = np.array([[x, y, x + wide, y + high] for x, y in corners])
    return [tuple(box) for box in boxes.astype(np.float32).astype(float).tolist()]


def first_blue(dataset: Path, image: int) -> int:
    """The blue of the first pixel of a released image."""
    for tar in (dataset / "shards").glob("*.tar"):
        with tarfile.open(tar) as archive:
            if f"sa_{image}.jpg" in archive.getnames():
                file = archive.extractfile(f"sa_{image}.jpg")
                assert file is not None
                return int(decode_jpeg(file.read())[0, 0, 2])
    raise AssertionError(f"no image {image}")


@pytest.fixture(scope="module")
def dataset(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the small real dataset, for all tests: one answers image 1, the other image 2."""
    return Path(shutil.copytree(small_dataset, tmp_path_factory.mktemp("semi") / "dataset"))


@pytest.fixture(scope="module")
def semi(dataset: Path, embedded_once: None) -> Iterator[ServedView]:
    """An annotator view whose images are prefilled by a real TorchScript file, which fails on image 4."""
    path = dataset.parent / "objects.pt"
    torch.jit.script(NinthsDetector(first_blue(dataset, 4))).save(path)
    assert first_blue(dataset, 4) not in (first_blue(dataset, 1), first_blue(dataset, 2))
    with open_view(location_of(dataset), replace(options(), stage="semi", detector=str(path))) as annotator_view:
        yield annotator_view


def strength(page: "Page") -> int:
    """The sum of the opacities of all masks as they are drawn."""
    page.wait_for_timeout(200)  # they are drawn at the next frame
    script = """canvas => {
        const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
        copy.drawImage(canvas, 0, 0);
        const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
        return data.reduce((sum, value, place) => sum + (place % 4 === 3 ? value : 0), 0);
    }"""
    return int(page.locator("#all-masks").evaluate(script))


def test_confident_masks_of_a_detectors_boxes_are_there_until_the_image_is_answered(
    semi: ServedView, dataset: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    annotator_view, prefills = semi.annotator_view, semi.annotator_view.prefills
    assert prefills is not None
    settings = mask_settings(load_manifest(location_of(dataset)))
    assert (settings.pred_iou_thresh, settings.stability_score_thresh) == (0.7, 0.8), "the dataset's own"
    ann = Annotators(semi).who("ann")
    assert ann.get("/api/session").json()["stage"] == "semi"
    assert ann.post("/api/next", json={}).json()["image"] == 1
    until = time.monotonic() + 120
    while not {1, 2, 4} <= set(prefills.recent.images()) and time.monotonic() < until:  # ahead, nobody has opened them
        time.sleep(0.05)
    ahead = {image: prefills.recent.get(image).masks for image in (1, 2, 4)}
    found = 0
    for image in (1, 2):
        opened = ann.get(f"/api/images/{image}").json()
        there = annotator_view.source.read(image)
        own = list(there.counts.values())
        expected = prefill(
            annotator_view.embeddings.predictor,
            annotator_view.embeddings.get(there).embedding,
            ninths(there.size),
            own,
            settings,
        )
        assert tuple(expected) == ahead[image]
        assert opened["prefill"] == [mask.to_dict() for mask in expected]
        codes, others = (
            [{"size": list(there.size), "counts": each.encode()} for each in counts]
            for counts in ([mask.counts for mask in expected], own)
        )
        if codes and others:
            assert np.asarray(coco.iou(codes, others, [0] * len(others))).max() <= SAME_IOU
        found += len(expected)
    assert found > 1

    opened = ann.get("/api/images/1").json()
    kept = [mask["counts"] for mask in opened["prefill"]]
    assert ann.put("/api/images/1/submissions/1", json=draft(opened, kept)).status_code == 201
    (answer,) = read_submissions(location_of(dataset), 0)
    assert (answer.stage, [mask.counts for mask in answer.masks]) == ("semi", kept)
    assert ann.get("/api/images/1").json()["prefill"] == []

    opened = ann.get("/api/images/4").json()
    assert (opened["state"], opened["prefill"]) == ("open", [])
    assert "detector_failed" in "".join(capfd.readouterr())


def test_prefilled_masks_are_faint_and_locked_until_they_are_unlocked(
    semi: ServedView, dataset: Path, chromium: "Browser"
) -> None:
    from playwright.sync_api import expect

    expect.set_options(timeout=30_000)
    with serving(semi, dataset) as server:
        page = chromium.new_page(viewport={"width": 1100, "height": 800})
        seen = watch(page)
        page.goto(f"{server.address()}#image/2")
        expect(page.locator("#clock")).to_be_visible(timeout=120_000)
        prefilled = [mask.counts for mask in semi.annotator_view.prefills.recent.get(2).masks]  # type: ignore[union-attr]
        own = list(semi.annotator_view.source.read(2).counts.values())
        assert prefilled
        expect(page.locator("#filled-title")).to_have_text(f"Prefilled: {len(prefilled)}, locked: {len(prefilled)}")
        expect(page.locator("#made-box")).to_be_hidden()
        expect(page.locator("#found-title")).to_have_text(f"In the dataset: {len(own)}, locked: {len(own)}")
        assert serious_violations(page) == []

        page.locator("#filled li button").first.click()
        expect(page.locator("#mask-title")).to_have_text("Locked mask")
        expect(page.locator("#remove")).to_be_disabled()
        assert page.locator("#mask-box").evaluate("box => box.scrollWidth <= box.clientWidth")
        page.keyboard.press("Escape")
        faint = strength(page)
        page.locator("#filled li button").first.click()
        page.keyboard.press("Delete")
        expect(page.locator("#notice")).to_contain_text("This mask is locked")
        expect(page.locator("#filled li")).to_have_count(len(prefilled))
        page.keyboard.press("l")
        expect(page.locator("#mask-title")).to_contain_text("Mask selected")
        page.keyboard.press("Escape")
        assert strength(page) > faint, "what is unlocked is drawn like any mask"
        page.keyboard.press("Control+z")
        page.locator("#filled li button").first.click()
        expect(page.locator("#mask-title")).to_have_text("Locked mask")
        page.locator("#unlock").click()
        page.keyboard.press("Delete")
        expected = len(prefilled) - 1
        expect(page.locator("#filled li")).to_have_count(expected)
        page.keyboard.press("s")
        expect(page.locator("#notice")).to_have_text("Saved.")
        page.goto(f"{page.url.split('#')[0]}#image/2")  # what nobody touched is no work of a person, here neither
        expect(page.locator("#filled-title")).to_have_text(f"Prefilled: {expected}, locked: {expected}")
        page.close()
    assert seen.errors == []
    (answer,) = read_submissions(location_of(dataset), 1)
    assert (answer.stage, answer.replaced, answer.deleted) == ("semi", (), ())
    assert [mask.counts for mask in answer.masks] == prefilled[1:]
    assert {(mask.source, mask.seconds) for mask in answer.masks} <= {("assisted", 0.0)}
    boxes = [[prompt.kind for prompt in mask.prompts] for mask in answer.masks]
    assert boxes == [["box"]] * len(answer.masks)
