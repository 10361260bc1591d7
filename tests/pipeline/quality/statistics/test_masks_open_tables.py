"""Foreign data is measured as a dataset is, loose and in tars, and what is wrong with it is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from segmint.catalogs.dataset.tables import DatasetTables
from segmint.catalogs.findings import Code
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.operators.foreign.layouts import read_jpeg
from segmint.operators.rows import SCHEMAS
from segmint.pipeline.quality.statistics.masks import open_tables
from tests.support.foreign_data import Document, count_pixels, loosen, pack, uncompress
from tests.support.locations import location_of

MASKS = """
    SELECT annotation_id, segmentation, bbox, area, predicted_iou, stability_score, crop_box, point_coords,
        relative_size, concavity, center_x, center_y, aspect_ratio, touches_border
    FROM masks ORDER BY annotation_id
"""
IMAGES = "SELECT id, width, height, masks, statistics FROM images ORDER BY id"


def same(foreign: DatasetTables, ours: DatasetTables) -> None:
    assert foreign.query(MASKS).to_pylist() == ours.query(MASKS).to_pylist()
    assert foreign.query(IMAGES).to_pylist() == ours.query(IMAGES).to_pylist()


def spoil(path: Path, change: Callable[[Document], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("packed", [False, True], ids=["loose", "tars"])
@pytest.mark.parametrize("change", [None, count_pixels, uncompress], ids=["SA-1B", "COCO's boxes", "lists"])
def test_measured_rows_are_those_of_the_build(
    small_dataset: Path, tmp_path: Path, packed: bool, change: Callable[[Document], None] | None
) -> None:
    folder = loosen(small_dataset, tmp_path / "loose", change or (lambda _: None), name="photo-" if packed else "sa_")
    folder = pack(folder, tmp_path / "packed") if packed else folder
    with open_tables(location_of(small_dataset)) as ours, open_tables(location_of(folder), scratch=tmp_path) as tables:
        same(tables, ours)
        assert (tables.kind, ours.kind, ours.foreign) == ("sa1b", "segmint", None)
        assert tables.foreign is not None
        assert list(tables.foreign.findings) == []
        for kind, schema in SCHEMAS.items():
            assert tables.query(f"SELECT * FROM {kind} LIMIT 0").column_names == [*schema.names, "shard"]
        assert tables.query("SELECT * FROM rejects").num_rows == 0
        unknown = tables.query("SELECT DISTINCT license, country, funnel, faces, uri FROM images").to_pylist()
        assert unknown == [{"license": None, "country": None, "funnel": None, "faces": None, "uri": None}]
        shards = {row["shard"] for row in tables.query("SELECT shard FROM images").to_pylist()}
        assert shards == ({0, 1} if packed else {0})
        for row in tables.query("SELECT ordinal, image_id FROM images").to_pylist():
            expected = (tmp_path / "loose" / f"{row['image_id']}.jpg").read_bytes()
            assert read_jpeg(tables, row["ordinal"]) == expected
    assert not list(tmp_path.glob("segmint-scratch-*"))


@pytest.mark.long
def test_processes_measure_the_same(small_dataset: Path, tmp_path: Path) -> None:
    folder = pack(loosen(small_dataset, tmp_path / "loose"), tmp_path / "packed", tars=3)
    with open_tables(location_of(folder), alone_s=0) as tables, open_tables(location_of(small_dataset)) as ours:
        same(tables, ours)
        assert tables.query("SELECT DISTINCT shard FROM masks ORDER BY shard").num_rows == 3


def test_what_a_json_does_not_have_is_not_held_against_it(small_dataset: Path, tmp_path: Path) -> None:
    def strip(document: Document) -> None:
        document["annotations"] = [{"segmentation": mask["segmentation"]} for mask in document["annotations"]]
        document["image"] = {}

    folder = loosen(small_dataset, tmp_path / "loose", strip)
    with open_tables(location_of(folder)) as tables, open_tables(location_of(small_dataset)) as ours:
        assert tables.foreign is not None
        assert list(tables.foreign.findings) == []
        shapes = "SELECT area, bbox, concavity, center_x FROM masks ORDER BY ALL"
        assert tables.query(shapes).to_pylist() == ours.query(shapes).to_pylist()
        unknown = tables.query("SELECT DISTINCT predicted_iou, stability_score, crop_box FROM masks").to_pylist()
        assert unknown == [{"predicted_iou": None, "stability_score": None, "crop_box": None}]
        sizes = "SELECT width, height FROM images ORDER BY ALL"
        assert tables.query(sizes).to_pylist() == ours.query(sizes).to_pylist()


def first_mask(key: str, value: object) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        document["annotations"][0][key] = value

    return change


def narrow(document: Document) -> None:
    document["annotations"][0]["bbox"][2] -= 1


def counts_of_another_size(document: Document) -> None:
    document["annotations"][0]["segmentation"]["counts"] = [5, 6, 7]


def taller(document: Document) -> None:
    document["annotations"][0]["segmentation"]["size"][0] += 1


FAULTS: dict[str, tuple[Callable[[Path], None], Code]] = {
    "no JSON text": (lambda path: path.write_text("{"), Code.BAD_JSON),
    "another JSON": (lambda path: path.write_text("[1, 2]"), Code.BAD_JSON),
    "nested": (lambda path: path.write_text("[" * 100_000), Code.BAD_JSON),
    "no JSON": (lambda path: path.unlink(), Code.MISSING_PAIR),
    "no JPEG": (lambda path: path.with_suffix(".jpg").unlink(), Code.MISSING_PAIR),
    "no picture": (lambda path: path.with_suffix(".jpg").write_bytes(b"GIF89a"), Code.BAD_JPEG),
    "another picture": (lambda path: shutil.copy(path.parent / "other.bin", path.with_suffix(".jpg")), Code.JPEG_SIZE),
    "area": (lambda path: spoil(path, first_mask("area", 7)), Code.MASK_AREA),
    "box": (lambda path: spoil(path, narrow), Code.MASK_BOX),
    "run lengths": (lambda path: spoil(path, counts_of_another_size), Code.BAD_RLE),
    "no numbers": (
        lambda path: spoil(path, first_mask("segmentation", {"size": [1, 1], "counts": [-1]})),
        Code.BAD_RLE,
    ),
    "polygons": (lambda path: spoil(path, first_mask("segmentation", [[1, 2, 3, 4, 5, 6]])), Code.BAD_RLE),
    "size": (lambda path: spoil(path, taller), Code.RLE_SIZE),
    "score": (lambda path: spoil(path, first_mask("stability_score", float("nan"))), Code.SCORE_RANGE),
    "crop": (lambda path: spoil(path, first_mask("crop_box", [0, 0, 1e6, 1])), Code.CROP_OUTSIDE),
    "point": (lambda path: spoil(path, first_mask("point_coords", [[-1, 0]])), Code.POINT_OUTSIDE),
    "number of a mask": (
        lambda path: spoil(path, lambda d: first_mask("id", d["annotations"][1]["id"])(d)),
        Code.ROW_IDENTITY,
    ),
    "number of an image": (lambda path: spoil(path, lambda d: d["image"].update(image_id=1)), Code.ROW_IDENTITY),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_finding_that_names_its_file(small_dataset: Path, tmp_path: Path, fault: str) -> None:
    folder = loosen(small_dataset, tmp_path / "loose")
    with open_tables(location_of(folder)) as tables:
        row = tables.query("SELECT id, image_id FROM images WHERE masks > 1 AND id > 1 ORDER BY id").to_pylist()[0]
        masks = tables.query("SELECT count(*) AS n FROM masks").to_pylist()[0]["n"]
    from PIL import Image

    Image.new("RGB", (33, 44)).save(folder / "other.bin", "JPEG")
    plant, code = FAULTS[fault]
    plant(folder / f"{row['image_id']}.json")
    with open_tables(location_of(folder)) as tables:
        assert tables.foreign is not None
        findings = list(tables.foreign.findings)
        assert [finding.code for finding in findings] == [code]
        if code is not Code.ROW_IDENTITY:
            assert findings[0].file.startswith(f"{row['image_id']}."), findings[0].line()
        known = tables.query("SELECT id FROM images").column("id").to_pylist()
        number = 1 if fault == "number of an image" else row["id"]
        assert findings[0].image == (number if number in known else None), findings[0].line()
        left = tables.query("SELECT count(*) AS n FROM masks").to_pylist()[0]["n"]
        if code in {Code.BAD_RLE, Code.RLE_SIZE}:
            assert left == masks - 1
        elif code is not Code.BAD_JSON and fault != "no JSON":
            assert left == masks


def test_a_tar_that_ends_early_is_a_finding_and_the_rest_is_read(small_dataset: Path, tmp_path: Path) -> None:
    folder = pack(loosen(small_dataset, tmp_path / "loose"), tmp_path / "packed")
    path = folder / "part_0.tar"
    path.write_bytes(path.read_bytes()[: 3 << 10])
    with open_tables(location_of(folder)) as tables:
        assert tables.foreign is not None
        assert Code.BAD_TAR in tables.foreign.findings
        assert tables.query("SELECT DISTINCT shard FROM images").to_pylist() == [{"shard": 1}]


def test_files_of_other_people_are_passed_over(small_dataset: Path, tmp_path: Path) -> None:
    folder = loosen(small_dataset, tmp_path / "loose")
    (folder / "info.json").write_text('{"made by": "us"}')
    (folder / "README.md").write_text("hello")
    with open_tables(location_of(folder)) as tables:
        assert tables.foreign is not None
        assert list(tables.foreign.findings) == []


def test_a_shard_that_is_not_there_is_empty_and_the_others_stay(small_dataset: Path, tmp_path: Path) -> None:
    with open_tables(location_of(loosen(small_dataset, tmp_path / "loose"))) as tables:
        count = "SELECT count(*) AS n FROM masks"
        whole = tables.query(count)
        assert tables.query_shard(9, "masks", count).to_pylist() == [{"n": 0}]
        assert tables.query_shard(0, "masks", count).equals(whole)
        assert tables.query(count).equals(whole)


def test_where_nothing_stands_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither dataset"):
        open_tables(location_of(tmp_path), scratch=tmp_path)
    with pytest.raises(UsageError, match="Check the path"):
        open_tables(location_of(tmp_path / "absent"), scratch=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.s3
def test_a_prefix_in_s3_is_measured(
    small_dataset: Path, tmp_path: Path, s3_bucket: str, s3_options: dict[str, dict[str, str]]
) -> None:
    storage, uri = Storage(s3_options), f"s3://{s3_bucket}/foreign"
    loose = loosen(small_dataset, tmp_path / "loose")
    paths = sorted(loose.iterdir())
    packed = tmp_path / "half"
    packed.mkdir()
    for path in paths[:4]:
        shutil.move(path, packed / path.name)
    for path in [*sorted(loose.iterdir()), *sorted(pack(packed, tmp_path / "packed", tars=1).iterdir())]:
        storage.put_file(f"{uri}/below/{path.name}", path)
    with open_tables(Location(storage, uri)) as tables, open_tables(location_of(small_dataset)) as ours:
        same(tables, ours)
        assert tables.foreign is not None
        assert list(tables.foreign.findings) == []
        ordinals = tables.query("SELECT ordinal FROM images").column("ordinal").to_pylist()
        assert all((read_jpeg(tables, ordinal) or b"").startswith(b"\xff\xd8") for ordinal in ordinals)
