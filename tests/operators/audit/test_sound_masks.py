"""The look at many masks at once says no of every mask of which the slow one has a finding, and yes of all others."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segmint.catalogs.findings import FindingLocation
from segmint.model.automatic.rle import compress, decompress, encode
from segmint.operators.audit import shard_masks as at_once
from segmint.operators.audit.masks import MaskColumns, MaskLimits, audit_masks
from segmint.operators.audit.shard_masks import sound_masks
from segmint.operators.rows import MASKS, Row, to_table

Damage = tuple[str, Any]  # a key of a mask's row, and another value of it

LIMITS = MaskLimits(0.7, 0.8)
SIZE = (180, 240)
PLACE = FindingLocation("masks/sa_000001.parquet", 1)


@pytest.fixture(scope="module")
def rows(small_dataset: Path) -> list[Row]:
    """The masks of real images of `SIZE`, of which none has a finding."""
    found = [row for path in sorted((small_dataset / "masks").iterdir()) for row in pq.read_table(path).to_pylist()]
    assert len(found) > 6
    return found


def slowly(rows: list[Row], size: tuple[int, int] = SIZE, limits: MaskLimits | None = LIMITS) -> list[bool]:
    """Whether each row, as a table gives it, has no finding."""
    read = to_table(rows, MASKS).to_pylist()
    return [not list(audit_masks(size, [row], limits, PLACE, decode=False)) for row in read]


def quickly(rows: list[Row], size: tuple[int, int] = SIZE, limits: MaskLimits | None = LIMITS) -> list[bool]:
    sizes = np.tile(np.array(size, dtype=np.int64), (len(rows), 1))
    return sound_masks(MaskColumns.of(to_table(rows, MASKS)), sizes, limits).tolist()


def test_sound_masks_are_sound(rows: list[Row]) -> None:
    assert quickly(rows) == slowly(rows) == [True] * len(rows)
    assert quickly([]) == []
    assert not any(quickly(rows, (240, 180)))
    assert not any(quickly(rows, (-1, -1)))


def test_masks_of_a_segmenter_need_no_scores_and_no_point(rows: list[Row]) -> None:
    limits = MaskLimits(0.0, 0.0, by_segmenter=True)
    bare = [{**row, "predicted_iou": None, "stability_score": None, "point_coords": []} for row in rows]
    sizes = np.tile(np.array(SIZE, dtype=np.int64), (len(rows), 1))

    def at_once(rows: list[Row]) -> list[bool]:
        columns = MaskColumns.of(to_table(rows, MASKS), limits)
        return sound_masks(columns, sizes[: len(rows)], limits).tolist()

    assert at_once(bare) == slowly(bare, limits=limits) == [True] * len(rows)
    assert quickly(bare) == slowly(bare) == [False] * len(rows)
    for wrong in ({"predicted_iou": 1.6}, {"stability_score": math.nan}, {"point_coords": None}, {"area": 1}):
        one = [{**bare[0], **wrong}]
        assert at_once(one) == slowly(one, limits=limits) == [False], wrong


def test_masks_that_a_stage_added_need_no_scores_and_no_point(rows: list[Row]) -> None:
    limits = MaskLimits(0.7, 0.8, adding=frozenset({"ab" * 32}))
    bare = {**rows[0], "predicted_iou": None, "stability_score": None, "point_coords": []}
    low = {**rows[0], "predicted_iou": 0.1, "stability_score": 0.1}
    sizes = np.tile(np.array(SIZE, dtype=np.int64), (6, 1))
    for made_by, expected in (("ab" * 32, True), (None, False), ("cd" * 32, False)):
        masks = [{**row, "model": made_by} for row in (bare, low)]
        columns = MaskColumns.of(to_table(masks, MASKS), limits)
        assert sound_masks(columns, sizes[:2], limits).tolist() == slowly(masks, limits=limits) == [expected] * 2
    wrong = [{**bare, "model": "ab" * 32, **each} for each in ({"predicted_iou": 1.6}, {"point_coords": None})]
    columns = MaskColumns.of(to_table(wrong, MASKS), limits)
    assert sound_masks(columns, sizes[:2], limits).tolist() == slowly(wrong, limits=limits) == [False, False]


def one_of(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


NUMBER = one_of(None, math.nan, math.inf, -math.inf, -1.0, -0.0, 0.0, 0.5, 1.0, 1.5, 179.0, 180.0, 239.0, 240.0, 1e308)
SCORE = NUMBER | one_of(*(float(np.float32(limit)) for limit in (0.7, 0.8))) | st.floats(-0.6, 1.6)
NUMBERS = st.lists(NUMBER, max_size=6) | st.none()
POINTS = st.lists(st.lists(NUMBER | st.floats(0, 240), max_size=3) | st.none(), max_size=3) | st.none()
SIZES = st.lists(one_of(None, 0, -1, 179, 180, 240), max_size=3) | one_of(None, [180, 240], [240, 180])
TEXT = st.text("0?@OPo/p~éÿ\x00", max_size=4)


@st.composite
def damages(draw: st.DrawFn, row: Row) -> Damage:
    """Another value in a row, near the right one or anything."""
    key = draw(one_of("counts", "segmentation", "area", "bbox", "crop_box", "point_coords", "source", *SCORES))
    if key == "counts":
        text = row["segmentation"]["counts"]
        start = draw(st.integers(0, len(text)))
        length = draw(st.integers(0, 3) | st.just(len(text)))
        counts = text[:start] + draw(TEXT) + text[start + length :]
        return "segmentation", {**row["segmentation"], "counts": draw(one_of(counts, counts, counts, None))}
    if key == "segmentation":
        return key, draw(st.none() | SIZES.map(lambda size: {**row["segmentation"], "size": size}))
    if key == "source":
        return key, draw(one_of(None, "automatic", "manual"))
    if key == "area":
        return key, draw(one_of(None, 0, -1, row["area"] + 1, row["area"]))
    if key == "point_coords":
        return key, draw(POINTS)
    if key in SCORES:
        return key, draw(SCORE)
    place, value = draw(st.integers(0, 3)), draw(NUMBER | st.floats(-1, 1).map(lambda by: row[key][0] + by))
    return key, draw(NUMBERS | st.just([*row[key][:place], value, *row[key][place + 1 :]]))


SCORES = ("predicted_iou", "stability_score")


@given(st.data())
@settings(max_examples=300)
def test_damaged_masks_are_never_called_sound(rows: list[Row], data: st.DataObject) -> None:
    damaged = []
    for row in data.draw(st.lists(st.sampled_from(rows), min_size=1, max_size=6)):
        changes = [data.draw(damages(row)) for _ in range(data.draw(st.integers(0, 3)))]
        damaged.append({**row, **dict(changes)})
    limits = data.draw(st.sampled_from([LIMITS, MaskLimits(0.0, -1.0), None]))
    assert quickly(damaged, limits=limits) == slowly(damaged, limits=limits)


@given(st.lists(st.integers(-3, 20) | one_of(2**31, 2**40, 2**59 - 1, 180 * 240), max_size=8), st.booleans())
@settings(max_examples=200)
def test_run_lengths_that_cannot_be_are_never_called_sound(rows: list[Row], counts: list[int], fill: bool) -> None:
    filled = [*counts, SIZE[0] * SIZE[1] - sum(counts)] if fill else counts
    code = {"size": list(SIZE), "counts": compress(np.array(filled, dtype=np.int64))}
    # pycocotools may not see these: what it would say of them is no matter.
    damaged = [{**rows[0], "segmentation": code, "area": sum(filled[1::2])}]
    assert quickly([*damaged, rows[0]]) == [*slowly(damaged), True]


def test_every_mask_of_many_is_looked_at(rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_once, "TEXT_AT_ONCE", 300)
    many = (rows * 100)[:600]
    for place in (0, 254, 255, 256, 510, 599):
        other = {**many[place], "area": many[place]["area"] + 1}
        code = many[place]["segmentation"]
        cut = {**many[place], "segmentation": {**code, "counts": code["counts"][:-1]}}
        for damaged in (other, cut):
            found = quickly([*many[:place], damaged, *many[place + 1 :]])
            assert [index for index, sound in enumerate(found) if not sound] == [place]


def test_masks_at_the_borders_and_of_all_pixels_are_sound() -> None:
    height, width = 20, 30
    pixels = np.zeros((height, width), dtype=bool)
    found = []
    for rows, columns in [(slice(None), slice(None)), (0, 0), (19, 29), (slice(None), 3), (7, slice(None))]:
        mask = pixels.copy()
        mask[rows, columns] = True
        y, x = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        row = {
            "ordinal": 0,
            "id": 1,
            "image_id": "a",
            "annotation_id": 10_000,
            "segmentation": {"size": [height, width], "counts": encode(mask).counts},
            "bbox": [float(v) for v in (x[0], y[0], x[-1] - x[0], y[-1] - y[0])],
            "area": int(mask.sum()),
            "predicted_iou": 1.5,
            "stability_score": 1.0,
            "crop_box": [0.0, 0.0, 30.0, 20.0],
            "point_coords": [[0.0, 0.0], [30.0, 20.0]],
        }
        assert decompress(row["segmentation"]["counts"]).sum() == height * width
        found.append(row)
    assert quickly(found, (height, width)) == slowly(found, (height, width)) == [True] * 5


def test_run_lengths_whose_sum_wraps_around_hold_for_no_image(rows: list[Row]) -> None:
    """Before pycocotools sees them: it would write far outside of the mask."""
    counts = compress(np.array([0, *[1 << 58] * 63, (1 << 58) + 1200]))
    row = {**rows[0], "segmentation": {"size": [30, 40], "counts": counts}}
    columns = MaskColumns.of(to_table([row], MASKS))
    assert not at_once.table_codes_hold(columns, slice(0, 1), np.array([[30, 40]])).any()
