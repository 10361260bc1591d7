"""Studies of ratings: what is drawn, scores by scipy's tests, and the number of masks by published tables."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import nct, t, ttest_rel

from segmint.catalogs.dataset.outputs import read_notes
from segmint.catalogs.dataset.ratings import put_rating
from segmint.infra.errors import UsageError
from segmint.operators.intervals import holm, mean_intervals, sign_flip_p
from segmint.pipeline.engine.study.files import kind_of
from segmint.pipeline.engine.study.ratings import load_ratings, masks_for, sample_ratings, score_ratings
from tests.support.locations import location_of
from tests.support.rated import counts_by_mask, rating_of
from tests.support.rating_study import make_study, write_predictions
from tests.support.trainable import write_trainable


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Twelve images, each with a manual mask of more than 24 x 24 pixels and two of the model."""
    write_trainable(location_of(tmp_path / "dataset"))
    return tmp_path / "dataset"


def test_a_study_has_each_annotated_mask_with_the_first_prediction_of_each_model(dataset: Path, tmp_path: Path) -> None:
    study = make_study(location_of(dataset), tmp_path)
    assert study.names == ("ground truth", "small.json", "large.json")
    assert len(study.objects) == 12
    known = counts_by_mask(location_of(dataset))
    for each in study.objects:
        assert (each.image, each.counts[0]) == (each.mask // 10_000, known[each.mask])
        assert len(set(each.counts)) == 3  # neither model's mask is that of a second click, which is exact
    assert load_ratings(study.folder) == study
    assert kind_of(study.folder) == "ratings"
    assert [note.command for note in read_notes(location_of(dataset))] == ["study sample"]
    assert study.lines()[0] == ("12 masks of 12 images, to rate 36 times: ground truth, small.json and large.json")
    with pytest.raises(UsageError, match="already exists"):
        make_study(location_of(dataset), tmp_path)


def test_fewer_masks_are_drawn_by_the_seed(dataset: Path, tmp_path: Path) -> None:
    files = [location_of(path) for path in write_predictions(location_of(dataset), tmp_path)]
    drawn = [
        [
            each.mask
            for each in sample_ratings(location_of(dataset), files, 5, seed, location_of(tmp_path / name)).objects
        ]
        for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [len(each) for each in drawn] == [5, 5, 5]


def test_scores_are_those_of_scipy(dataset: Path, tmp_path: Path) -> None:
    study = make_study(location_of(dataset), tmp_path)
    random = np.random.default_rng(3)
    scores = np.clip(random.integers(4, 9, (2, 12, 1)) + random.integers(-1, 3, (2, 12, 3)), 1, 10)
    for rater, name in enumerate(("ann", "bo")):
        for place, each in enumerate(study.objects):
            for variant in range(3):
                if (place, variant) != (11, 2):  # nobody rated the last mask of the second model
                    given = rating_of(each.mask, each.counts[variant], name, int(scores[rater, place, variant]))
                    assert put_rating(study.root(variant), given)
    found = score_ratings(study.folder)
    means = scores[:, :11].mean(axis=0)
    assert (found.masks, found.images, found.drawn, found.raters, found.ratings) == (11, 11, 12, 2, 70)
    assert [each.mean for each in found.means] == pytest.approx(means.mean(axis=0))
    ps = []
    for each, (one, two) in zip(found.differences, ((0, 1), (0, 2), (1, 2)), strict=True):
        test = ttest_rel(means[:, two], means[:, one])
        ps.append(test.pvalue)
        assert each.p == pytest.approx(test.pvalue)
        assert each.by_mask == pytest.approx(tuple(test.confidence_interval(0.99)))
        (by_image,) = mean_intervals((means[:, two] - means[:, one])[:, None], np.ones(11), limits=(-9, 9))
        assert each.by_image == by_image is not None
        assert [each.p_by_image] == sign_flip_p((means[:, two] - means[:, one])[:, None], 0)
    assert [each.holm for each in found.differences] == pytest.approx(holm(ps))
    assert [each.holm_by_image for each in found.differences] == holm([each.p_by_image for each in found.differences])
    lines = found.lines()
    assert lines[0] == "70 ratings by 2 raters (ann 35 of 36, bo 35 of 36); 12 masks drawn"
    assert lines[1] == "not checked: 1 mask without a rating of each model and the ground truth"
    assert lines[2].startswith("means over 11 masks of 11 images; by mask 99% intervals")
    assert lines[7].startswith(f"  small.json minus ground truth: {found.differences[0].mean:+.2f} (by mask ")


def test_masks_of_one_image_show_no_difference_by_image(dataset: Path, tmp_path: Path) -> None:
    """By mask, they would be twelve independent ones with a low p."""
    study = make_study(location_of(dataset), tmp_path)
    for number, each in enumerate(study.objects):
        for variant in range(3):
            score = 8 - 3 * (variant == 2) - number % 2 * (variant > 0)
            assert put_rating(study.root(variant), rating_of(each.mask, each.counts[variant], "ann", score))
    manifest = json.loads((study.folder / "manifest.json").read())
    for each in manifest["objects"]:
        each["image"] = 1
    (tmp_path / "study/manifest.json").write_text(json.dumps(manifest))
    found = score_ratings(study.folder)
    assert (found.masks, found.images) == (12, 1)
    assert found.differences[1].p < 1e-6
    assert [each.holm_by_image for each in found.differences] == [1, 1, 1]
    line = found.lines()[7]
    assert line.startswith("  large.json minus ground truth: -3.50 (by mask ")
    assert line.endswith("; by image no interval, p 1, corrected 1)")


def test_ratings_of_other_masks_and_damaged_ones_are_not_counted(dataset: Path, tmp_path: Path) -> None:
    """An earlier study in the same folder may have shown another model's mask under the same number."""
    study = make_study(location_of(dataset), tmp_path)
    first, second = study.objects[:2]
    assert put_rating(study.root(1), rating_of(first.mask, first.counts[2], "ann", 3))
    rating = rating_of(second.mask, second.counts[1], "ann", 4)
    assert put_rating(study.root(1), rating)
    (tmp_path / "study/ratings/1" / rating.name.path).write_text("{")
    assert put_rating(study.root(2), rating_of(first.mask, first.counts[2], "ann", 5))
    found = score_ratings(study.folder)
    assert (found.ratings, found.raters) == (1, 1)
    assert found.not_checked[1] == "2 ratings unreadable, or not of the study's masks"


def test_a_study_without_ratings_and_files_that_are_refused(dataset: Path, tmp_path: Path) -> None:
    study = make_study(location_of(dataset), tmp_path)
    found = score_ratings(study.folder)
    assert (found.masks, found.means, found.differences) == (0, (), ())
    assert len(found.lines()) == 3
    other, place = tmp_path / "other.json", location_of(tmp_path / "other")
    with pytest.raises(UsageError, match="--kind ratings needs --predictions"):
        sample_ratings(location_of(dataset), [], 5, 0, place)
    alike = [location_of(tmp_path / folder / "masks.json") for folder in ("one", "two")]
    with pytest.raises(UsageError, match=r"masks\.json and masks\.json: expected different file names"):
        sample_ratings(location_of(dataset), alike, 5, 0, place)
    entry = {"annotation_id": 10_000, "segmentation": {"size": [2, 2], "counts": [4]}}
    for entries, message in (
        ([{"annotation_id": "1"}], "entry 1: expected a COCO result with annotation_id"),
        ([{"annotation_id": 1}], "entry 1: its size is None"),
        ([{"annotation_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]]}], "entry 1: its size is None"),
        ([entry], "mask 10000 has another size than its image"),
        ([{**entry, "annotation_id": 7}], "has a prediction in each file"),
    ):
        other.write_text(json.dumps(entries))
        with pytest.raises(UsageError, match=message):
            sample_ratings(location_of(dataset), [location_of(other)], 5, 0, place)
    other.unlink()
    with pytest.raises(UsageError, match=r"other\.json doesn't exist"):
        sample_ratings(location_of(dataset), [location_of(other)], 5, 0, place)


@pytest.mark.parametrize(
    "damage",
    [
        {"objects": [1]},
        {"objects": [{"image": "x", "mask": 1, "counts": ["a", "b", "c"]}]},
        {"objects": [{"image": 1, "mask": 1, "counts": ["a"]}]},
        {"objects": [{"image": 1, "mask": 1, "counts": [1, 2, 3]}]},
        {"names": 3},
        {"dataset": []},
    ],
)
def test_a_damaged_manifest_is_refused(dataset: Path, tmp_path: Path, damage: dict[str, Any]) -> None:
    file = make_study(location_of(dataset), tmp_path).folder / "manifest.json"
    value = {**json.loads(file.read()), **damage}
    file.put(json.dumps(value).encode())
    with pytest.raises(UsageError, match="isn't a ratings study, or it's damaged"):
        load_ratings(location_of(tmp_path / "study"))


@pytest.mark.parametrize(("effect", "masks"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_the_number_of_masks_is_that_of_cohens_tables(effect: float, masks: int) -> None:
    """Pairs for a two-sided paired t-test at 5% with a power of 0.8, as published programs give them."""
    assert masks_for(effect, 1.0, 0.8, 0.95) == masks
    assert masks_for(2 * effect, 2.0, 0.8, 0.95) == masks


@pytest.mark.parametrize(
    ("difference", "deviation", "pairs", "masks"), [(2.5, 1, 1, 6), (1.5, 2, 6, 40), (0.3, 2, 3, 795)]
)
def test_the_number_of_masks_is_the_least_with_that_power(
    difference: float, deviation: float, pairs: int, masks: int
) -> None:
    """scipy's distribution function is NaN on the side opposite to the difference for some numbers of masks."""
    confidence = 1 - 0.01 / pairs
    assert masks_for(difference, deviation, 0.9, confidence) == masks
    for number, enough in ((masks - 1, False), (masks, True)):
        shift = difference / deviation * number**0.5
        assert (nct.sf(t.ppf((1 + confidence) / 2, number - 1), number - 1, shift) >= 0.9) == enough
