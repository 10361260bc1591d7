"""Counted image by image, masks give the figures that COCOeval computes of files that it reads itself."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segmint.operators.annotations.image import encode_mask
from segmint.operators.evaluate import instances
from segmint.operators.evaluate.instances import (
    AREAS,
    AveragePrecision,
    ImageMatches,
    Matches,
    PredictedMask,
    RecallCounts,
    TrueMask,
    match_masks,
    recall_counts,
)

SIZE = (120, 160)
LIMITS = (2, 5, 30)


def ellipse(rng: np.random.Generator, center: tuple[float, float], radii: tuple[float, float]) -> np.ndarray:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return ((y - center[0]) / radii[0]) ** 2 + ((x - center[1]) / radii[1]) ** 2 <= 1 + 0.1 * rng.random()


@pytest.fixture(scope="module")
def scenes() -> list[tuple[list[tuple[int, TrueMask]], list[tuple[int, PredictedMask]]]]:
    """Eight images: true masks of all sizes and some crowds, found masks near them and elsewhere; categories 1 to 3.

    Equal scores, masks found twice, an image without truth, one where nothing is found, and an empty one.
    """
    rng = np.random.default_rng(5)
    scenes = []
    for image in range(8):
        truth, found = [], []
        for _ in range(0 if image in (2, 7) else 9):
            category = int(rng.integers(1, 4))
            center = (rng.uniform(0, SIZE[0]), rng.uniform(0, SIZE[1]))
            radius = rng.choice([6, 12, 25, 60])
            rle = encode_mask(ellipse(rng, center, (radius, radius * 0.8)))
            truth.append(
                (category, TrueMask(rle, float(rng.choice([80, 1024, 4000, 9216, 12000])), rng.random() < 0.2))
            )
            for _ in range(0 if image == 3 else 3):
                moved = (center[0] + rng.normal(0, 2), center[1] + rng.normal(0, 2))
                near = ellipse(rng, moved, (radius * rng.uniform(0.8, 1.2), radius * 0.8))
                guess = category if rng.random() < 0.8 else int(rng.integers(1, 4))
                found.append((guess, PredictedMask(encode_mask(near), float(rng.integers(0, 12)) / 10)))
        if image == 2:
            found.append((1, PredictedMask(encode_mask(ellipse(rng, (50, 50), (20, 20))), 0.9)))
        scenes.append((truth, found))
    return scenes


@contextlib.contextmanager
def quietly():
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@pytest.fixture(scope="module")
def files(scenes, tmp_path_factory: pytest.TempPathFactory) -> tuple[COCO, COCO]:
    folder: Path = tmp_path_factory.mktemp("coco")

    def written(rle) -> dict:
        return {"size": rle["size"], "counts": rle["counts"].decode()}

    annotations, results = [], []
    for image, (truth, found) in enumerate(scenes, start=1):
        for category, mask in truth:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "area": mask.area,
                    "segmentation": written(mask.rle),
                    "iscrowd": int(mask.crowd),
                    "bbox": [0, 0, 1, 1],
                }
            )
        for category, mask in found:
            results.append(
                {
                    "image_id": image,
                    "category_id": category,
                    "score": mask.score,
                    "segmentation": written(mask.rle),
                }
            )
    images = [{"id": image + 1, "height": SIZE[0], "width": SIZE[1]} for image in range(len(scenes))]
    document = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": id, "name": str(id)} for id in (1, 2, 3, 4)],
    }
    (folder / "truth.json").write_text(json.dumps(document))
    (folder / "results.json").write_text(json.dumps(results))
    with quietly():
        truth_file = COCO(folder / "truth.json")
        return truth_file, truth_file.loadRes(str(folder / "results.json"))


def by_category(masks: list, category: int | None = None) -> list:
    """As COCOeval has them without categories: by category, then in the file's order."""
    ordered = sorted(masks, key=lambda pair: pair[0])
    return [mask for each, mask in ordered if category in (None, each)]


def test_average_recall_is_that_of_coco_eval(scenes, files) -> None:
    evaluation = COCOeval(*files, iouType="segm")
    evaluation.params.useCats = 0
    evaluation.params.maxDets = list(LIMITS)
    with quietly():
        evaluation.evaluate()
        evaluation.accumulate()
    counts = [recall_counts(by_category(truth), by_category(found), LIMITS) for truth, found in scenes]
    total = sum(counts[1:], start=counts[0])
    recall = evaluation.eval["recall"][:, 0]  # (thresholds, areas, limits)
    ours = total.found / total.truth[None, :, None]
    assert np.array_equal(ours, recall.transpose(2, 1, 0))
    assert 0.2 < recall.mean() < 0.95  # neither nothing nor all is found
    averages = total.average_recall()
    for limit in range(len(LIMITS)):
        for area in range(len(AREAS)):
            theirs = recall[:, area, limit]
            assert averages[limit][area] == np.mean(theirs[theirs > -1])


def matches_of(scenes, shown=lambda score: score) -> Matches:
    """The matches of each category by image; `shown` gives the predictions' scores."""
    return {
        category: [
            (str(image), match_masks(by_category(truth, category), [
                PredictedMask(each.rle, shown(each.score)) for each in by_category(found, category)
            ]))
            for image, (truth, found) in enumerate(scenes, start=1)
        ]
        for category in (1, 2, 3)
    }  # fmt: skip


def stats_of(files, images: list[int]) -> list[float]:
    """COCOeval's figures of these images, NaN if unknown."""
    evaluation = COCOeval(*files, iouType="segm")
    evaluation.params.imgIds = images
    with quietly():
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.where(evaluation.stats < 0, np.nan, evaluation.stats).tolist()


def test_average_precision_of_any_images_is_that_of_coco_eval(scenes, files, monkeypatch) -> None:
    precision = AveragePrecision([matches_of(scenes)])
    chosen = np.ones((4, 16))
    chosen[:, 8:] = 0
    chosen[1, 0] = chosen[2, [1, 3, 6]] = chosen[3, [0, 1, 3, 4, 5, 6]] = 0
    expected = [stats_of(files, (np.flatnonzero(each[:8]) + 1).tolist()) for each in chosen]
    monkeypatch.setattr(instances, "AT_ONCE", 10_000)  # one selection at once
    assert precision.figures(chosen) == pytest.approx(np.array(expected), abs=1e-12, nan_ok=True)
    figures = dict(zip(precision.names, expected[0], strict=True))
    assert list(figures)[:7] == ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar_1"]
    assert 0.05 < figures["ap"] < 0.95
    assert not np.isnan(expected[0]).any()
    assert np.isnan(expected[3]).all()  # two images without a true mask
    counts = [sum(not mask.crowd for truth, _ in scenes for each, mask in truth if each == id) for id in (1, 2, 3)]
    assert [masks for _, masks, _ in precision.by_category()] == counts
    assert precision.masks["ap"] == sum(counts) > precision.masks["ar_large"] > 0
    assert np.mean([ap for *_, (ap,) in precision.by_category()]) == pytest.approx(figures["ap"], abs=1e-12)

    monkeypatch.setattr(instances, "MOST_UNITS", 3)
    grouped = AveragePrecision([matches_of(scenes)])
    without = grouped.figures(np.array([[1, 0, 1, 0, 0, 0]]))[0]
    assert without == pytest.approx(stats_of(files, [1, 3, 4, 6, 7]), abs=1e-12)


def test_two_models_are_exchanged_in_some_images(scenes) -> None:
    one, other = matches_of(scenes), matches_of(scenes, lambda score: 1 - score)
    chosen = np.zeros((1, 16))
    chosen[0, [0, 2, 3, 4, 6, 7, 9, 13]] = 1  # the second and the sixth image are exchanged
    mixed = [
        {
            id: [pair[::step][place in (1, 5)] for place, pair in enumerate(zip(one[id], other[id], strict=True))]
            for id in one
        }
        for step in (1, -1)
    ]
    expected = [AveragePrecision([each]).figures(np.eye(8, 16).sum(axis=0)[None])[0] for each in mixed]
    found = AveragePrecision([one, other]).figures(chosen)[0].reshape(3, -1)
    assert found[:2] == pytest.approx(np.array(expected), abs=1e-12)
    assert found[2] == pytest.approx(expected[1] - expected[0], abs=1e-12)
    assert np.abs(found[2]).max() > 0.05


def test_nothing_found_and_nothing_true_have_no_figures() -> None:
    empty = recall_counts([], [], LIMITS)
    assert empty.average_recall() == [[None] * len(AREAS)] * len(LIMITS)
    mask = encode_mask(np.ones(SIZE, bool))
    missed = recall_counts([TrueMask(mask, 19200.0)], [], LIMITS)
    assert missed.average_recall()[0] == [0.0, None, None, 0.0]
    found = recall_counts([TrueMask(mask, 19200.0)], [PredictedMask(mask, 0.1)], LIMITS)
    assert (missed + found).average_recall()[2] == [0.5, None, None, 0.5]
    assert isinstance(missed + empty, RecallCounts)
    nothing = match_masks([], [])
    assert isinstance(nothing, ImageMatches)
    assert nothing.truth.tolist() == [0, 0, 0, 0]
    for found_alone in (match_masks([], [PredictedMask(mask, 0.5)]), nothing):
        alone = AveragePrecision([{1: [("a", found_alone)]}])
        assert np.isnan(alone.figures(np.array([[1, 0]]))).all()
        assert list(alone.by_category()) == [(1, 0, [None])]
