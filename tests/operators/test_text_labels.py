"""Labels by CLIP or a TorchScript module: what they see, what they return, and what is refused."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from segmint.infra.errors import UsageError
from segmint.operators.custom.contract import StageRow, load_stage
from segmint.operators.images import decode_jpeg
from segmint.operators.text import ClipFolder, MaskLabels, crop_mask
from tests.support.clips import write_clip
from tests.support.described_rows import accepted_row, rectangle_mask

VOCABULARY = ["red circle", "blue square", "bar"]


class BrightestOfMask(nn.Module):
    """Scores each channel by its mean over the mask's pixels."""

    def forward(self, crops: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        inside = masks[:, None].float()
        return (crops * inside).sum(dim=(2, 3)) / inside.sum(dim=(2, 3)).clamp(min=1)


class TwoScores(nn.Module):
    def forward(self, crops: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        return crops.mean(dim=(2, 3))[:, :2]


class NotANumber(nn.Module):
    def forward(self, crops: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        return crops.mean(dim=(2, 3)) / 0.0 * 0.0


def saved(module: nn.Module, path: Path) -> Path:
    torch.jit.script(module).save(path)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


def labels_of(stage: Any, row: dict[str, Any]) -> list[dict[str, Any] | None]:
    (labeled,) = stage([StageRow(row)])
    return list(labeled.mask_values)


def row_of(ordinal: int = 0) -> dict[str, Any]:
    row = accepted_row(ordinal, masks=4)
    for mask in row["masks"]:
        mask |= {"label": None, "label_score": None, "label_source": None}
    return row


def test_clip_gives_each_mask_the_most_probable_text_of_its_crop(clip: Path) -> None:
    row = row_of()
    stage = MaskLabels(str(clip), VOCABULARY)
    found = labels_of(stage, row)
    model = ClipFolder.open(clip).load()
    texts = model.embed_texts([f"a photo of a {label}" for label in VOCABULARY])
    for mask, value in zip(row["masks"], found, strict=True):
        crop, pixels = crop_mask(decode_jpeg(row["release"]), mask, model.side)
        image = model.embed_crops(torch.from_numpy(crop).permute(2, 0, 1)[None], torch.from_numpy(pixels)[None])
        scores = (model.logit_scale * torch.cosine_similarity(image, texts)).softmax(0)
        assert value is not None
        assert value["label"] == VOCABULARY[int(scores.argmax())]
        assert abs(value["label_score"] - float(scores.max())) < 1e-4
        assert value["label_source"] == f"model:{MaskLabels.version(str(clip), VOCABULARY)}"


def test_only_masks_without_a_label_of_people_and_of_this_model_get_one(clip: Path) -> None:
    row, stage = row_of(), MaskLabels(str(clip), VOCABULARY)
    own = f"model:{MaskLabels.version(str(clip), VOCABULARY)}"
    sources = ["person", "import", own, f"model:{'0' * 64}"]
    for mask, source in zip(row["masks"], sources, strict=True):
        mask |= {"label": "x", "label_source": source}
    assert [value is None for value in labels_of(stage, row)] == [True, True, True, False]
    assert labels_of(stage, {**row, "masks": []}) == []


class RowOfPixels(StageRow):
    """A row whose image has exactly these pixels, which no JPEG has."""

    def __init__(self, columns: Any, pixels: np.ndarray) -> None:
        super().__init__(columns)
        self._pixels = pixels

    @property
    def image(self) -> np.ndarray:
        return self._pixels


def test_a_torchscript_module_sees_the_crop_and_the_pixels_of_the_mask(tmp_path: Path) -> None:
    path = saved(BrightestOfMask(), tmp_path / "module.pt")
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[:, :20, 2], pixels[:, 20:, 0] = 200, 100
    row = row_of()
    left, right = rectangle_mask(30, 40, 2, 3, 12, 18), rectangle_mask(30, 40, 0, 24, 30, 40)
    row["masks"] = [{**mask, "label": None, "label_source": None} for mask in (left, right)]
    (labeled,) = MaskLabels(str(path), VOCABULARY)([RowOfPixels(row, pixels)])
    assert [value["label"] for value in labeled.mask_values or () if value] == ["bar", "red circle"]
    scores = [value["label_score"] for value in labeled.mask_values or () if value]
    assert scores == pytest.approx([200 / 255, 100 / 255], abs=0.005)  # resampling overshoots at the border


def test_a_crop_is_a_square_around_the_mask_with_the_mean_color_outside_the_image() -> None:
    pixels = np.full((30, 40, 3), 7, np.uint8)
    crop, shown = crop_mask(pixels, rectangle_mask(30, 40, 0, 0, 20, 10), 30)  # 20 pixels high: a crop of 30 pixels
    assert crop.shape == (30, 30, 3)
    assert (crop[:5] == (123, 117, 104)).all()
    assert (crop[:, :10] == (123, 117, 104)).all()
    assert (crop[5:, 10:] == 7).all()
    expected = np.zeros((30, 30), bool)
    expected[5:25, 10:20] = True
    assert np.array_equal(shown, expected)
    larger, _ = crop_mask(pixels, rectangle_mask(30, 40, 0, 0, 20, 10), 64)
    assert larger.shape == (64, 64, 3)
    one = rectangle_mask(30, 40, 29, 39, 30, 40)
    assert crop_mask(pixels, one, 8)[1].any()
    tiny_in_large = np.zeros((900, 900, 3), np.uint8)
    wide = rectangle_mask(900, 900, 0, 0, 900, 900)
    assert crop_mask(tiny_in_large, wide, 32)[1].any()


def test_a_crop_around_a_long_mask_takes_little_memory() -> None:
    pixels, mask = np.full((64, 4000, 3), 200, np.uint8), rectangle_mask(64, 4000, 16, 40, 48, 3960)
    tracemalloc.start()
    try:
        crop, shown = crop_mask(pixels, mask, 32)  # 5,882 pixels
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()
    assert np.argwhere(shown).tolist() == [[y, x] for y in (15, 16) for x in range(5, 27)]
    assert (crop[shown] != (123, 117, 104)).any(axis=1).all()
    assert (crop[:15] == (123, 117, 104)).all()


def test_the_stage_declares_its_version_and_starts_by_its_name(clip: Path) -> None:
    arguments = {"model": str(clip), "vocabulary": VOCABULARY}
    spec = load_stage("segmint.operators.text.MaskLabels", arguments)
    assert (spec.name, spec.labels, spec.column, len(spec.version)) == ("label", True, None, 64)
    assert labels_of(spec.start(), row_of())[0] is not None
    others = [["blue square", "red circle", "bar"], VOCABULARY[:2]]
    assert len({spec.version, *(MaskLabels.version(str(clip), other) for other in others)}) == 3


def test_a_batch_gives_the_labels_that_each_image_gets_alone(clip: Path) -> None:
    stage = MaskLabels(str(clip), VOCABULARY)
    rows = [row_of(0), row_of(1)]
    together = [list(row.mask_values or ()) for row in stage([StageRow(row) for row in rows])]
    assert together == [labels_of(stage, row) for row in rows]


def test_models_and_vocabularies_that_cannot_be_used_are_refused(clip: Path, tmp_path: Path) -> None:
    for vocabulary, message in (
        ([], "empty or contains a blank"),
        (["a", " "], "blank"),
        (["a", "b", "a"], "'a' more"),
    ):
        with pytest.raises(UsageError, match=message):
            MaskLabels(str(clip), vocabulary)
    with pytest.raises(UsageError, match="does not exist: expected the folder of a CLIP, or a TorchScript file"):
        MaskLabels.version(str(tmp_path / "absent"), VOCABULARY)
    text = tmp_path / "text.pt"
    text.write_text("text")
    with pytest.raises(UsageError, match="can't be loaded as TorchScript"):
        MaskLabels(str(text), VOCABULARY)
    with pytest.raises(UsageError, match=r"returned shape \(2, 2\): expected \(2, 3\) finite scores"):
        MaskLabels(str(saved(TwoScores(), tmp_path / "two.pt")), VOCABULARY)
    with pytest.raises(UsageError, match="finite scores"):
        MaskLabels(str(saved(NotANumber(), tmp_path / "nan.pt")), VOCABULARY)
    with pytest.raises(UsageError, match="failed for 2 crops"):
        MaskLabels(str(saved(nn.Linear(3, 3), tmp_path / "linear.pt")), VOCABULARY)
