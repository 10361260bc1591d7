"""Searching, sorting and paging, against the same done by Python over the same rows."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segmint.catalogs.dataset.tables import DatasetTables, TableFile
from segmint.catalogs.findings import Code, Finding, Findings
from segmint.catalogs.layout import DamagedDatasetError, data_path
from segmint.infra.errors import UsageError
from segmint.infra.scratch import ScratchFolder
from segmint.operators.rows import IMAGES, MASKS, REJECTS
from segmint.pipeline.quality.audit.result import PrivacyResult, UnredactedRegion
from segmint.pipeline.quality.statistics.values import NearDuplicates, Outlier, SimilarMasks
from segmint.pipeline.quality.view.index import (
    RANGES,
    SORTS,
    AuditFindings,
    Filters,
    ImageFinding,
    ImageIndex,
    findings_of,
    order,
    parse_filters,
    where,
)
from segmint.pipeline.serving.images import ImageAddress, UnknownImageError
from tests.support.locations import location_of
from tests.support.statistics import audit_of, statistics_of

COUNT = 300
FINDINGS = [
    *(ImageFinding(number, "mask_area", "…") for number in (3, 5, 5, 250)),
    ImageFinding(7, "outlier", "…"),
    ImageFinding(10_000, "outlier", "of an image that is not there"),
]
LABELED = [(3, 'a "cat"'), (3, 'a "cat"'), (3, "dog"), (9, "dog"), (9, None), (11, None), (250, "dog")]
"""Image and label of each mask."""

REJECTED = [
    {"ordinal": 300 + place, "id": 301 + place, "image_id": "x", "stage": "read", "reason": "ab"[place % 3 == 0]}
    for place in range(10)
]

TABLES = {"images": IMAGES, "masks": MASKS, "rejects": REJECTS}


def made_up_rows() -> list[dict[str, Any]]:
    """Rows with many equal values, unknown ones, and a NaN, in two shards."""
    chance = random.Random(4)
    rows = []
    for ordinal in range(COUNT):
        masks = chance.choice([0, 1, 5, 60, 200])
        few = [0.5, 0.75, 0.9, None, float("nan")]
        rows.append(
            {
                "ordinal": ordinal,
                "id": ordinal + 1,
                "image_id": chance.choice(["Paris", "paris_100%", "rome_1", "a'b"]) + f"-{ordinal}",
                "license": chance.choice(["CC0-1.0", "CC-BY-4.0"]),
                "provider": chance.choice(["acme", None]),
                "country": chance.choice(["FR", "DE", None]),
                "width": chance.choice([640, 1500]),
                "height": 1000,
                "masks": masks,
                "redacted_share": chance.choice([0.0, 0.2, 0.9, None]),
                "statistics": {
                    "mask_count": masks,
                    "coverage": chance.random(),
                    "mean_predicted_iou": chance.choice([*few, 1.25]),
                    "mean_stability_score": chance.choice(few),
                },
            }
        )
    return rows


ROWS = made_up_rows()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageIndex]:
    folder = tmp_path_factory.mktemp("index")
    files = []
    for shard in range(2):
        path = folder / data_path("images", shard, "0" * 64)
        path.parent.mkdir(exist_ok=True)
        rows = ROWS[shard * COUNT // 2 : (shard + 1) * COUNT // 2]
        pq.write_table(pa.Table.from_pylist(rows, schema=IMAGES), path)
        files.append(TableFile(str(path), path.stat().st_size))
    path = folder / data_path("masks", 0, "0" * 64)
    path.parent.mkdir()
    identity = {"ordinal": 0, "image_id": "x", "annotation_id": 1}
    masks = [{**identity, "id": image, "label": label} for image, label in LABELED]
    pq.write_table(pa.Table.from_pylist(masks, schema=MASKS), path)
    entries = {"images": files, "masks": [TableFile(str(path), path.stat().st_size)]}
    path = folder / data_path("rejects", 1, "0" * 64)
    path.parent.mkdir()
    pq.write_table(pa.Table.from_pylist(REJECTED, schema=REJECTS), path)
    entries["rejects"] = [TableFile(str(path), path.stat().st_size)]
    with DatasetTables(location_of(folder), entries, TABLES, ScratchFolder(dir=folder)) as tables:
        made = ImageIndex(tables, FINDINGS, folder)
        yield made
        made.close()


def test_rejected_rows_are_counted_by_reason_and_paged(index: ImageIndex) -> None:
    assert index.reasons() == [{"reason": "a", "rows": 6}, {"reason": "b", "rows": 4}]
    assert [row["id"] for row in index.rejects(None, 0, 4)] == [301, 302, 303, 304]
    assert [row["id"] for row in index.rejects("b", 304, 4)] == [307, 310]
    assert index.rejects("a", 302, 1) == [
        {"id": 303, "image_id": "x", "stage": "read", "reason": "a", "detail": None, "shard": 1}
    ]


def value_of(row: dict[str, Any], column: str) -> float | None:
    """A column of the index, by the table's row; NaN is unknown."""
    names = {"coverage": "coverage", "predicted_iou": "mean_predicted_iou", "stability": "mean_stability_score"}
    if column == "megapixels":
        return float(row["width"] * row["height"]) / 1e6
    if column == "redacted":
        column = "redacted_share"
    value = row["statistics"][names[column]] if column in names else row[column]
    return None if value is None or value != value else min(1, value) if column == "predicted_iou" else value


def expected(keep: Callable[[dict[str, Any]], bool], sort: str = "id", descending: bool = False) -> list[int]:
    """The ids of the rows that a filter keeps, in order: unknown last, equal ones by id."""

    def key(row: dict[str, Any]) -> tuple[bool, float, int]:
        value = value_of(row, sort)
        return value is None, (0 if value is None else -value if descending else value), row["id"]

    return [row["id"] for row in sorted(filter(keep, ROWS), key=key)]


def all_pages(index: ImageIndex, limit: int, **asked: str) -> list[int]:
    """The ids of all pages, one after another."""
    filters = parse_filters(asked)
    found: list[int] = []
    while True:
        page = index.page(filters, found[-1] if found else None, limit)
        found += [row["id"] for row in page]
        if len(page) < limit:
            assert index.count(filters) == len(found)
            return found


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("sort", SORTS)
def test_pages_follow_one_another_in_every_order(index: ImageIndex, sort: str, descending: bool) -> None:
    found = all_pages(index, 47, sort=sort, descending="1" if descending else "")
    assert found == expected(lambda _: True, sort, descending)


@pytest.mark.parametrize("sort", ["id", "masks", "stability"])
@pytest.mark.parametrize("descending", ["", "1"])
def test_neighbors_are_those_of_the_order(index: ImageIndex, sort: str, descending: str) -> None:
    filters = parse_filters({"sort": sort, "descending": descending, "country": "FR"})
    ids = all_pages(index, 100, sort=sort, descending=descending, country="FR")
    for place in (0, 1, len(ids) // 2, len(ids) - 2, len(ids) - 1):
        before = ids[place - 1] if place else None
        after = ids[place + 1] if place + 1 < len(ids) else None
        assert index.neighbors(filters, ids[place]) == (before, after)


def test_neighbors_of_an_image_that_the_filters_leave_out(index: ImageIndex) -> None:
    ids = expected(lambda row: row["country"] == "FR")
    other = next(row["id"] for row in ROWS[50:] if row["country"] == "DE")
    before, after = index.neighbors(parse_filters({"country": "FR"}), other)
    assert before == max(number for number in ids if number < other)
    assert after == min(number for number in ids if number > other)


@pytest.mark.parametrize(
    ("asked", "keep"),
    [
        ({"text": "PARIS"}, lambda row: "paris" in row["image_id"].lower()),
        ({"text": "100%"}, lambda row: "100%" in row["image_id"]),
        ({"text": "a'b"}, lambda row: "a'b" in row["image_id"]),
        ({"text": "rome_1"}, lambda row: "rome_1" in row["image_id"]),
        ({"text": "sa_17"}, lambda row: row["id"] == 17),
        ({"text": "42"}, lambda row: row["id"] == 42 or "42" in row["image_id"]),
        ({"country": "FR"}, lambda row: row["country"] == "FR"),
        ({"unknown": "country,provider"}, lambda row: row["country"] is None and row["provider"] is None),
        ({"license": "CC0-1.0", "provider": "acme"}, lambda r: (r["license"], r["provider"]) == ("CC0-1.0", "acme")),
        ({"finding": "any"}, lambda row: row["id"] in {3, 5, 250, 7}),
        ({"finding": "mask_area"}, lambda row: row["id"] in {3, 5, 250}),
        ({"finding": "unheard_of"}, lambda _: False),
        ({"country": "ZZ"}, lambda _: False),
    ],
)
def test_filters_keep_the_rows_they_say(
    index: ImageIndex, asked: dict[str, str], keep: Callable[[dict[str, Any]], bool]
) -> None:
    assert all_pages(index, 60, **asked) == expected(keep)


@pytest.mark.parametrize(
    ("column", "low", "high"),
    [
        ("masks", 5, 60),
        ("coverage", 0.25, 0.5),
        ("predicted_iou", 0.75, 0.75),
        ("stability", 0.6, 1),
        ("megapixels", 1, 2),
        ("redacted", 0.2, 1),
    ],
)
def test_ranges_hold_their_ends_and_no_unknown_value(index: ImageIndex, column: str, low: float, high: float) -> None:
    def within(row: dict[str, Any]) -> bool:
        value = value_of(row, column)
        return value is not None and low <= value <= high

    found = all_pages(index, 60, **{f"{column}_min": str(low), f"{column}_max": str(high)}, sort=column)
    assert found == expected(within, column)
    assert 0 < len(found) < COUNT


def test_what_can_be_chosen(index: ImageIndex) -> None:
    summary = index.summary()
    assert (summary["images"], summary["masks"]) == (COUNT, sum(row["masks"] for row in ROWS))
    for column in ("country", "license", "provider"):
        values = [row[column] for row in ROWS]
        choices = {choice["value"]: choice["images"] for choice in summary["choices"][column]}
        assert choices == {value: values.count(value) for value in values}
    for column in RANGES:
        values = [value for row in ROWS if (value := value_of(row, column)) is not None]
        assert summary["ranges"][column] == [min(values), max(values)]
    assert summary["findings"] == [{"code": "mask_area", "images": 3}, {"code": "outlier", "images": 2}]


def test_images_are_found_by_the_labels_of_their_masks(index: ImageIndex) -> None:
    assert index.summary()["labels"] == [{"value": "dog", "images": 3}, {"value": 'a "cat"', "images": 1}]
    assert all_pages(index, 2, label="dog") == [3, 9, 250]
    assert all_pages(index, 2, label='a "cat"') == [3]
    assert all_pages(index, 2, label="cat") == []


def test_a_page_says_how_many_findings_an_image_has(index: ImageIndex) -> None:
    page = index.page(parse_filters({}), limit=7)
    assert [row["findings"] for row in page] == [0, 0, 1, 0, 2, 0, 1]


def test_where_an_image_is(index: ImageIndex) -> None:
    assert index.place(1) == ImageAddress(1, 0, 0)
    assert index.place(COUNT) == ImageAddress(COUNT, COUNT - 1, 1)
    for number in (0, COUNT + 1, 2**70):
        with pytest.raises(UnknownImageError, match=f"no image {number}"):
            index.place(number)


def test_a_damaged_table_is_told(tmp_path: Path) -> None:
    path = tmp_path / data_path("images", 0, "0" * 64)
    path.parent.mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS, schema=IMAGES), path)
    folder, files = ScratchFolder(dir=tmp_path), {"images": [TableFile(str(path), path.stat().st_size)]}
    with DatasetTables(location_of("x"), files, TABLES, folder) as tables:
        whole = path.read_bytes()
        path.write_bytes(whole[:4] + bytes(len(whole) - 300) + whole[-296:])
        with pytest.raises(DamagedDatasetError, match="can't read"):
            ImageIndex(tables, [], tmp_path)


def test_an_address_says_what_is_shown() -> None:
    asked = {
        "text": "paris",
        "country": "FR",
        "unknown": "license,provider",
        "masks_min": "3",
        "predicted_iou_max": "0.9",
        "finding": "mask_area",
        "label": "cup, small",
        "sort": "coverage",
        "descending": "1",
        "stability_min": "",
    }
    assert parse_filters(asked) == Filters(
        text="paris",
        choices={"country": "FR", "license": None, "provider": None},
        least={"masks": 3.0},
        greatest={"predicted_iou": 0.9},
        finding="mask_area",
        label="cup, small",
        sort="coverage",
        descending=True,
    )
    assert parse_filters({}) == Filters()


@pytest.mark.parametrize(
    "asked",
    [
        {"masks_min": "many"},
        {"masks_max": "nan"},
        {"coverage_min": "inf"},
        {"masks_between": "3"},
        {"sort": "id; DROP TABLE images"},
        {"unknown": "country,shard"},
        {"shard_min": "3"},
        {"limit": "1000000"},
    ],
)
def test_anything_else_is_refused(asked: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        parse_filters(asked)


def test_texts_are_parameters_and_never_sql() -> None:
    attack = "' OR 1=1 --"
    condition, values = where(parse_filters({"text": attack, "country": attack, "finding": attack}), {})
    assert attack not in condition
    assert values == [attack, -1, attack, []]
    assert condition.count("?") == len(values)


def test_an_order_and_its_reverse() -> None:
    falling = Filters(sort="masks", descending=True)
    assert order(falling) == "masks DESC NULLS LAST, id ASC"
    assert order(falling, backward=True) == "masks ASC NULLS FIRST, id DESC"
    assert order(Filters(), backward=True) == "id DESC"


def test_everything_that_an_audit_says_of_images_is_found() -> None:
    findings = (
        Finding(Code.MASK_AREA, "masks/x.parquet", "area 5", "6", 0, "mask 20003", 2, 20003),
        Finding(Code.MASK_COUNT, "images/x.parquet", "1", "2", 0, "id 4", 4),
        Finding(Code.BAD_JPEG, "a/b.jpg", "1", "2", 0, "", 8),
        Finding(Code.FILE_SIZE, "masks/x.parquet", "1", "2", 0),
    )
    region = UnredactedRegion(5, "face", "mtcnn", 0.987, 1, 2, 3, 4, 0)
    audit = audit_of(
        findings=Findings({}, findings),
        privacy=PrivacyResult(1, (), (region,), 1, 0),
        statistics=statistics_of(
            outliers=(Outlier(6, 0, "six", "masks", 0.0, "no mask at all"),),
            near_duplicates=NearDuplicates(1, 0.9, 2, 1, (SimilarMasks(7, (70001, 70002), 0.97),)),
        ),
    )
    found = findings_of(audit)
    assert found.elsewhere == 1
    assert found.images == (
        ImageFinding(2, "mask_area", "mask 20003: expected area 5; found 6", mask=20003),
        ImageFinding(4, "mask_count", "id 4: expected 1; found 2"),
        ImageFinding(8, "bad_jpeg", "a/b.jpg: expected 1; found 2"),
        ImageFinding(5, "face_found", "a face found by mtcnn at score 0.99", box=(1.0, 2.0, 3.0, 4.0)),
        ImageFinding(6, "outlier", "no mask at all"),
        ImageFinding(7, "near_duplicate", "masks 70001 and 70002 are near-duplicates: IoU 0.970", mask=70001),
    )


def test_an_audit_of_integrity_alone_is_taken() -> None:
    assert findings_of(audit_of(scope="integrity")) == AuditFindings()
