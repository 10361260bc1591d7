"""Labels in the formats of other tools, as the tools or their file formats read them back."""

import csv
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest
import yaml
from label_studio_sdk.label_interface import LabelInterface
from pycocotools.coco import COCO

from segmint.catalogs.dataset.reader import Dataset
from segmint.pipeline.export.export import ExportOptions, export_dataset
from segmint.pipeline.export.formats import Format
from tests.support.committed import write_dataset
from tests.support.locations import location_of
from tests.support.mask_labels import LABELS, MODEL, PROMPTS, labeled_row, labels_of, prompted_row

NAMES = ["object", *sorted(LABELS)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of two images whose masks have labels."""
    folder = tmp_path_factory.mktemp("labels") / "labeled"
    write_dataset(location_of(folder), shards=3, make_row=labeled_row)
    return folder


@pytest.fixture(scope="module")
def expected(dataset: Path) -> dict[int, str]:
    """The name of each mask's category, by its id."""
    return {id: label or "object" for id, label in labels_of(Dataset.open(location_of(dataset))).items()}


def export(dataset: Path, output: Path, format: Format, **options: Any) -> Path:
    export_dataset(location_of(dataset), ExportOptions(format, with_images=False, **options), location_of(output))
    return output


@pytest.mark.parametrize(("format", "file"), [(Format.COCO, "instances.json"), (Format.LVIS, "lvis.json")])
def test_coco_has_a_category_for_each_label(
    dataset: Path, expected: dict[int, str], tmp_path: Path, format: Format, file: str
) -> None:
    loaded = COCO(export(dataset, tmp_path / "out", format) / file)
    assert [loaded.cats[number]["name"] for number in range(1, 8)] == NAMES
    assert {id: loaded.cats[each["category_id"]]["name"] for id, each in loaded.anns.items()} == expected
    scored = {
        id: (each["label_score"], each["label_source"]) for id, each in loaded.anns.items() if "label_score" in each
    }
    assert set(scored.values()) == {(0.25, MODEL)}
    assert {loaded.anns[id].get("label_source") for id, name in expected.items() if name == "object"} == {None}


def test_lvis_counts_images_and_masks(dataset: Path, expected: dict[int, str], tmp_path: Path) -> None:
    document = json.loads((export(dataset, tmp_path / "out", Format.LVIS) / "lvis.json").read_text("utf-8"))
    for category in document["categories"]:
        masks = [id for id, name in expected.items() if name == category["name"]]
        assert (category["instance_count"], category["image_count"]) == (
            len(masks),
            len({id // 10_000 for id in masks}),
        )
        assert (category["frequency"], category["synonyms"]) == ("r", [category["name"]])
    for image in document["images"]:
        assert image["coco_url"] == f"images/{image['file_name']}"
        own = {each["category_id"] for each in document["annotations"] if each["image_id"] == image["id"]}
        assert (image["neg_category_ids"], set(image["not_exhaustive_category_ids"])) == ([], own)


@pytest.mark.parametrize("options", [{"sample": 2}, {"shards": (1, 2)}, {"sample": 1, "seed": 7}])
def test_ids_do_not_depend_on_what_is_exported(dataset: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    document = json.loads((export(dataset, tmp_path / "out", Format.COCO, **options) / "instances.json").read_text())
    assert [each["name"] for each in document["categories"]] == NAMES


def test_a_vocabulary_gives_the_ids(dataset: Path, expected: dict[int, str], tmp_path: Path) -> None:
    vocabulary = (*reversed(LABELS), "never seen", "object")
    output = export(dataset, tmp_path / "out", Format.YOLO, vocabulary=vocabulary)
    assert yaml.safe_load((output / "data.yaml").read_text("utf-8"))["names"] == dict(enumerate(vocabulary))


def test_yolo_has_a_class_for_each_label(dataset: Path, expected: dict[int, str], tmp_path: Path) -> None:
    output = export(dataset, tmp_path / "out", Format.YOLO)
    names = yaml.safe_load((output / "data.yaml").read_text("utf-8"))["names"]
    assert list(names.values()) == NAMES
    with (output / "left_out.csv").open(encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == []
    found = {}
    for path in output.glob("labels/*.txt"):
        for index, line in enumerate(path.read_text().splitlines()):
            found[int(path.stem[3:]) * 10_000 + index] = names[int(line.split()[0])]
    assert found == expected


def test_label_studio_has_an_interface_with_the_labels(dataset: Path, expected: dict[int, str], tmp_path: Path) -> None:
    output = export(dataset, tmp_path / "out", Format.LABEL_STUDIO)
    config = (output / "label_config.xml").read_text("utf-8")
    assert [each.get("value") for each in ElementTree.fromstring(config).iter("Label")] == NAMES
    interface = LabelInterface(config)
    assert interface.get_control("brush").labels == NAMES
    tasks = json.loads((output / "tasks.json").read_text("utf-8"))
    assert all(interface.validate_prediction(task["predictions"][0]) for task in tasks)
    regions = [region for task in tasks for region in task["predictions"][0]["result"]]
    assert {int(region["id"]): region["value"]["brushlabels"][0] for region in regions} == expected


def test_fiftyone_and_geojson_name_each_mask(dataset: Path, expected: dict[int, str], tmp_path: Path) -> None:
    output = export(dataset, tmp_path / "fiftyone", Format.FIFTYONE)
    samples = json.loads((output / "samples.json").read_text("utf-8"))["samples"]
    detections = [each for sample in samples for each in sample["masks"]["detections"]]
    assert {each["segmint_id"]: each["label"] for each in detections} == expected
    metadata = json.loads((output / "metadata.json").read_text("utf-8"))
    assert metadata["default_classes"] == NAMES
    assert "label_score" in json.dumps(metadata["sample_fields"])
    output = export(dataset, tmp_path / "geojson", Format.GEOJSON)
    features = [
        feature["properties"]
        for path in output.glob("masks/*.geojson")
        for feature in json.loads(path.read_text("utf-8"))["features"]
    ]
    assert {each["id"]: each["classification"]["name"] for each in features} == expected


def test_hugging_face_has_classes_and_labels(dataset: Path, expected: dict[int, str], tmp_path: Path) -> None:
    output = export(dataset, tmp_path / "out", Format.HF)
    table = pq.read_table(output / "data/train-00000.parquet")
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["objects"][0]["category"] == {"names": NAMES, "_type": "ClassLabel"}
    objects = [each for row in table.to_pylist() for each in row["objects"]]
    assert {each["id"]: NAMES[each["category"]] for each in objects} == expected
    assert {each["id"]: each["label"] or "object" for each in objects} == expected
    assert {each["label_score"] for each in objects if each["label_source"] == MODEL} == {0.25}
    assert "Masks have no class" not in (output / "README.md").read_text("utf-8")


def test_formats_with_a_place_for_prompts_contain_them(dataset: Path, tmp_path: Path) -> None:
    prompted = tmp_path / "prompted"
    write_dataset(location_of(prompted), shards=1, make_row=prompted_row)
    masks = [mask for sample in Dataset.open(location_of(prompted)) for mask in sample.masks]
    expected = {mask.id: [*PROMPTS] for mask in masks[::2]}

    folder = export(prompted, tmp_path / "coco", Format.COCO)
    entries = json.loads((folder / "instances.json").read_text("utf-8"))["annotations"]
    assert {each["id"]: each["prompts"] for each in entries if "prompts" in each} == expected

    folder = export(prompted, tmp_path / "geojson", Format.GEOJSON)
    collections = [json.loads(path.read_text("utf-8")) for path in folder.glob("masks/*.geojson")]
    properties = [feature["properties"] for collection in collections for feature in collection["features"]]
    assert {each["id"]: each["prompts"] for each in properties if "prompts" in each} == expected

    folder = export(prompted, tmp_path / "fiftyone", Format.FIFTYONE)
    samples = json.loads((folder / "samples.json").read_text("utf-8"))["samples"]
    detections = [each for sample in samples for each in sample["masks"]["detections"]]
    assert {each["segmint_id"]: each["prompts"] for each in detections if "prompts" in each} == expected
    assert '"prompts"' in (folder / "metadata.json").read_text("utf-8")

    folder = export(prompted, tmp_path / "hf", Format.HF)
    table = pq.read_table(folder / "data/train-00000.parquet")
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["objects"][0]["prompts"][0]["x"] == {"dtype": "float64", "_type": "Value"}
    objects = [each for row in table.to_pylist() for each in row["objects"]]
    without = dict.fromkeys(features["objects"][0]["prompts"][0])
    assert {each["id"]: each["prompts"] for each in objects if each["prompts"] is not None} == {
        id: [{**without, **prompt} for prompt in prompts] for id, prompts in expected.items()
    }

    for format in (Format.FIFTYONE, Format.HF):
        folder = export(dataset, tmp_path / f"{format}-without", format)
        assert not any(b"prompts" in path.read_bytes() for path in folder.rglob("*.*") if path.is_file())
