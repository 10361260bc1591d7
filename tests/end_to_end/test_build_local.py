"""A build on local files from start to end, the format of its output, and a second run."""

import io
import json
import re
import shutil
import tarfile
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image
from pycocotools import mask as coco_mask

from segmint.infra.storage.storage import Storage
from segmint.operators.rows import IMAGES, MASKS, REJECTS
from segmint.pipeline.building.dataset import open_or_create
from segmint.pipeline.config.config import load_config
from tests.support.builds import digests, segmint_here, write_config
from tests.support.built_fixtures import IN_TWOS, BuiltDataset

pytestmark = pytest.mark.ray


def shard_files(dataset: Path, kind: str) -> list[Path]:
    return sorted((dataset / kind).iterdir())


def test_the_accounting_adds_up(built: BuiltDataset) -> None:
    assert "license_not_allowed" in built.printed
    assert "not_found" in built.printed
    assert re.search(
        r"6 rows in [\d.]+ s: [\d.]+ images/s, [\d.]+ masks/s\nceiling .* theoretical peak of 1 x cpu \(",
        built.printed,
    )
    assert re.search(r"fp32, 1 thread, [\d.]+ GFLOP/s\): this run reached [\d.]+%", built.printed)
    busy = re.search(r"^busy      prepare (\d+)%, segment (\d+)% of their workers' time: ", built.printed, re.M)
    assert busy is not None
    assert 0 < min(map(int, busy.groups())) <= max(map(int, busy.groups())) <= 101
    commits = [json.loads(path.read_bytes()) for path in sorted((built.dataset / "commits").iterdir())]
    assert [commit["ordinals"] for commit in commits] == [[0, 2], [2, 4], [4, 6]]
    assert sum(commit["counts"]["images"] for commit in commits) == 4
    assert sum(commit["counts"]["rejected"] for commit in commits) == 2
    rejects = pq.ParquetDataset(shard_files(built.dataset, "rejects")).read().to_pylist()
    assert [(row["ordinal"], row["stage"], row["reason"]) for row in rejects] == [
        (2, "catalog", "license_not_allowed"),
        (5, "read", "not_found"),
    ]


def test_every_annotation_decodes_and_agrees_with_itself(built: BuiltDataset) -> None:
    masks = 0
    for path in shard_files(built.dataset, "shards"):
        with tarfile.open(path) as archive:
            names = archive.getnames()
            for name in (name for name in names if name.endswith(".json")):
                content = json.load(archive.extractfile(name))
                image = Image.open(io.BytesIO(archive.extractfile(name.replace(".json", ".jpg")).read()))
                assert image.size == (content["image"]["width"], content["image"]["height"])
                assert not image.getexif()
                for annotation in content["annotations"]:
                    decoded = coco_mask.decode(annotation["segmentation"])
                    assert decoded.shape == (image.height, image.width)
                    assert decoded.sum() == annotation["area"]
                    rows, columns = np.nonzero(decoded)
                    box = [columns.min(), rows.min(), np.ptp(columns), np.ptp(rows)]
                    assert box == annotation["bbox"]
                    assert annotation["id"] // 10_000 == content["image"]["image_id"]
                    masks += 1
    assert masks > 15


def test_the_tars_read_with_webdataset(built: BuiltDataset) -> None:
    urls = [str(path) for path in shard_files(built.dataset, "shards")]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple("jpg", "json"))
    assert [sample[1]["image"]["image_id"] for sample in samples] == [1, 2, 4, 5]
    assert samples[0][0].dtype == np.uint8


def test_the_parquet_reads_with_duckdb_and_has_the_documented_schema(built: BuiltDataset) -> None:
    for kind, schema in (("images", IMAGES), ("masks", MASKS), ("rejects", REJECTS)):
        for path in shard_files(built.dataset, kind):
            assert pq.read_schema(path).equals(schema), path
    images, masks, total = duckdb.sql(
        f"select count(*), sum(masks), (select count(*) from '{built.dataset}/masks/*.parquet') "
        f"from '{built.dataset}/images/*.parquet'"
    ).fetchall()[0]
    assert images == 4
    assert masks == total


def test_a_second_run_has_nothing_to_do_and_changes_nothing(built: BuiltDataset) -> None:
    before = digests(built.dataset)
    assert "nothing to do: all rows of " in segmint_here("build", built.config)
    assert digests(built.dataset) == before


def test_another_configuration_is_refused_with_its_keys(built: BuiltDataset) -> None:
    printed = segmint_here("build", built.config, "--set", "masks.points_per_side=4", check=2)
    assert "masks.points_per_side" in printed
    assert len(list((built.dataset / "commits").iterdir())) == 3


def test_another_catalog_is_refused(built: BuiltDataset, tmp_path: Path) -> None:
    catalog = tmp_path / "other.jsonl"
    catalog.write_text('{"uri": "photo_000.jpg", "license": "CC0-1.0"}\n')
    assert "catalog" in segmint_here("build", built.config, "--set", f"catalog={catalog}", check=2)


def test_a_machine_with_other_numerics_is_refused_before_anything_starts(built: BuiltDataset, tmp_path: Path) -> None:
    copy = tmp_path / "dataset"
    shutil.copytree(built.dataset, copy)
    (copy / "commits" / "000001.g1.json").unlink()
    manifest = json.loads((copy / "dataset.json").read_text())
    manifest["numerics"]["torch"] = "1.0"
    (copy / "dataset.json").write_text(json.dumps(manifest))
    printed = segmint_here("build", built.config, "--set", f"output={copy}", check=2)
    assert "instead of '1.0'" in printed
    assert "Traceback" not in printed


def test_a_folder_of_parquet_files_is_read_as_one_file(built: BuiltDataset, tmp_path: Path) -> None:
    """A build's catalog is equal byte for byte. One file says its license by its folder."""
    photos = tmp_path / "rows"
    shutil.copytree(built.catalog.parent, photos)
    rows = [json.loads(line) for line in (photos / "catalog.jsonl").read_text().splitlines()]
    (photos / "catalog.jsonl").unlink()
    license = rows[3].pop("license")
    for place, name in ((slice(0, 3), "a"), (slice(3, 4), f"license={license}/b"), (slice(4, 6), "z")):
        (photos / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows[place]), photos / f"{name}.parquet")
    (photos / "_SUCCESS").touch()
    dataset = tmp_path / "dataset"
    config = write_config(tmp_path / "build.yaml", f"{photos}/", dataset, **IN_TWOS)
    open_or_create(load_config(str(config)), Storage())
    assert digests(dataset / "catalog") == digests(built.dataset / "catalog")
    folder, file = (json.loads((each / "dataset.json").read_text()) for each in (dataset, built.dataset))
    assert {key for key in folder if folder[key] != file[key]} == {"catalog"}
    (ours,), (theirs,) = folder["catalog"], file["catalog"]
    assert {key for key in ours if ours[key] != theirs[key]} == {"source_sha256"}
