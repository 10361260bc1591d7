"""Label maps and one-bit PNGs: each pixel is of the smallest mask, and each mask is described."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segmint.catalogs.dataset.outputs import read_notes
from segmint.infra.errors import UsageError
from segmint.model.automatic.rle import encode_runs
from segmint.operators.annotations.folder import read_folder
from segmint.operators.annotations.label_maps import paint_label_map, read_label_map
from segmint.pipeline.export import export as exporting
from segmint.pipeline.export.export import ExportOptions, export_dataset
from segmint.pipeline.export.formats import Format, Level
from tests.support.committed import mask_row, row_of, write_dataset
from tests.support.locations import location_of

HEIGHT, WIDTH = 60, 80


def box(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


PLATE, CUP, HANDLE, BESIDE = box(5, 5, 65, 55), box(10, 10, 40, 40), box(12, 12, 16, 30), box(50, 0, 80, 30)
MASKS = [CUP, PLATE, HANDLE, BESIDE, CUP]
CONTAINERS = [10_001, None, 10_000, None, 10_001]


def row(ordinal: int, refused: bool) -> dict[str, Any]:
    """The first image has masks inside others, one of them twice; the second one has none."""
    made = row_of(ordinal, refused)
    if not refused:
        masks = MASKS if ordinal == 0 else []
        made["masks"] = [
            mask_row(mask) | {"container": container} for mask, container in zip(masks, CONTAINERS, strict=False)
        ]
        for mask in made["masks"][:1]:
            mask |= {"label": "cup", "label_source": "import"}
    return made


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pixels") / "dataset"
    write_dataset(location_of(folder), shards=1, make_row=row)
    return folder


def export(dataset: Path, output: Path, format: Format, **options: Any) -> list[dict[str, Any]]:
    """The description of each image's masks."""
    export_dataset(location_of(dataset), ExportOptions(format, **options), location_of(output))
    index = json.loads((output / "index.json").read_text("utf-8"))
    assert index["dataset"]["dataset_digest"].startswith("sha256:")
    documents = [json.loads((output / image["json"]).read_text("utf-8")) for image in index["images"]]
    for image, document in zip(index["images"], documents, strict=True):
        assert {**document["image"], "masks": image["masks"], "json": image["json"]} == image
    return documents


def numbers_of(output: Path, document: dict[str, Any]) -> np.ndarray:
    path = output / document["label_map"]
    with Image.open(path) as picture:
        assert (picture.mode, picture.size) == ("I;16", (WIDTH, HEIGHT))
    return read_label_map(path.read_bytes(), path.name, (HEIGHT, WIDTH))


def test_the_smallest_mask_is_on_top_and_of_two_equal_ones_the_later(dataset: Path, tmp_path: Path) -> None:
    one, two = export(dataset, tmp_path / "out", Format.LABEL_MAPS)
    numbers = numbers_of(tmp_path / "out", one)
    expected = np.zeros((HEIGHT, WIDTH), int)
    for number in (2, 1, 5, 4, 3):  # 3,000, 900, 900, 900, and 72 pixels
        expected[MASKS[number - 1]] = number
    np.testing.assert_array_equal(numbers, expected)
    assert [(each["value"], each["id"]) for each in one["masks"]] == [(n + 1, 10_000 + n) for n in range(5)]
    for each in one["masks"]:
        shown = (numbers == each["value"]).sum() / MASKS[each["value"] - 1].sum()
        assert (each["area"], each["visible"]) == (MASKS[each["value"] - 1].sum(), pytest.approx(shown, abs=1e-6))
    assert [each["visible"] for each in one["masks"]][0::2] == [0, 1, 0.92]
    assert [each["category"] for each in one["masks"]] == ["cup", *["object"] * 4]
    assert two["masks"] == []
    assert not numbers_of(tmp_path / "out", two).any()


def test_masks_in_others_may_be_left_out(dataset: Path, tmp_path: Path) -> None:
    one, _ = export(dataset, tmp_path / "out", Format.LABEL_MAPS, level=Level.WHOLE)
    assert [(each["value"], each["id"]) for each in one["masks"]] == [(1, 10_001), (2, 10_003)]
    assert set(np.unique(numbers_of(tmp_path / "out", one)).tolist()) == {0, 1, 2}
    with pytest.raises(UsageError, match=r"index\.json already exists"):
        export(dataset, tmp_path / "out", Format.LABEL_MAPS)
    with pytest.raises(UsageError, match="--level only applies to the formats label-maps and png-masks"):
        export(dataset, tmp_path / "coco", Format.COCO, level=Level.WHOLE)
    assert not (tmp_path / "coco").exists()
    assert "export --format label-maps --level whole" in {note.command for note in read_notes(location_of(dataset))}


def test_each_mask_is_a_file_with_one_bit_per_pixel(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = export(dataset, tmp_path / "out", Format.PNG_MASKS)
    for each, mask in zip(one["masks"], MASKS, strict=True):
        with Image.open(tmp_path / "out" / each["png"]) as picture:
            assert picture.mode == "1"
            np.testing.assert_array_equal(np.asarray(picture), mask)
    assert two["masks"] == []
    monkeypatch.setattr(exporting, "MOST_FILES", 4)
    with pytest.raises(UsageError, match=r"a file for each of 5 masks, .*--select, --sample, or --shards"):
        export(dataset, tmp_path / "many", Format.PNG_MASKS)
    assert not (tmp_path / "many").exists()
    assert len(export(dataset, tmp_path / "drawn", Format.PNG_MASKS, sample=2)) == 2
    assert len(export(dataset, tmp_path / "selected", Format.PNG_MASKS, select="masks > 0")) == 1


@pytest.mark.parametrize("folder", ["", "masks"])
def test_a_label_map_is_not_imported(dataset: Path, tmp_path: Path, folder: str) -> None:
    export(dataset, tmp_path / "out", Format.LABEL_MAPS)
    with pytest.raises(UsageError, match="belongs to a label map of `segmint export`, in which masks cover parts of"):
        list(read_folder(location_of(tmp_path / "out" / folder), len))


def test_ten_thousand_masks_have_their_numbers() -> None:
    size = (100, 100)
    masks = [vars(encode_runs(np.array([place]), np.array([place + 1]), size)) for place in range(10_000)]
    labels = paint_label_map(masks, size)
    assert labels.dtype == np.uint16
    np.testing.assert_array_equal(labels.T.reshape(-1), np.arange(1, 10_001))
