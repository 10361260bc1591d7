"""Parquet for `datasets`: pyarrow and Pillow read every mask back. `make test-interop` opens it with `datasets`."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco

from segmint.catalogs.dataset.reader import Dataset
from segmint.catalogs.dataset.versions import VersionName
from segmint.pipeline.export.categories import UNLABELED
from segmint.pipeline.export.export import ExportOptions, export_dataset
from segmint.pipeline.export.formats import Format
from segmint.pipeline.export.hf import HuggingFaceWriter, schema_of
from tests.support.committed import write_dataset
from tests.support.locations import location_of


@pytest.fixture(scope="module")
def exported(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small real dataset, exported."""
    output = tmp_path_factory.mktemp("hf") / "out"
    export_dataset(location_of(small_dataset), ExportOptions(Format.HF), location_of(output))
    return output


def test_every_mask_is_read_back_equal(exported: Path, small_dataset: Path) -> None:
    assert sorted(path.name for path in exported.rglob("*") if path.is_file()) == [
        "README.md",
        "segmint-files.jsonl",
        "train-00000.parquet",
    ]
    rows = pq.read_table(exported / "data/train-00000.parquet").to_pylist()
    for row, sample in zip(rows, Dataset.open(location_of(small_dataset)), strict=True):
        assert (row["id"], row["image"]["bytes"], row["license"]) == (sample.id, sample.jpeg, sample.row["license"])
        for picture, value, mask in zip(row["masks"], row["objects"], sample.masks, strict=True):
            image = Image.open(io.BytesIO(picture["bytes"]))
            assert (image.mode, value["id"], value["area"]) == ("1", mask.id, mask.area)
            np.testing.assert_array_equal(np.asarray(image), mask.mask)
            np.testing.assert_array_equal(coco.decode(value).astype(bool), mask.mask)


def test_the_card_names_the_files_and_the_licenses(exported: Path) -> None:
    _, header, text = (exported / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    front = yaml.safe_load(header)
    (config,) = front["configs"]
    ((split),) = config["data_files"]
    assert split["split"] == "train"
    assert [path.name for path in exported.glob(split["path"])] == ["train-00000.parquet"]
    assert front["license"] == ["cc0-1.0"]
    assert "dataset_digest: `sha256:" in text


def test_rows_go_to_groups_and_files_of_a_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(location_of(tmp_path / "small"), shards=4)
    dataset = Dataset.open(location_of(tmp_path / "small"))
    samples = list(dataset)
    each = len(samples[0].jpeg or b"")
    # Two images a group, four a file: of eight images the last file is full as the last image comes.
    version = VersionName("0" * 64, None)
    monkeypatch.setattr("segmint.pipeline.export.hf.GROUP_BYTES", 2 * each)
    monkeypatch.setattr("segmint.pipeline.export.hf.FILE_BYTES", 4 * each)
    writer = HuggingFaceWriter(tmp_path, dataset.manifest, version, True, UNLABELED)
    files: dict[str, Path] = {}
    for sample in samples:
        files |= writer.add(sample)
    assert list(files) == ["data/train-00000.parquet", "data/train-00001.parquet"]
    assert list(writer.finish()) == ["README.md"]
    opened = [pq.ParquetFile(path) for path in files.values()]
    assert [[file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] for file in opened] == [
        [2, 2]
    ] * 2
    assert [row["id"] for file in opened for row in file.read(["id"]).to_pylist()] == [s.id for s in samples]


def test_without_images_there_is_no_column_of_them(tmp_path: Path) -> None:
    write_dataset(location_of(tmp_path / "small"), shards=1)
    options = ExportOptions(Format.HF, with_images=False)
    done = export_dataset(location_of(tmp_path / "small"), options, location_of(tmp_path / "out"))
    schema = pq.read_schema(tmp_path / "out/data/train-00000.parquet")
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == schema.names == schema_of(False, UNLABELED).names
    assert "image" not in features
    assert features["masks"] == [{"_type": "Image"}]
    assert features["objects"][0]["size"] == [{"dtype": "int32", "_type": "Value"}]
    assert done.pictures == 0


def test_a_dataset_without_images_has_an_empty_file(tmp_path: Path) -> None:
    write_dataset(location_of(tmp_path / "small"), shards=1, refuse=3)
    export_dataset(location_of(tmp_path / "small"), ExportOptions(Format.HF), location_of(tmp_path / "out"))
    table = pq.read_table(tmp_path / "out/data/train-00000.parquet")
    assert (table.num_rows, table.schema.field("image").type) == (0, pa.struct({"bytes": "binary", "path": "string"}))


def test_a_name_with_markup_stays_text(tmp_path: Path) -> None:
    manifest = write_dataset(location_of(tmp_path / "small"), shards=1)
    named = manifest.model_copy(update={"name": "a`\n# <b>b</b>: [x](y)"})
    writer = HuggingFaceWriter(tmp_path, named, VersionName("0" * 64, None), True, UNLABELED)
    text = writer.finish()["README.md"].read_text(encoding="utf-8")
    assert "\n# `a # <b>b</b>: [x](y)`\n" in text
    assert yaml.safe_load(text.split("---\n")[1])["pretty_name"] == named.name


def test_marks_that_turn_text_are_not_in_the_card(tmp_path: Path) -> None:
    manifest = write_dataset(location_of(tmp_path / "small"), shards=1)
    weights = manifest.weights.model_copy(update={"name": "vit\u2066`b"})
    named = manifest.model_copy(update={"name": "caf\u00e9\u202egpj", "weights": weights})
    text = (
        HuggingFaceWriter(tmp_path, named, VersionName("0" * 64, None), True, UNLABELED)
        .finish()["README.md"]
        .read_text("utf-8")
    )
    assert "\n# `caf\u00e9\ufffdgpj`\n" in text
    assert "\n- model: `vit\ufffd b`\n" in text
    assert not {"\u202e", "\u2066"} & set(text)
    assert yaml.safe_load(text.split("---\n")[1])["pretty_name"] == named.name
