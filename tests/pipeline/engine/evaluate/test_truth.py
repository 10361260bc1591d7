"""What evaluations take as truth, from datasets and from files of others, odd ones included."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segmint.infra.errors import UsageError
from segmint.infra.storage.storage import Storage
from segmint.operators.annotations.image import encode_mask
from segmint.operators.evaluate.settings import TruthSelection
from segmint.operators.images import JpegDecoder
from segmint.pipeline.engine.evaluate.result import EvaluationSubject
from segmint.pipeline.engine.evaluate.run import TruthOptions, open_truths
from segmint.pipeline.engine.evaluate.truth import Decoders, Truth, TruthImage, UnreadableTruthError
from tests.support.applied_columns import apply_column, means
from tests.support.committed import masks, row_of, write_dataset
from tests.support.locations import location_of


def open_one(*targets: Path, columns: tuple[str, ...] = (), **options: Any) -> Truth:
    (truth,) = open_truths(TruthOptions(tuple(map(str, targets)), **options), Storage(), columns)
    return truth


def read(truth: Truth) -> dict[str, TruthImage | str]:
    """Each image by name, or why it cannot be read."""
    found: dict[str, TruthImage | str] = {}
    with JpegDecoder(own=True) as own, JpegDecoder(own=False, processes=1) as foreign:
        for part in truth.parts:
            for pending in part.pending():
                try:
                    found[pending.name] = pending.load(Decoders(own, foreign))
                except UnreadableTruthError as error:
                    found[pending.name] = str(error)
    return found


def drawn_by_people(ordinal: int, refused: bool) -> dict[str, Any]:
    """The first mask of every second image is manual, with a label; all others are the model's."""
    row = row_of(ordinal, refused)
    for place, mask in enumerate(row.get("masks", [])):
        mask["source"] = "manual" if place == 0 and ordinal % 2 == 0 else "automatic"
        mask["label"] = "square" if place == 0 else None
    return {**row, "country": "NL"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards; images 1, 2, 4, 5, of which 1 and 5 have a manual mask."""
    folder = tmp_path_factory.mktemp("truth") / "dataset"
    write_dataset(location_of(folder), shards=2, make_row=drawn_by_people)
    return folder


def test_only_the_selected_images_of_a_dataset(dataset: Path, tmp_path: Path) -> None:
    truth = open_one(dataset, select="id > 1")
    assert (truth.images, list(read(truth))) == (1, ["sa_5.jpg"])
    assert truth.facts["select"] == "id > 1"
    everything = open_one(dataset, select="id <> 2", chosen=TruthSelection.ALL)
    assert list(read(everything)) == ["sa_1.jpg", "sa_4.jpg", "sa_5.jpg"]
    with pytest.raises(UsageError, match="has no annotated masks"):
        open_one(dataset, select="id = 2")
    (tmp_path / "truth.json").write_text("{}")
    with pytest.raises(UsageError, match="--select chooses images of datasets"):
        open_one(tmp_path / "truth.json", select="id = 2", images=(str(tmp_path),))


def test_a_datasets_human_masks_in_released_pixels(dataset: Path) -> None:
    truth = open_one(dataset, columns=("country",))
    assert (truth.kind, truth.images, truth.skipped) == ("dataset", 2, [])
    assert (truth.facts["truth"], truth.facts["dataset"]) == ("human", "small")
    images = read(truth)
    assert list(images) == ["sa_1.jpg", "sa_5.jpg"]
    image = images["sa_5.jpg"]
    assert isinstance(image, TruthImage)
    assert (image.image_id, image.size, image.columns["country"]) == ("image-4", (60, 80), "NL")
    (mask,) = image.masks
    assert (mask.id, mask.label, mask.source, mask.area) == (50_000, "square", "manual", 600)
    assert mask.rle == encode_mask(masks(4)[0])
    assert np.abs(image.pixels[15:25, 25:45].astype(int) - 250).max() < 12


def test_automatic_masks_and_all_masks(dataset: Path) -> None:
    counts = {}
    for chosen in TruthSelection:
        counts[chosen] = [len(image.masks) for image in read(open_one(dataset, chosen=chosen)).values()]
    assert counts == {
        TruthSelection.HUMAN: [1, 1],
        TruthSelection.AUTOMATIC: [1, 2, 2, 1],
        TruthSelection.ALL: [2, 2, 2, 2],
    }


def test_what_a_dataset_does_not_have_is_an_error_that_says_what_to_do(dataset: Path, tmp_path: Path) -> None:
    write_dataset(location_of(tmp_path / "automatic"), shards=1)
    with pytest.raises(UsageError, match=r"has no annotated masks.*segmint import.*--truth automatic"):
        open_one(tmp_path / "automatic")
    with pytest.raises(UsageError, match=r"have no column 'colour' with one value each.*country"):
        open_one(dataset, columns=("colour",))


def test_a_field_of_a_column_that_only_some_shards_have(dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dataset, tmp_path / "copy")
    manifest = json.loads((copy / "dataset.json").read_text())
    manifest["config"]["release"] = {"format": "images"}
    (copy / "dataset.json").write_text(json.dumps(manifest))
    apply_column(location_of(copy), means(), select="id > 3")
    images = read(open_one(copy, columns=("stage_means.masks",)))
    assert {name: image.columns["stage_means.masks"] for name, image in images.items()} == {
        "sa_1.jpg": None,
        "sa_5.jpg": 2,
    }
    for name in ("stage_means", "stage_means.colors", "hashes"):
        with pytest.raises(UsageError, match=rf"no column '{name}' with one value each.*stage_means\.masks"):
            open_one(copy, columns=(name,))


def test_a_damaged_shard_costs_only_itself(dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dataset, tmp_path / "copy")
    (table,) = (copy / "masks").glob("sa_000000-*")
    table.write_bytes(b"junk")
    truth = open_one(copy)
    assert list(read(truth)) == ["sa_5.jpg"]
    (skipped,) = truth.skipped
    assert (skipped.where, "not a readable Parquet file" in skipped.why) == ("shard 0", True)


SQUARE = np.zeros((30, 40), bool)
SQUARE[5:20, 10:30] = True


def coco_file(folder: Path, *names: str, annotations: list[dict[str, Any]] | None = None) -> Path:
    images = [{"id": number, "file_name": name, "height": 30, "width": 40} for number, name in enumerate(names)]
    rle = encode_mask(SQUARE)
    segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
    if annotations is None:
        annotations = [{"id": 7 + n, "image_id": n, "segmentation": segmentation} for n in range(len(names))]
    file = folder / "masks.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    return file


def save(path: Path, shape: tuple[int, int] = (30, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*shape, 3), 90, np.uint8)).save(path)


@pytest.mark.usefixtures("processes")
def test_a_coco_file_with_its_odd_images(tmp_path: Path) -> None:
    pictures = tmp_path / "images"
    for name in ("sub/good.png", "twice.png"):
        save(pictures / name)
    save(pictures / "turned.png", (40, 30))
    (pictures / "broken.jpg").write_bytes(b"\xff\xd8\xff junk")
    names = ("sub/good.png", "turned.png", "broken.jpg", "missing.png", "../out.png", "twice.png", "twice.png")
    truth = open_one(coco_file(tmp_path, *names), images=(str(pictures),))
    assert [(each.where, each.why) for each in truth.skipped] == [
        ("twice.png", "several images in the file have this name")
    ] * 2
    images = read(truth)
    good = images.pop("sub/good.png")
    assert isinstance(good, TruthImage)
    assert (good.image_id, [mask.id for mask in good.masks], good.size) == ("0", [7], (30, 40))
    assert "its masks are 40 x 30 pixels, but the upright image is 30 x 40" in str(images["turned.png"])
    assert "can't be decoded" in str(images["broken.jpg"])
    assert "no such image in" in str(images["missing.png"])
    assert "can't be read" in str(images["../out.png"])


def test_a_coco_file_without_any_mask(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    boxes = [{"id": 1, "image_id": 0, "bbox": [1, 2, 3, 4]}]
    with pytest.raises(UsageError, match=r"no masks to evaluate on in 1 image\n.*mask 1: it has a box but no mask"):
        open_one(coco_file(tmp_path, "a.png", annotations=boxes), images=(str(tmp_path),))


@pytest.mark.usefixtures("processes")
def test_label_maps_beside_images(tmp_path: Path) -> None:
    labels = np.zeros((30, 40), np.uint8)
    labels[2:9, 3:8], labels[20:, :] = 4, 255
    for stem in ("a", "b", "lonely"):
        save(tmp_path / "maps" / f"{stem}.png")
        Image.fromarray(labels).save(tmp_path / "maps" / f"{stem}.png")
    save(tmp_path / "images/a.jpg")
    save(tmp_path / "images/b.jpg", (30, 41))
    truth = open_one(tmp_path / "maps", images=(str(tmp_path / "images"),), ignore=(255,))
    assert [(each.where, "no image with this name" in each.why) for each in truth.skipped] == [("lonely.png", True)]
    images = read(truth)
    image = images["a.jpg"]
    assert isinstance(image, TruthImage)
    assert [(mask.id, mask.label, mask.area) for mask in image.masks] == [(4, "4", 35)]
    assert image.label_map is not None
    np.testing.assert_array_equal(image.label_map, labels)
    assert (image.ignore, image.image_id) == (frozenset([255]), "a")
    assert images["b.jpg"] == "its masks are 40 x 30 pixels, but the upright image is 41 x 30"


@pytest.mark.parametrize(
    ("targets", "images", "why"),
    [
        (["nowhere"], [], "no such dataset, COCO file or folder"),
        (["folder"], [], "--images"),
        (["folder"], ["a", "b"], "--images was given 2 times for 1"),
        (["folder"], ["folder"], "neither a dataset, nor a COCO file"),
        (["maps"], ["folder"], "no label map in .* matches an image"),
    ],
)
def test_what_is_no_truth_is_an_error(tmp_path: Path, targets: list[str], images: list[str], why: str) -> None:
    (tmp_path / "folder").mkdir()
    save(tmp_path / "maps/a.png")
    with pytest.raises(UsageError, match=why):
        open_one(*(tmp_path / name for name in targets), images=tuple(str(tmp_path / name) for name in images))


def test_an_answer_has_the_number_of_a_files_images_and_their_folder(tmp_path: Path) -> None:
    save(tmp_path / "images/a.png")
    options = TruthOptions((str(coco_file(tmp_path, "a.png")),), images=(str(tmp_path / "images"),))
    (truth,) = open_truths(options, Storage())
    (found,) = EvaluationSubject("points", (truth,), (), "cpu", 1, 1, (), 0.0).to_dict()["truth"]
    assert (found["images"], found["image_folder"]) == (1, str(tmp_path / "images"))


def test_an_answer_has_the_place_of_a_dataset_and_its_own_name(dataset: Path) -> None:
    (found,) = EvaluationSubject("points", (open_one(dataset),), (), "cpu", 1, 1, (), 0.0).to_dict()["truth"]
    assert (found["name"], found["dataset"]) == (str(dataset), "small")
