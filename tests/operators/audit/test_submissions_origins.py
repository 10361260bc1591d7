"""Where masks come from: sources, shares inside redacted regions, numbers, and what people's masks may lack."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from segmint.catalogs.findings import Code, Finding, FindingLocation
from segmint.operators.audit.masks import MaskLimits, audit_masks
from segmint.operators.audit.rows import ShardTables, audit_identity, audit_mask_count
from segmint.operators.audit.shard_masks import ShardMasks
from segmint.operators.describe import redaction_columns
from segmint.operators.rows import SCHEMAS, Row, to_table
from segmint.operators.shards.put import build_shard_files
from segmint.operators.shards.revise import read_table
from tests.support.described_rows import accepted_row, described, rectangle_mask

LIMITS = MaskLimits(0.7, 0.8)
REGION = {"kind": "other", "score": 1.0, "x": 0, "y": 0, "w": 20, "h": 30, "source": "manual"}
PLACE = FindingLocation("masks/sa_000000.parquet", 0)


def tables_of(images: list[Row], masks: list[Row]) -> ShardTables:
    rows = {"images": images, "masks": masks, "rejects": []}
    return ShardTables(
        **{kind: to_table(rows[kind], schema) for kind, schema in SCHEMAS.items()},
        places={kind: FindingLocation(f"{kind}/sa_000000.parquet", 0) for kind in SCHEMAS},
    )


def committed(ordinal: int = 0) -> tuple[Row, list[Row]]:
    """The rows of an image with three masks, as a build writes them."""
    files = build_shard_files(described([accepted_row(ordinal, masks=3)]).to_pylist(), with_images=False)
    (image,) = read_table(files.images, "images").to_pylist()
    return image, read_table(files.masks, "masks").to_pylist()


def findings(image: Row, masks: list[Row], limits: MaskLimits = LIMITS) -> list[Finding]:
    """What the audit of rows finds in one image."""
    tables = tables_of([image], masks)
    found = list(audit_identity(tables, (image["ordinal"], image["ordinal"] + 1)))
    if found:
        return found
    shard = ShardMasks(tables, limits)
    annotated = shard.annotated(image["ordinal"])
    found += audit_mask_count(image, len(masks), tables.places["images"], annotated=annotated)
    if not shard.sound(image["ordinal"]):
        found += audit_masks((image["height"], image["width"]), masks, LIMITS, PLACE, decode=False)
    return [*found, *shard.audit_origins(image, PLACE), *shard.audit_work(image, tables.places["images"], PLACE)]


def by_person(mask: Row, index: int, **values: Any) -> Row:
    """A mask as a person draws it: without scores and points, in the frame of the whole image."""
    blank = {"predicted_iou": None, "stability_score": None, "point_coords": [], "crop_box": [0.0, 0.0, 40.0, 30.0]}
    own = {"annotation_id": mask["id"] * 10_000 + index, "source": "manual", "annotator": "Ada"}
    return {**mask, **blank, **own, **values}


def codes(found: Iterable[Finding]) -> list[Code]:
    return [finding.code for finding in found]


def test_masks_of_a_build_are_right() -> None:
    assert findings(*committed()) == []


def test_masks_without_a_source_and_an_image_without_a_next_mask_are_findings() -> None:
    image, masks = committed()
    bare = [{**mask, "source": None, "redacted_share": None, "redaction_iou": None} for mask in masks]
    assert codes(findings(image, bare)) == [Code.UNKNOWN_SOURCE] * 3
    assert codes(findings({**image, "next_mask": None}, masks)) == [Code.MASK_COUNT]


@pytest.mark.parametrize("source", ["robot", "", "Automatic"])
def test_an_unknown_source_is_named(source: str) -> None:
    image, masks = committed()
    masks[1]["source"] = source
    (finding, *_) = [each for each in findings(image, masks) if each.code is Code.UNKNOWN_SOURCE]
    assert (finding.where, finding.found) == ("mask 10001", repr(source))


def contained(*containers: int | None) -> tuple[Row, list[Row]]:
    """The rows of an image with three masks, the second of which is in the first one, with these containers."""
    row = accepted_row(0, masks=3)
    row["masks"][1] = rectangle_mask(30, 40, 4, 5, 8, 9)
    files = build_shard_files(described([row]).to_pylist(), with_images=False)
    masks = read_table(files.masks, "masks").to_pylist()
    (image,) = read_table(files.images, "images").to_pylist()
    return image, [{**mask, "container": own} for mask, own in zip(masks, containers, strict=True)]


@pytest.mark.parametrize(
    ("containers", "wrong", "found"),
    [
        ((None, 10_002, None), [], []),
        ((None, None, None), [], []),  # unknown
        ((None, 10_003, None), [10_001], ["another value"]),  # none of the dataset
        ((None, 10_001, None), [10_001], ["another value"]),  # itself
        ((10_001, 10_002, None), [10_000], ["another value"]),  # a smaller one
        ((10_002, 10_002, 10_000), [10_000], ["another value"]),  # of equal area, but a higher number
        ((None, 20_000, None), [10_001], ["another value"]),
        ((None, 10_000, None), [10_001], ["10000"]),  # larger, but not the smallest one that contains it
        ((None, 10_002, 10_000), [10_002], ["10000"]),  # larger, but it does not contain it
    ],
)
def test_containers_are_those_that_the_masks_give(
    containers: tuple[int | None, ...], wrong: list[int], found: list[str]
) -> None:
    image, masks = contained(*containers)
    shard = ShardMasks(tables_of([image], masks), LIMITS)
    reported = [*shard.audit_origins(image, PLACE), *shard.audit_containers(image, PLACE)]
    first = [finding for finding in reported if finding.mask == (wrong or [None])[0]]
    assert [finding.mask for finding in first] == wrong
    assert [finding.found for finding in first] == found
    assert {finding.code for finding in reported} == ({Code.BAD_CONTAINER} if wrong else set())


def test_containers_of_damaged_masks_are_not_recomputed() -> None:
    image, masks = contained(None, 10_000, None)
    masks[2]["segmentation"]["counts"] = "0"
    shard = ShardMasks(tables_of([image], masks), LIMITS)
    assert list(shard.audit_containers(image, PLACE)) == []


def test_shares_are_those_that_the_regions_give() -> None:
    image, masks = committed()
    image["regions"] = [REGION]
    assert codes(findings(image, masks)) == [Code.REDACTED_SHARE] * 3
    # Rectangles of 10 x 17 pixels from columns 3, 4 and 5 on; the region has columns 0 to 19.
    for mask, inside in zip(masks, (17, 16, 15), strict=True):
        mask |= {"redacted_share": inside / 17, "redaction_iou": inside * 10 / (600 + 170 - inside * 10)}
    assert findings(image, masks) == []
    masks[2]["redaction_iou"] += 1e-4
    (finding,) = findings(image, masks)
    assert (finding.code, finding.where) == (Code.REDACTED_SHARE, "mask 10002")
    masks[2] |= {"redacted_share": None, "redaction_iou": None}
    assert codes(findings(image, masks)) == [Code.REDACTED_SHARE]
    masks[2] |= {"redacted_share": float("nan"), "redaction_iou": 0.0}
    assert codes(findings(image, masks)) == [Code.REDACTED_SHARE]


def measured(image: Row, masks: list[Row]) -> list[Row]:
    """The masks with the shares that the image's regions give them."""
    columns = redaction_columns(image, [mask["segmentation"]["counts"] for mask in masks])
    return [
        {**mask, "redacted_share": share, "redaction_iou": iou}
        for mask, share, iou in zip(masks, *columns, strict=True)
    ]


PLATE = {**REGION, "kind": "plate", "x": 7, "y": 4, "w": 17, "h": 10, "source": "clp"}
"""The rectangle of the third mask, two columns further right."""


@pytest.mark.parametrize(
    ("region", "iou", "found"), [(PLATE, 0.6, 1), ({**PLATE, "source": "manual"}, 0.6, 0), (PLATE, 0.7, 0)]
)
def test_a_mask_that_the_build_should_have_dropped_is_a_finding(region: Row, iou: float, found: int) -> None:
    """By the regions that it knew; half of the plate's band is left out of its box."""
    image, masks = committed()
    image["regions"] = [region]
    masks = measured(image, masks)
    assert findings(image, masks) == []
    assert codes(findings(image, masks, replace(LIMITS, artifact_iou=iou))) == [Code.REDACTION_ARTIFACT] * found


def test_a_person_may_draw_what_a_build_drops() -> None:
    image, masks = committed()
    image |= {"masks": 3, "next_mask": 4, "complete": True, "regions": [PLATE]}
    mixed = measured(image, [*masks[:2], by_person(masks[2], 3)])
    assert mixed[2]["redaction_iou"] > 0.6
    assert findings(image, mixed, replace(LIMITS, artifact_iou=0.6)) == []


@pytest.mark.parametrize("size", [{"source_width": None}, {"source_height": 0}, {"source_width": -3}])
def test_regions_in_an_image_of_no_size_are_a_finding(size: dict[str, Any]) -> None:
    image, masks = committed()
    assert codes(findings({**image, "regions": [REGION], **size}, masks)) == [Code.REDACTED_SHARE]
    assert codes(findings({**image, "regions": [{**REGION, "w": None}]}, masks)) == [Code.REDACTED_SHARE]


def test_masks_of_people_need_no_scores_no_point_and_no_neighboring_numbers() -> None:
    """Mask 1 was replaced by mask 3 and mask 4 was added and deleted again: no number is used twice."""
    image, masks = committed()
    mixed = [masks[0], masks[2], by_person(masks[1], 3, source="corrected", parent=10001)]
    image |= {"masks": 3, "next_mask": 5, "submission": {"assignment": 0, "n": 1, "sha256": "0" * 64}}
    assert findings(image, mixed) == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"predicted_iou": 7.0}, Code.SCORE_RANGE),
        ({"stability_score": float("nan")}, Code.SCORE_RANGE),
        ({"point_coords": None}, Code.POINT_OUTSIDE),
        ({"point_coords": [[99.0, 3.0]]}, Code.POINT_OUTSIDE),
        ({"crop_box": None}, Code.CROP_OUTSIDE),
        ({"redacted_share": 0.5, "redaction_iou": 0.0}, Code.REDACTED_SHARE),
        ({"redacted_share": None, "redaction_iou": None}, Code.REDACTED_SHARE),
        ({"source": "automatic"}, Code.SCORE_RANGE),
        ({"parent": 20_000}, Code.UNKNOWN_PARENT),
        ({"parent": 9_999}, Code.UNKNOWN_PARENT),
        ({"parent": 10_003}, Code.UNKNOWN_PARENT),
        ({"seconds": -0.5}, Code.BAD_SECONDS),
        ({"seconds": float("nan")}, Code.BAD_SECONDS),
        ({"origin": {"sha256": None, "license": "MIT"}}, Code.BAD_HASH),
        ({"origin": {"sha256": "A" * 64, "license": None}}, Code.BAD_HASH),
        ({"model": "vit_b"}, Code.BAD_HASH),
    ],
)
def test_what_they_have_must_be_right(change: dict[str, Any], code: Code) -> None:
    image, masks = committed()
    image |= {"masks": 3, "next_mask": 4, "complete": True}
    assert code in codes(findings(image, [*masks[:2], by_person(masks[2], 3, **change)]))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"seconds": float("inf")}, Code.BAD_SECONDS),
        ({"submission": {"assignment": 0, "n": 1, "sha256": "0" * 63}}, Code.BAD_HASH),
        ({"submission": {"assignment": 0, "n": 1, "sha256": None}}, Code.BAD_HASH),
    ],
)
def test_what_an_image_says_of_their_work_must_be_right(change: Row, code: Code) -> None:
    image, masks = committed()
    (finding,) = findings(image | change, masks)
    assert (finding.code, finding.file, finding.where) == (code, "images/sa_000000.parquet", "id 1")


@pytest.mark.parametrize("next_mask", [None, 2, 10_001])
def test_an_image_of_people_has_the_number_of_its_next_mask(next_mask: int | None) -> None:
    """At least those that the build wrote: else numbers of masks that are gone are given again."""
    image, masks = committed()
    image |= {"masks": 1, "next_mask": next_mask, "complete": True}
    (finding,) = [each for each in findings(image, masks[:1]) if each.code is Code.ROW_IDENTITY]
    assert finding.expected == "a next_mask from 3 to 10,000 in an image that people annotated"


@pytest.mark.parametrize(("last", "next_mask"), [(5, 5), (1, 5), (0, 5), (2, 2), (2, -5)])
def test_their_numbers_rise_and_are_under_the_next_one(last: int, next_mask: int) -> None:
    image, masks = committed()
    image |= {"next_mask": next_mask}
    assert codes(findings(image, [*masks[:2], by_person(masks[2], last)])) == [Code.ROW_IDENTITY]


@pytest.mark.parametrize(
    ("source", "last", "expected"),
    [
        ("automatic", 3, "an annotation_id under 10003, as funnel.written says of masks that the build wrote"),
        ("manual", 2, "an annotation_id of 10003 or over: the build wrote the masks under it"),
    ],
)
def test_masks_of_a_build_have_the_first_numbers(source: str, last: int, expected: str) -> None:
    """So `funnel.written` is the masks that a build wrote and those of them that were replaced or deleted."""
    image, masks = committed()
    image |= {"next_mask": 5, "complete": True}
    last_mask = {**masks[2], "annotation_id": 10_000 + last, "source": source}
    (finding,) = findings(image, [*masks[:2], last_mask])
    assert (finding.code, finding.expected) == (Code.ROW_IDENTITY, expected)


@pytest.mark.parametrize("values", [{}, {"predicted_iou": 0.1, "stability_score": 0.2, "point_coords": [[4.0, 5.0]]}])
def test_masks_of_people_are_sound_at_once(values: Row) -> None:
    """The audit of a dataset with many of them takes no longer, and compares their JSON with their own numbers."""
    image, masks = committed()
    image |= {"next_mask": 4, "masks": 2, "complete": True}
    shard = ShardMasks(tables_of([image], [masks[0], by_person(masks[2], 3, **values)]), LIMITS)
    assert shard.sound(0)
    kept, drawn = shard.annotations(0)
    assert (kept["index"], drawn["index"]) == (0, 3)
    blank = {"predicted_iou": None, "stability_score": None, "point_coords": []}
    assert {name: drawn[name] for name in blank} == blank | values


def test_a_mask_that_is_gone_from_an_image_of_a_build_is_noticed() -> None:
    image, masks = committed()
    (finding,) = findings({**image, "masks": 2, "statistics": {**image["statistics"], "mask_count": 2}}, masks[:2])
    assert (finding.code, finding.found) == (Code.MASK_COUNT, "funnel.written 3, next_mask 3")
    (finding,) = findings(image, [masks[0], masks[2]])
    assert finding.code is Code.ROW_IDENTITY
