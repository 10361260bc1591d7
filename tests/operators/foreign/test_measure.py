"""A shard of foreign data becomes Parquet, and its pairs belong together."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from segmint.catalogs.findings import Code
from segmint.operators.foreign.layouts import JPEGS, find_shards
from segmint.operators.foreign.measure import IMAGES_PER_SHARD_LIMIT, MeasuredShard, measure_shard
from segmint.operators.rows import IMAGES, MASKS
from tests.operators.foreign.test_masks import annotation, square
from tests.support.locations import location_of


def measure(data: Path, folder: Path) -> list[MeasuredShard]:
    folder.mkdir()
    return [measure_shard(location_of(data), shard, folder) for shard in find_shards(location_of(data))]


def put(folder: Path, stem: str, comments: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / f"{stem}.jpg"
    Image.new("RGB", (40, 30)).save(path, "JPEG")
    data = path.read_bytes()
    comment = b"\xff\xfe\xff\xff" + bytes(65_533)
    path.write_bytes(data[:2] + comment * comments + data[2:])
    document = {"image": {"width": 40, "height": 30}, "annotations": [annotation(square())]}
    (folder / f"{stem}.json").write_text(json.dumps(document))


def test_tables_have_the_columns_of_a_dataset(tmp_path: Path) -> None:
    for index in range(20):
        put(tmp_path / "data", f"photo {index:02}")
    (measured,) = measure(tmp_path / "data", tmp_path / "out")
    schemas = {"images": IMAGES, "masks": MASKS, "jpegs": JPEGS}
    assert set(measured.files) == set(schemas)
    for kind, file in measured.files.items():
        table = pq.read_table(file.uri)
        assert table.schema.equals(schemas[kind])
        assert table.column("ordinal").to_pylist() == list(range(20))
    assert measured.images == 20
    assert measured.findings.total == 0
    images = pq.read_table(measured.files["images"].uri).to_pylist()
    assert [row["image_id"] for row in images[:2]] == ["photo 00", "photo 01"]
    assert images[7]["id"] == 8
    assert images[0]["statistics"]["coverage"] == 200 / 1200


def test_shards_never_share_ordinals(tmp_path: Path) -> None:
    put(tmp_path / "data", "a")
    (loose,) = find_shards(location_of(tmp_path / "data"))
    (tmp_path / "out").mkdir()
    later = measure_shard(location_of(tmp_path / "data"), replace(loose, shard=5), tmp_path / "out")
    row = pq.read_table(later.files["masks"].uri).to_pylist()[0]
    assert row["ordinal"] == 5 * IMAGES_PER_SHARD_LIMIT
    assert row["annotation_id"] == 5 * IMAGES_PER_SHARD_LIMIT * 10_000


def test_a_frame_behind_long_metadata_is_found(tmp_path: Path) -> None:
    put(tmp_path / "data", "a", comments=3)
    (measured,) = measure(tmp_path / "data", tmp_path / "out")
    assert measured.findings.total == 0


def test_a_name_that_is_no_text_and_a_file_that_vanishes(tmp_path: Path) -> None:
    put(tmp_path / "data", "a\udcff")
    put(tmp_path / "data", "b")
    shards = list(find_shards(location_of(tmp_path / "data")))
    (tmp_path / "data" / "b.json").unlink()
    (tmp_path / "out").mkdir()
    (measured,) = [measure_shard(location_of(tmp_path / "data"), shard, tmp_path / "out") for shard in shards]
    assert measured.findings.counts == {Code.MISSING_FILE: 1}
    assert pq.read_table(measured.files["images"].uri).column("image_id").to_pylist() == ["a?"]


def test_a_picture_that_is_cut_before_its_frame_is_a_finding(tmp_path: Path) -> None:
    put(tmp_path / "data", "a")
    path = tmp_path / "data" / "a.jpg"
    path.write_bytes(path.read_bytes()[:20])
    (measured,) = measure(tmp_path / "data", tmp_path / "out")
    assert measured.findings.counts == {Code.BAD_JPEG: 1}
    assert measured.images == 1
