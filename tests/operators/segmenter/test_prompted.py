"""`PromptedMasks`: one mask for each prompt, equal to those of the segment_anything package."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from segment_anything import SamPredictor

import segmint
from benchmarks.masks.reference import reference_sam
from segmint.catalogs.findings import Reason, RejectedError
from segmint.infra.assets import sha256_of
from segmint.infra.errors import UsageError
from segmint.operators.custom.contract import stated_terms
from segmint.operators.images import released_prompts
from segmint.operators.segmenter.found_masks import MaskFilters, found_columns
from segmint.operators.segmenter.prompted import PromptedMasks
from tests.support.embedded_once import encoding_once

LABELER = "ab" * 32


def prompt(**changes: Any) -> dict[str, Any]:
    return {"box": None, "points": None, "point_labels": None, "label": None, "score": None, **changes}


def boxes_in(image: np.ndarray, count: int, seed: int) -> list[dict[str, Any]]:
    """Boxes of many sizes, each with a label and a score."""
    generator = np.random.default_rng(seed)
    height, width = image.shape[:2]
    found = []
    for number in range(count):
        x, y = generator.uniform(0, 0.8, 2) * (width, height)
        sides = generator.uniform(0.1, 1, 2) * (width - x, height - y)
        found.append(prompt(box=[x, y, *sides], label=f"thing {number}", score=number / 100))
    return found


def points_in(image: np.ndarray, count: int, seed: int) -> list[dict[str, Any]]:
    """Prompts with 1 to 3 points, of which the last may be outside the mask, and sometimes a box around them."""
    generator = np.random.default_rng(seed)
    height, width = image.shape[:2]
    found = []
    for number in range(count):
        points = (generator.uniform(0.1, 0.9, (1 + number % 3, 2)) * (width, height)).tolist()
        labels = [1, 1, 0][: len(points)]
        box = [0.0, 0.0, width / 1.1, height / 1.1] if number % 4 == 3 else None
        found.append(prompt(points=points, point_labels=labels, box=box))
    return found


@pytest.fixture(scope="module")
def segmenter(mobile_sam_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PromptedMasks]:
    with encoding_once(tmp_path_factory):
        yield PromptedMasks(str(mobile_sam_path), device="cpu")


@pytest.fixture(scope="module")
def reference(segmenter: PromptedMasks) -> SamPredictor:
    return SamPredictor(reference_sam(segmenter.predictor.sam))


def row(image: np.ndarray, prompts: Any) -> segmint.StageRow:
    """A row of a build with this image."""

    class Row(segmint.StageRow):
        @property
        def image(self) -> np.ndarray:
            return image

    return Row({"ordinal": 0, "id": 1, "prompts": prompts})


def compare(reference: SamPredictor, prompt: dict[str, Any], mask: segmint.Mask) -> None:
    """Compare a mask with that of the package, for the image that is set there.

    The last bits of logits depend on the order of sums, so a pixel whose logit is nearly 0 could be on either side.
    """
    box, points, labels = prompt["box"], prompt["points"], prompt["point_labels"]
    if box is not None:
        box = np.array([*box[:2], box[0] + box[2], box[1] + box[3]])
    if points is not None:
        points, labels = np.array(points), np.array(labels)
    logits, scores, _ = reference.predict(points, labels, box, multimask_output=points is not None, return_logits=True)
    best = logits[scores.argmax()]
    assert mask.pixels.dtype == bool
    assert mask.pixels.shape == best.shape
    different = mask.pixels != (best > 0)
    assert np.abs(best[different]).max(initial=0) < 1e-4
    assert different.sum() <= 2
    assert mask.score == pytest.approx(scores.max(), abs=1e-5)


def test_each_mask_is_that_of_the_reference(
    segmenter: PromptedMasks, reference: SamPredictor, coffee: np.ndarray, astronaut: np.ndarray
) -> None:
    shares = []
    for seed, image in enumerate((coffee, astronaut)):
        prompts = [*boxes_in(image, 6, seed), *points_in(image, 6, seed), *boxes_in(image, 6, seed + 10)]
        (found,) = segmenter([row(image, prompts)])
        reference.set_image(image)
        for asked, mask in zip(prompts, found.masks_found, strict=True):
            compare(reference, asked, mask)
            shares.append(mask.pixels.mean())
    assert len(shares) == 36
    assert 0.001 < np.median(shares) < 0.5


def test_more_prompts_than_a_batch_give_what_each_gives_alone(
    segmenter: PromptedMasks, reference: SamPredictor, astronaut: np.ndarray
) -> None:
    (embedding,) = segmenter.predictor.embed_many([astronaut])
    prompts = [*boxes_in(astronaut, 1, 5), *points_in(astronaut, 1, 5), *boxes_in(astronaut, 64, 6)]
    found = segmenter.find(embedding, prompts)
    assert [mask.label for mask in found] == [prompt["label"] for prompt in prompts]
    reference.set_image(astronaut)
    for place in (0, 1, 64, 65):  # the last box is alone in its batch
        (alone,) = segmenter.find(embedding, prompts[place : place + 1])
        np.testing.assert_array_equal(found[place].pixels, alone.pixels)
        assert (found[place].score, found[place].box) == (alone.score, alone.box)
        compare(reference, prompts[place], found[place])
    assert segmenter.find(embedding, []) == []


def test_prompts_at_the_border_tiny_ones_and_repeated_ones(
    segmenter: PromptedMasks, reference: SamPredictor, coffee: np.ndarray
) -> None:
    height, width = coffee.shape[:2]
    entry = [
        prompt(box=[-5.0, 50.0, 300.0, 300.0]),  # cut at the border
        prompt(box=[200.0, 100.0, 0.5, 0.25]),
        prompt(box=[0.0, 0.0, 600.0, 400.0]),
        prompt(points=[[600.0, 404.0]], point_labels=[1]),
        prompt(points=[[300.0, 200.0], [300.0, 200.0]], point_labels=[1, 0]),
        prompt(box=[-5.0, 50.0, 300.0, 300.0]),
    ]
    frame = {"width": 600.0, "height": 400.0, "prompts": entry}
    prompts = released_prompts(frame, (width, height), (width, height))
    assert [prompts[0]["box"], prompts[3]["points"]] == [[0, 50, 295, 300], [[600, 400]]]
    ((*found, last),) = (each.masks_found for each in segmenter([row(coffee, prompts)]))
    reference.set_image(coffee)
    for asked, mask in zip(prompts, found, strict=False):
        compare(reference, asked, mask)
    np.testing.assert_array_equal(found[0].pixels, last.pixels)
    assert (found[0].box, found[0].score) == (last.box, last.score)


def test_the_masks_of_thousands_of_prompts_are_run_lengths(
    segmenter: PromptedMasks, coffee: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [*boxes_in(coffee, 2, 3), *points_in(coffee, 1, 3)]
    (embedding,) = segmenter.predictor.embed_many([coffee])
    arrays = segmenter.find(embedding, prompts)
    limit = "segmint.operators.segmenter.prompted.PIXELS_AT_ONCE"
    monkeypatch.setattr(limit, 3 * 400 * 600)
    assert [mask.pixels.dtype for mask in segmenter.find(embedding, prompts)] == [bool] * 3
    monkeypatch.setattr(limit, 3 * 400 * 600 - 1)
    encoded = segmenter.find(embedding, prompts)
    sizes = {"height": 400, "width": 600, "source_height": 400, "source_width": 600, "regions": []}
    stored = [found_columns(sizes, masks, MaskFilters(), "") for masks in (arrays, encoded)]
    assert stored[0] == stored[1]
    assert all(isinstance(mask.pixels, dict) for mask in encoded)

    too_many = segmint.StageRow({"ordinal": 0, "id": 1, "prompts": boxes_in(coffee, 1, 3) * 10_001})
    with pytest.raises(RejectedError, match="10,001 prompts; there are ids for 10,000 masks") as caught:
        segmenter([too_many])
    assert caught.value.reason == Reason.TOO_MANY_MASKS


def test_prompts_with_many_points_are_decoded_in_smaller_batches(
    segmenter: PromptedMasks, coffee: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    (embedding,) = segmenter.predictor.embed_many([coffee])
    prompts = [points_in(coffee, 3, seed)[2] for seed in (1, 2)]
    together = segmenter.find(embedding, prompts)
    monkeypatch.setattr("segmint.operators.segmenter.prompted.BATCH_POINTS", 5)
    with mock.patch.object(segmenter.predictor, "predict", side_effect=segmenter.predictor.predict) as predict:
        alone = segmenter.find(embedding, prompts)
    assert [call.kwargs["points"].shape for call in predict.call_args_list] == [(1, 3, 2)] * 2
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)


def test_a_mask_names_its_prompt_and_its_label(
    segmenter: PromptedMasks, mobile_sam_path: Path, coffee: np.ndarray
) -> None:
    box = prompt(box=[100.0, 50.0, 200.0, 220.0], label="cup", score=0.75)
    points = prompt(points=[[300.0, 200.0], [9.0, 9.0]], point_labels=[1, 0])
    prompted, bare, empty = segmenter([row(coffee, [points, box]), row(coffee, None), row(coffee, [])])
    first, second = prompted.masks_found
    assert (first.points, first.box) == ([(300.0, 200.0, 1), (9.0, 9.0, 0)], None)
    assert (first.label, first.label_source) == (None, None)
    assert (second.points, second.box) == ([], (100.0, 50.0, 200.0, 220.0))
    assert (second.label, second.label_score, second.label_source) == ("cup", None, "import")
    assert list(bare.masks_found) == list(empty.masks_found) == []

    by_model = PromptedMasks(str(mobile_sam_path), labeler=LABELER, device="cpu")
    ((first, second),) = (each.masks_found for each in by_model([row(coffee, [points, box])]))
    assert (first.label, first.label_score, first.label_source) == (None, None, None)
    assert (second.label, second.label_score, second.label_source) == ("cup", 0.75, f"model:{LABELER}")


def test_a_phrase_alone_is_a_verdict(segmenter: PromptedMasks) -> None:
    image = np.zeros((30, 40, 3), np.uint8)
    prompts = [prompt(box=[1.0, 1.0, 9.0, 9.0]), prompt(label="red car")]
    with pytest.raises(RejectedError, match=r"prompts\.1 has only a label; expected a box or points") as caught:
        segmenter([row(image, prompts)])
    assert caught.value.reason == Reason.PROMPTS_MISFIT


def test_known_weights_have_a_license_and_others_none(mobile_sam_path: Path, tmp_path: Path) -> None:
    stated = stated_terms("segmint.PromptedMasks", {"weights": str(mobile_sam_path), "device": "cpu"})
    assert (stated.license, stated.terms) == ("Apache-2.0", None)
    assert stated.weights_sha256 == sha256_of(mobile_sam_path)
    (tmp_path / "other.pth").write_bytes(b"x")
    assert stated_terms("segmint.PromptedMasks", {"weights": str(tmp_path / "other.pth")}).license is None


def test_the_version_names_the_weights_and_the_labeler(mobile_sam_path: Path, tmp_path: Path) -> None:
    version = PromptedMasks.version(str(mobile_sam_path))
    copy = tmp_path / "copy.pt"
    copy.write_bytes(mobile_sam_path.read_bytes())
    assert sha256_of(copy) not in version
    assert PromptedMasks.version(str(copy), device="cpu", threads=3) == version
    assert PromptedMasks.version(str(copy), labeler=LABELER) != version
    assert PromptedMasks.version(str(copy), precision="bf16") != version
    copy.write_bytes(b"other")
    assert PromptedMasks.version(str(copy)) != version
    with pytest.raises(UsageError, match="labeler is 'yolo': expected the SHA-256"):
        PromptedMasks.version(str(copy), labeler="yolo")
    assert segmint.PromptedMasks is PromptedMasks
