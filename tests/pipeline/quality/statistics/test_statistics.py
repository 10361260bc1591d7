"""Statistics agree with what other libraries compute from the pixels of real masks, and with known answers."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco
from shapely import MultiPoint
from skimage.measure import regionprops

from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.operators.rows import FUNNEL_STEPS
from segmint.pipeline.quality.report.plots import charts_of
from segmint.pipeline.quality.statistics.masks import open_tables
from segmint.pipeline.quality.statistics.statistics import compute_statistics, geography, masks_per_image
from segmint.pipeline.quality.statistics.values import (
    BinImages,
    Centers,
    Cleanup,
    CountryImages,
    GroupImages,
    HugeMasks,
    LicenseImages,
    MaskLevels,
    MasksPerImage,
    ProviderImages,
    SimilarMasks,
    Statistics,
    TinyMasks,
)
from tests.support.committed import row_of, write_dataset
from tests.support.drawn import draw, image_row, image_with, tables_of
from tests.support.foreign_data import loosen
from tests.support.locations import location_of
from tests.support.mask_labels import LABELS, labeled_row
from tests.support.statistics import statistics_of


@pytest.fixture(scope="module")
def found(small_dataset: Path) -> Statistics:
    with open_tables(location_of(small_dataset)) as tables:
        return compute_statistics(tables, sample=100)


@pytest.fixture(scope="module")
def pixels(small_dataset: Path) -> list[list[np.ndarray]]:
    """The masks of each image, (H, W) bool, by pycocotools."""
    return [[mask.mask for mask in sample.masks] for sample in open_dataset(str(small_dataset))]


def shapes_of(mask: np.ndarray) -> dict[str, float]:
    """A mask's statistics from its pixels, by scikit-image and shapely."""
    (region,) = regionprops(mask.astype(np.uint8))
    top, left, bottom, right = region.bbox
    corners = region.coords[:, None, :] + np.array([[0, 0], [0, 1], [1, 0], [1, 1]])[None]
    hull = MultiPoint(corners.reshape(-1, 2)).convex_hull.area
    height, width = mask.shape
    return {
        "relative_size": float(np.sqrt(region.area / mask.size)),
        "concavity": float(1 - region.area / hull),
        "aspect_ratio": (right - left) / (bottom - top),
        "center_x": (region.centroid[1] + 0.5) / width,
        "center_y": (region.centroid[0] + 0.5) / height,
    }


def test_real_masks_are_measured_as_other_libraries_do(found: Statistics, pixels: list[list[np.ndarray]]) -> None:
    shapes = [shapes_of(mask) for masks in pixels for mask in masks]
    values = {name: np.array([shape[name] for shape in shapes]) for name in shapes[0]}
    assert found.masks == len(shapes) > 10
    for name in ("relative_size", "concavity", "aspect_ratio"):
        expected, _ = np.histogram(values[name], getattr(found, name).edges)
        assert list(getattr(found, name).counts) == expected.tolist(), name
    assert found.relative_size.mean == pytest.approx(values["relative_size"].mean(), abs=1e-8)
    assert found.concavity.mean == pytest.approx(values["concavity"].mean(), abs=1e-8)
    assert found.aspect_ratio.mean == pytest.approx(np.exp(np.log(values["aspect_ratio"]).mean()), abs=1e-8)
    bounds = {"small": (0, 0.06), "medium": (0.06, 0.17), "large": (0.17, 2)}
    for row in found.concavity.by_size:
        low, high = bounds[row.size]
        chosen = values["concavity"][(values["relative_size"] >= low) & (values["relative_size"] < high)]
        assert list(row.counts) == np.histogram(chosen, found.concavity.edges)[0].tolist()
        assert row.mean == (pytest.approx(chosen.mean(), abs=1e-8) if chosen.size else None)
    centers, _, _ = np.histogram2d(values["center_y"], values["center_x"], bins=32, range=[[0, 1], [0, 1]])
    assert found.centers == Centers(32, tuple(tuple(row) for row in centers.astype(int).tolist()))


def test_images_are_counted_as_their_files_say(
    found: Statistics, small_dataset: Path, pixels: list[list[np.ndarray]]
) -> None:
    samples = list(open_dataset(str(small_dataset)))
    counts = [len(masks) for masks in pixels]
    assert found.images == len(samples) == 6
    assert found.masks_per_image.mean == pytest.approx(np.mean(counts), abs=1e-8)
    assert found.masks_per_image.median == np.median(counts)
    assert found.without_masks == counts.count(0)
    shares = []
    for masks in pixels:
        codes = [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
        shares.append(float(coco.decode(coco.merge(codes)).mean()) if codes else 0.0)
    assert found.coverage.mean == pytest.approx(np.mean(shares), abs=1e-8)
    assert list(found.coverage.counts) == np.histogram(shares, found.coverage.edges)[0].tolist()
    masks = [mask for sample in samples for mask in sample.masks]
    for name in ("predicted_iou", "stability_score"):
        scores, histogram = [getattr(mask, name) for mask in masks], getattr(found, name)
        assert histogram.mean == pytest.approx(np.mean(scores), abs=1e-8)
        assert sum(histogram.counts) == len(masks)
        inside = np.clip(scores, histogram.edges[0], histogram.edges[-1])
        assert np.abs(np.array(histogram.counts) - np.histogram(inside, histogram.edges)[0]).sum() <= 2
    assert found.tiny == TinyMasks(100, sum(mask.area < 100 for mask in masks))
    share = [mask.area / (mask.size[0] * mask.size[1]) for mask in masks]
    assert found.huge == HugeMasks(0.95, sum(value >= 0.95 for value in share))
    outputs = Counter(mask.output for mask in masks)
    assert outputs.keys() == {0, 1, 2}
    contained = sum(mask.container is not None for mask in masks)
    assert 0 < contained < len(masks)
    assert found.levels == MaskLevels((outputs[0], outputs[1], outputs[2]), contained)


def test_the_funnel_and_the_refused_are_those_of_the_rows(found: Statistics, small_dataset: Path) -> None:
    rows = [sample.row for sample in open_dataset(str(small_dataset))]
    steps = [row.step for row in found.funnel]
    of_cleanup = {"cleaned", "removed_by_cleanup", "holes_filled", "islands_removed", "redaction_artifacts"}
    assert steps == [step for step in FUNNEL_STEPS if step not in of_cleanup]
    assert steps[-1] == "written"
    for row in found.funnel:
        assert row.masks == sum(image["funnel"][row.step] for image in rows)
    assert found.funnel[-1].masks == found.masks
    cleaned = sum(image["funnel"]["cleaned"] for image in rows)
    before = sum(image["funnel"]["after_nms2"] for image in rows)
    assert found.cleanup.cleaned == cleaned
    assert found.cleanup.cleaned_share == pytest.approx(cleaned / before, abs=1e-8)
    holes = sum(image["funnel"]["holes_filled"] for image in rows)
    islands = sum(image["funnel"]["islands_removed"] for image in rows)
    assert (found.cleanup.holes, found.cleanup.islands) == (holes, islands)
    assert found.cleanup.holes_share == pytest.approx(holes / before, abs=1e-8)
    assert found.cleanup.islands_share == pytest.approx(islands / before, abs=1e-8)
    assert found.rejected == 2
    assert found.rejected_by_reason == {"license_not_allowed": 1, "not_found": 1}
    assert found.licenses == (LicenseImages("CC0-1.0", 6),)
    assert found.providers == ()


def test_a_good_dataset_has_no_near_duplicates_no_drift_and_no_outliers(found: Statistics) -> None:
    nearly = found.near_duplicates
    assert (nearly.images_sampled, nearly.masks, nearly.pairs) == (6, found.masks, 0)
    assert nearly.threshold == 0.9
    assert found.drift == ()
    assert found.outliers == ()
    value = found.to_dict()
    assert json.loads(json.dumps(value, allow_nan=False)) == value


def test_shapes_with_known_answers() -> None:
    square = draw(100, 100, (10, 10, 20, 20))  # convex: 400 of 10,000 pixels
    corner = draw(100, 100, (50, 50, 40, 20), (50, 70, 20, 20))  # an L: 1,200 pixels, and 200 more in its hull
    with tables_of(
        {0: {"images": [image_with(0, [square, corner])[0]], "masks": image_with(0, [square, corner])[1]}}
    ) as t:
        found = compute_statistics(t, sample=1)
    sizes = [0.2, np.sqrt(0.12)]
    assert found.relative_size.mean == pytest.approx(np.mean(sizes))
    assert [i for i, n in enumerate(found.relative_size.counts) if n] == [10, 17]
    assert found.concavity.mean == pytest.approx((0 + 200 / 1400) / 2)
    assert [i for i, n in enumerate(found.concavity.counts) if n] == [0, 7]
    assert found.coverage.mean == pytest.approx(0.16)
    assert found.centers.counts[6][6] == 1, "20 of 100 is bin 6 of 32, from the top left"
    assert found.tiny.masks == found.huge.masks == 0


def test_tiny_and_huge_masks_and_images_without_any() -> None:
    boxes = ((0, 0, 9, 11), (0, 0, 10, 10), (0, 0, 100, 94), (0, 0, 100, 95))
    image, rows = image_with(0, [draw(100, 100, box) for box in boxes])
    with tables_of({0: {"images": [image, image_row(1), image_row(2)], "masks": rows}}) as tables:
        found = compute_statistics(tables, sample=5)
    assert found.tiny == TinyMasks(100, 1)
    assert found.huge == HugeMasks(0.95, 1)
    assert found.without_masks == 2
    assert found.masks_per_image.mean == pytest.approx(4 / 3)
    assert found.masks_per_image.median == 0


def test_scores_that_are_no_number_count_nowhere() -> None:
    image, rows = image_with(0, [draw(20, 20, (5, 5, 8, 8))] * 3)
    for row, score in zip(rows, (0.75, math.nan, math.inf), strict=True):
        row["predicted_iou"] = score
    with tables_of({0: {"images": [image], "masks": rows}}) as tables:
        found = compute_statistics(tables, sample=0)
    assert found.masks == 3
    assert (found.predicted_iou.mean, sum(found.predicted_iou.counts)) == (0.75, 1)


def test_a_planted_near_duplicate_is_found() -> None:
    one, shifted, other = (draw(100, 100, box) for box in ((10, 10, 40, 40), (11, 10, 40, 40), (60, 10, 30, 30)))
    image, rows = image_with(7, [one, other, shifted])
    with tables_of({3: {"images": [image], "masks": rows}}) as tables:
        found = compute_statistics(tables, sample=10).near_duplicates
    assert (found.images_sampled, found.masks, found.pairs) == (1, 3, 1)
    iou = round(39 / 41, 4)
    assert found.examples == (SimilarMasks(8, (80_000, 80_002), iou),)


def test_the_sample_is_spread_over_shards_and_as_large_as_asked() -> None:
    mask = draw(20, 20, (5, 5, 8, 8))
    shards = {}
    for shard in range(40):
        rows = [image_with(shard * 10 + index, [mask]) for index in range(10)]
        shards[shard] = {"images": [image for image, _ in rows], "masks": [m for _, masks in rows for m in masks]}
    with tables_of(shards) as tables:
        assert compute_statistics(tables, sample=77).near_duplicates.images_sampled == 77
        assert compute_statistics(tables, sample=3).near_duplicates.images_sampled == 3
        assert compute_statistics(tables, sample=0).near_duplicates.images_sampled == 0


def test_the_sample_of_a_shard_is_spread_over_its_images() -> None:
    one, other = draw(20, 20, (0, 0, 5, 5)), draw(20, 20, (10, 10, 5, 5))
    rows = [image_with(index, [one, one if index in {1, 4} else other]) for index in range(6)]
    shard = {"images": [image for image, _ in rows], "masks": [mask for _, masks in rows for mask in masks]}
    with tables_of({0: shard}) as tables:
        found = compute_statistics(tables, sample=2).near_duplicates
    assert [pair.id for pair in found.examples] == [2, 5]


def test_bins_of_masks_an_image_are_the_papers() -> None:
    found = masks_per_image({0: 1, 10: 2, 11: 3, 50: 4, 51: 5, 100: 6, 101: 7, 200: 8, 201: 9, 9999: 10})
    assert found.bins == (
        BinImages("<=10", 3),
        BinImages("11-50", 7),
        BinImages("51-100", 11),
        BinImages("101-200", 15),
        BinImages(">200", 19),
    )
    assert masks_per_image({1: 1, 4: 1}).median == 2.5
    assert masks_per_image({}) == MasksPerImage(None, None, tuple(BinImages(bin.label, 0) for bin in found.bins))


def test_countries_count_in_their_region_and_level() -> None:
    found = geography({"KE": (3, 300), "NG": (1, 80), "JP": (4, 400), "ZZ": (2, 10), None: (5, 50), "AQ": (1, 9)})
    assert (found.known, found.unknown) == (11, 5)
    assert found.countries[0] == CountryImages("JP", 4, 100)
    regions = {row.name: row for row in found.regions}
    assert regions["Africa"] == GroupImages("Africa", 4, 0.5, 95, paper_share=0.028, masks=380, countries=2)
    assert regions["Europe"].share == 0
    assert regions["Europe"].masks_per_image is None
    assert {row.name: row.images for row in found.income} == {"high": 4, "middle": 4, "low": 0}


def test_licenses_and_providers_are_counted() -> None:
    rows = [
        image_row(i, license=name, country="FR", provider=who)
        for i, (name, who) in enumerate([("CC0-1.0", "a"), ("CC-BY-4.0", None), ("CC0-1.0", None)])
    ]
    with tables_of({0: {"images": rows}}) as tables:
        found = compute_statistics(tables, sample=1)
    assert found.licenses == (LicenseImages("CC0-1.0", 2), LicenseImages("CC-BY-4.0", 1))
    assert found.providers == (ProviderImages(None, 2), ProviderImages("a", 1))
    assert found.geography.countries == (CountryImages("FR", 3, 0),)


def test_masks_are_counted_by_label(tmp_path: Path) -> None:
    for name, make_row in (("labeled", labeled_row), ("plain", row_of)):
        write_dataset(location_of(tmp_path / name), shards=3, make_row=make_row)
    with open_tables(location_of(tmp_path / "labeled")) as tables:
        labels = compute_statistics(tables, sample=1).labels
    assert [(row.label, row.masks) for row in labels][:3] == [(None, 3), (LABELS[4], 2), (LABELS[0], 2)]
    assert sum(row.masks for row in labels) == 12
    chart = charts_of(statistics_of(labels=labels)).labels
    assert chart is not None
    assert (chart.value, chart.rows[0].label, chart.rows[0].text) == ("Masks", "no label", "3 (25%)")
    with open_tables(location_of(tmp_path / "plain")) as tables:
        assert compute_statistics(tables, sample=1).labels == ()


def test_clean_up_is_summed_over_the_images_that_have_masks() -> None:
    counts = dict.fromkeys(FUNNEL_STEPS, 10) | {
        "cleaned": 5,
        "holes_filled": 2,
        "islands_removed": 4,
        "redaction_artifacts": 3,
    }
    cleaned = image_row(0, funnel=counts)
    without = image_row(2)
    with tables_of({0: {"images": [cleaned, without]}}) as tables:
        found = compute_statistics(tables, sample=1).cleanup
    assert found == Cleanup(5, 10, 2, 4, 0.5, 1, 0.2, 0.4, 3, 0.3)


def test_what_foreign_data_does_not_tell_is_none(small_dataset: Path, tmp_path: Path, found: Statistics) -> None:
    with open_tables(location_of(loosen(small_dataset, tmp_path / "loose"))) as tables:
        foreign = compute_statistics(tables, sample=100)
    same = (
        "images",
        "masks",
        "masks_per_image",
        "relative_size",
        "concavity",
        "centers",
        "coverage",
        "stability_score",
    )
    assert {name: getattr(foreign, name) for name in same} == {name: getattr(found, name) for name in same}
    unknown = ("rejected", "rejected_by_reason", "funnel", "cleanup")
    assert {name: getattr(foreign, name) for name in unknown} == dict.fromkeys(unknown)
    assert (foreign.licenses, foreign.providers) == ((), ())
    assert (foreign.geography.known, foreign.geography.unknown) == (0, 6)
    assert {row.share for row in foreign.geography.regions} == {None}


def test_a_dataset_without_images_has_no_means() -> None:
    with tables_of({}) as tables:
        found = compute_statistics(tables, sample=10)
    assert (found.images, found.masks, found.rejected) == (0, 0, 0)
    assert found.relative_size.mean is None
    assert sum(found.relative_size.counts) == 0
    json.dumps(found.to_dict(), allow_nan=False)
