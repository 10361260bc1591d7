"""Masks against redacted regions: compared with pixels, on real photographs and on drawn frames."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from segmint.catalogs.dataset.regions import WantedRegion
from segmint.model.detectors.detection import Detector
from segmint.operators.images import decode_jpeg
from segmint.operators.prepare.deidentify import DeidentifyConfig, build_detectors
from segmint.operators.prepare.deidentify import outline as redacted_outline
from segmint.operators.prepare.mosaic import WHOLE
from segmint.operators.prepare.release import ReleaseConfig, release, released_size
from segmint.operators.redactions import MANUAL, outline, redactions
from segmint.operators.shards.corrected_rows import source_region
from tests.conftest import read_rgb
from tests.support.redacted import redacted as deidentified


def region(x: int, y: int, w: int, h: int, kind: str = "face", source: str = "mtcnn") -> dict[str, Any]:
    return {"kind": kind, "score": 0.9, "x": x, "y": y, "w": w, "h": h, "source": source}


def row(regions: Sequence[dict[str, Any]], source: tuple[int, int], size: tuple[int, int]) -> dict[str, Any]:
    sizes = {"source_height": source[0], "source_width": source[1], "height": size[0], "width": size[1]}
    return {"regions": regions, **sizes}


def counts_of(mask: np.ndarray) -> str:
    return coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode("ascii")


def drawn(one: dict[str, Any], source: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """The pixels of a region in the whole released frame, (h, w) bool, each looked at by itself.

    An ellipse ends at nine tenths of its box, since its band begins at eight, and a box a sixteenth of its
    shorter side inside.
    """
    has_band = one["source"] != MANUAL
    axes, cut = (0.9, min(one["w"], one["h"])) if has_band else (1.0, 0)  # the cut in sixteenths
    x, y = np.meshgrid(np.arange(size[1]), np.arange(size[0]))
    if one["kind"] == "face" and one["source"] != MANUAL:
        across = ((x + 0.5) * source[1] / size[1] - one["x"] - one["w"] / 2) / (one["w"] / 2) / axes
        down = ((y + 0.5) * source[0] / size[0] - one["y"] - one["h"] / 2) / (one["h"] / 2) / axes
        return across**2 + down**2 <= 1
    return (
        (16 * x * source[1] >= (16 * one["x"] + cut) * size[1])
        & (16 * (x + 1) * source[1] <= (16 * (one["x"] + one["w"]) - cut) * size[1])
        & (16 * y * source[0] >= (16 * one["y"] + cut) * size[0])
        & (16 * (y + 1) * source[0] <= (16 * (one["y"] + one["h"]) - cut) * size[0])
    )


def check(
    regions: Sequence[dict[str, Any]],
    source: tuple[int, int],
    masks: Sequence[np.ndarray],
    size: tuple[int, int],
) -> None:
    """Compare with plain counts of pixels."""
    areas = [drawn(one, source, size) for one in regions]
    union = np.any(areas, axis=0) if areas else np.zeros(size, bool)
    found = redactions(row(regions, source, size), [counts_of(mask) for mask in masks])
    assert found.share.shape == found.iou.shape == (len(masks),)
    for mask, share, iou in zip(masks, found.share, found.iou, strict=True):
        assert share == ((mask & union).sum() / mask.sum() if mask.any() else 0)
        ious = [(mask & area).sum() / (mask | area).sum() for area in areas if (mask & area).any()]
        assert iou == max(ious, default=0)


def half_hidden(image: np.ndarray, detectors: Sequence[Detector]) -> np.ndarray:
    """Where the mosaics of an image weigh at least half, (h, w) bool."""
    hidden = np.zeros(image.shape[:2], bool)
    for found in (each for detector in detectors for each in detector.detect(image)):
        patch = redacted_outline(found, hidden.shape)
        weighs = patch.mask if patch.weight is None else patch.weight >= WHOLE // 2
        hidden[patch.y : patch.y + patch.height, patch.x : patch.x + patch.width] |= weighs
    return hidden


@pytest.mark.usefixtures("weights")
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("name", "short_side"), [("multiface.jpg", 200), ("plate_car_2.webp", 1500)])
def test_the_masks_of_a_photograph_are_measured_as_its_pixels_are(photos: Path, name: str, short_side: int) -> None:
    image = read_rgb(photos / name)
    detectors = build_detectors(DeidentifyConfig())
    clean, found = deidentified(image, detectors)
    released = release(clean, ReleaseConfig(short_side=short_side))
    gray = cv2.cvtColor(decode_jpeg(released.jpeg), cv2.COLOR_RGB2GRAY)
    masks = []
    for level in range(40, 240, 40):
        many, labels = cv2.connectedComponents((gray > level).astype(np.uint8))
        masks += [labels == label for label in range(1, many)]
    regions = [asdict(one) for one in found]

    assert regions
    assert len(masks) > 100
    check(regions, image.shape[:2], masks, gray.shape)
    # The outlines are where the mosaic hides at least half, nearly; a tilted plate fills less of its box.
    redacted = half_hidden(image, detectors)
    outlined = np.any([drawn(one, redacted.shape, redacted.shape) for one in regions], axis=0)
    least = 0.97 if name == "multiface.jpg" else 0.6
    assert (redacted & outlined).sum() > least * (redacted | outlined).sum()


SIDES = st.integers(1, 40)
PLACES = st.integers(-5, 45)


@given(st.data(), st.tuples(SIDES, SIDES), st.integers(1, 40))
@settings(max_examples=300)
def test_any_regions_and_masks_are_measured_as_their_pixels_are(
    data: st.DataObject, source: tuple[int, int], short_side: int
) -> None:
    width, height = released_size(source[1], source[0], short_side)
    kinds = st.sampled_from([("face", "mtcnn"), ("face", MANUAL), ("plate", "clp"), ("other", MANUAL)])
    boxes = st.tuples(PLACES, PLACES, SIDES, SIDES, kinds).map(lambda box: region(*box[:4], *box[4]))
    regions = data.draw(st.lists(boxes, max_size=4))
    seeds = data.draw(st.lists(st.integers(0, 2**16), max_size=4))
    masks = [np.random.default_rng(seed).random((height, width)) < 0.5 for seed in seeds]

    check(regions, source, [*masks, np.zeros((height, width), bool)], (height, width))


@given(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES), st.data())
def test_a_box_that_a_person_asked_for_comes_back(
    size: tuple[int, int], more: tuple[int, int], data: st.DataObject
) -> None:
    source = (size[0] + more[0] - 1, size[1] + more[1] - 1)
    x, y = data.draw(st.integers(0, size[1] - 1)), data.draw(st.integers(0, size[0] - 1))
    w, h = data.draw(st.integers(1, size[1] - x)), data.draw(st.integers(1, size[0] - y))

    wanted = source_region(row([], source, size), WantedRegion(id=1, kind="face", x=x, y=y, w=w, h=h))
    found = outline(asdict(wanted), source, size)

    assert (found.x, found.y, *found.mask.shape[::-1]) == (x, y, w, h)
    assert found.mask.all()


def test_an_image_without_masks_or_without_regions_has_nothing_to_measure() -> None:
    face = region(2, 2, 9, 9)
    assert redactions(row([face], (20, 20), (20, 20)), []).share.tolist() == []
    found = redactions(row([], (20, 20), (20, 20)), [counts_of(np.ones((20, 20), bool))])
    assert (found.share.tolist(), found.iou.tolist()) == ([0], [0])
