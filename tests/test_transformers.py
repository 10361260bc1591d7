"""Segmenters for models of `transformers`: the masks of its pipeline and of SAM 3, from local folders only."""

import importlib.util
import io
import json
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco
from safetensors.torch import load_file, save_file

from segmint import Mask, StageRow
from segmint.catalogs.findings import Reason, RejectedError
from segmint.infra.errors import UsageError
from segmint.operators.custom.contract import load_stage, stated_terms
from segmint.transformers import Concepts, MaskGeneration
from tests.support.tiny_transformers import MASK_GENERATORS, PHRASES, write_sam, write_sam3, write_sam3_video

GENERATION, CONCEPTS = "segmint.transformers.MaskGeneration", "segmint.transformers.Concepts"
MANY: dict[str, Any] = {
    "points_per_crop": 4,
    "pred_iou_thresh": -9.0,
    "stability_score_thresh": 0.0,
    "crops_nms_thresh": 1.0,
}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def rows(coffee: NDArray[np.uint8]) -> list[StageRow]:
    """Rows of a wide and a tall photograph."""
    found = []
    for ordinal, pixels in enumerate((coffee[::3, ::3], coffee[100:, 200:350])):
        jpeg = io.BytesIO()
        Image.fromarray(pixels).save(jpeg, "jpeg")
        found.append(StageRow({"ordinal": ordinal, "id": ordinal + 1, "release": jpeg.getvalue()}))
    return found


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "__init__", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def found_by(segmenter: MaskGeneration | Concepts, rows: Sequence[StageRow]) -> list[list[Mask]]:
    returned = segmenter(rows)
    assert [row["id"] for row in returned] == [row["id"] for row in rows]
    return [list(row.masks_found or ()) for row in returned]


def pixels_of(mask: Mask) -> NDArray[np.bool_]:
    if isinstance(mask.pixels, np.ndarray):
        return mask.pixels
    height, width = mask.pixels["size"]
    decoded: NDArray[np.bool_] = coco.decode(coco.frPyObjects(dict(mask.pixels), height, width)).astype(bool)
    return decoded


@pytest.mark.parametrize("kind", MASK_GENERATORS)
def test_masks_and_scores_are_those_of_the_pipeline(kind: str, tmp_path: Path, rows: list[StageRow]) -> None:
    folder = MASK_GENERATORS[kind](tmp_path / kind)
    pipeline = transformers.pipeline("mask-generation", model=str(folder))
    numbers, partial = [], 0
    for arguments in (MANY, {**MANY, "crops_n_layers": 1, "crops_nms_thresh": 0.9}):
        found = found_by(MaskGeneration(str(folder), **arguments), rows)
        for row, masks in zip(rows, found, strict=True):
            expected = pipeline(Image.fromarray(row.image), **arguments)
            assert [mask.score for mask in masks] == [float(score) for score in expected["scores"]]
            for mask, pixels in zip(masks, expected["masks"], strict=True):
                assert np.array_equal(pixels_of(mask), pixels)
                partial += 0 < pixels.sum() < pixels.numel()
                assert (mask.label, mask.stability, mask.points, mask.text) == (None, None, (), None)
            numbers.append(len(masks))
    assert all(0 < few < many for few, many in zip(numbers[2:], numbers[:2], strict=True)), numbers
    assert partial > 40
    assert found_by(MaskGeneration(str(folder), **{**MANY, "pred_iou_thresh": 9.0}), rows) == [[], []]


@pytest.mark.parametrize("write", [write_sam3, write_sam3_video])
def test_concepts_are_the_instances_that_sam_3_finds(
    write: Callable[[Path], Path], tmp_path: Path, rows: list[StageRow]
) -> None:
    folder = write(tmp_path / "sam3")
    model = transformers.Sam3Model.from_pretrained(folder).eval()
    processor = transformers.Sam3Processor.from_pretrained(folder)
    everything = found_by(Concepts(str(folder), PHRASES, threshold=0.0), rows)
    scores = sorted(mask.score or 0 for masks in everything for mask in masks)
    thresholds = {"threshold": scores[len(scores) // 3], "mask_threshold": 0.4}
    found = found_by(Concepts(str(folder), PHRASES, **thresholds), rows)
    for row, masks in zip(rows, found, strict=True):
        image, left = Image.fromarray(row.image), list(masks)
        for phrase in PHRASES:
            inputs = processor(images=image, text=phrase, return_tensors="pt")
            with torch.no_grad():
                outputs = model(**inputs)
            sizes = [(image.height, image.width)]
            (expected,) = processor.post_process_instance_segmentation(outputs, target_sizes=sizes, **thresholds)
            ours, left = left[: len(expected["scores"])], left[len(expected["scores"]) :]
            assert [mask.score for mask in ours] == [mask.label_score for mask in ours] == expected["scores"].tolist()
            assert [mask.label for mask in ours] == [mask.text for mask in ours] == [phrase] * len(ours)
            for mask, pixels in zip(ours, expected["masks"], strict=True):
                assert np.array_equal(pixels_of(mask), pixels.numpy() == 1)
                assert 0 < pixels_of(mask).sum() < pixels_of(mask).size
        assert left == []
    assert {mask.label for masks in found for mask in masks} == set(PHRASES)
    assert 0 < sum(map(len, found)) < len(scores)


def test_each_row_of_the_catalog_may_have_its_own_phrases(tmp_path: Path, rows: list[StageRow]) -> None:
    folder = str(write_sam3(tmp_path / "sam3"))

    def with_prompts(row: StageRow, *prompts: dict[str, Any]) -> StageRow:
        nothing = dict.fromkeys(("box", "points", "point_labels", "label", "score"))
        return StageRow({**row, "prompts": [{**nothing, **each} for each in prompts] or None})

    cup, saucer = ({"label": phrase} for phrase in PHRASES)
    first, second = rows
    given = [with_prompts(first, saucer, cup, saucer), with_prompts(second, cup), with_prompts(second)]
    concepts = Concepts(folder, threshold=0.0)
    both, one, none = found_by(concepts, given)
    (expected,) = found_by(Concepts(folder, PHRASES[::-1], threshold=0.0), [first])
    assert [(mask.label, mask.score) for mask in both] == [(mask.label, mask.score) for mask in expected]
    for mask, other in zip(both, expected, strict=True):
        assert np.array_equal(pixels_of(mask), pixels_of(other))
    (expected,) = found_by(Concepts(folder, PHRASES[:1], threshold=0.0), [second])
    assert [mask.score for mask in one] == [mask.score for mask in expected] != []
    assert none == []
    for prompts, told in (
        (
            [cup, {"box": [1.0, 1.0, 5.0, 5.0], "label": "cup"}],
            r"prompts\.1 has a box or points; expected only a label",
        ),
        ([{"label": "cup " * 40}], r"has 42 tokens; expected at most 32"),
    ):
        with pytest.raises(RejectedError, match=told) as caught:
            concepts([with_prompts(first, *prompts)])
        assert caught.value.reason == Reason.PROMPTS_MISFIT
    with pytest.raises(UsageError, match="has 42 tokens"):
        Concepts(folder, ["cup " * 40])
    assert load_stage(CONCEPTS, {"folder": folder}).wants_prompts
    assert not load_stage(CONCEPTS, {"folder": folder, "phrases": PHRASES}).wants_prompts


@pytest.mark.usefixtures("no_network")
def test_a_folder_is_loaded_without_the_network_and_without_its_code(tmp_path: Path, rows: list[StageRow]) -> None:
    with pytest.raises(AssertionError, match="a socket was opened"):
        socket.create_connection(("localhost", 9))
    sam, sam3 = write_sam(tmp_path / "sam"), write_sam3(tmp_path / "sam3")
    expected = found_by(MaskGeneration(str(sam), **MANY), rows[:1])
    for folder in (sam, sam3):
        config = json.loads((folder / "config.json").read_bytes())
        config["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModelForMaskGeneration": "evil.Evil"}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "evil.py").write_text("raise SystemExit('code of the folder ran')\n")
        (folder / "pytorch_model.bin").write_bytes(b"not read")
    assert found_by(MaskGeneration(str(sam), **MANY), rows[:1]) == expected
    assert found_by(Concepts(str(sam3), PHRASES, threshold=0.0), rows[:1])[0]


def test_the_card_of_a_folder_states_its_license(tmp_path: Path) -> None:
    folder = write_sam3(tmp_path / "sam3")

    def stated(card: str | None) -> tuple[str | None, str | None]:
        if card is not None:
            (folder / "README.md").write_text(card, encoding="utf-8")
        terms = stated_terms(CONCEPTS, {"folder": str(folder), "phrases": PHRASES})
        assert terms.weights_sha256 == json.loads(Concepts.version(str(folder), PHRASES))["folder"]
        return terms.license, terms.terms

    assert stated(None) == (None, None)
    assert stated("---\nlicense: apache-2.0\n---\n# A model\n") == ("apache-2.0", None)
    other = "license: other\nlicense_name: sam-license\nlicense_link: https://example.org/LICENSE\n"
    assert stated(f"---\n{other}---\n") == ("sam-license", "https://example.org/LICENSE")
    for card in (
        "",
        "# A model",
        "---\nlicense: mit\n",
        "---\n[\n---\n",
        "---\n- mit\n---\n",
        "---\nlicense: [mit]\n---",
    ):
        assert stated(card) == (None, None), card


def test_the_version_covers_the_folder_the_package_and_the_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_sam3(tmp_path / "sam3")

    def version(**changes: Any) -> str:
        spec = load_stage(CONCEPTS, {"folder": str(folder), "phrases": PHRASES, **changes})
        assert spec.masks
        assert "arguments" not in spec.identity
        return spec.version

    first = version()
    assert json.loads(first)["transformers"] == transformers.__version__
    assert json.loads(first)["phrases"] == PHRASES
    (folder / "README.md").write_text("other")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "config.json").write_text("{}")
    assert version() == first
    moved = folder.rename(tmp_path / "moved")
    assert version(folder=str(moved)) == first
    folder = moved
    assert version(phrases=PHRASES[:1]) != first
    assert version(threshold=0.3) != first
    for name in ("config.json", "model.safetensors", "processor_config.json", "tokenizer.json"):
        before, data = version(), (folder / name).read_bytes()
        (folder / name).write_bytes(data + b" ")
        assert version() != before, name
    before = version()
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "5.99")
    assert version() != before

    sam = write_sam(tmp_path / "sam")
    versions = {
        load_stage(GENERATION, {"folder": str(sam), **arguments}).version
        for arguments in ({}, {"points_per_crop": 16}, {"points_per_crop": 8})
    }
    assert len(versions) == 3


def test_what_is_wrong_shows_when_the_stage_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sam, empty = write_sam(tmp_path / "sam"), tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    (empty / "pytorch_model.bin").write_bytes(b"not read")
    for stage, arguments, told in (
        (GENERATION, {"folder": "facebook/sam2.1-hiera-tiny"}, "isn't a folder with a config.json.*aren't downloaded"),
        (GENERATION, {"folder": str(empty)}, "contains no safetensors file"),
        (GENERATION, {"folder": str(sam), "points_per_side": 32}, "no argument points_per_side: expected .*_per_crop"),
        (GENERATION, {}, "missing a required argument: 'folder'"),
        (CONCEPTS, {"folder": str(sam), "phrases": PHRASES}, "of the type sam: expected sam3 or sam3_video"),
        (CONCEPTS, {"folder": str(sam), "phrases": "cup"}, "phrases is 'cup': expected a list of different texts"),
        (CONCEPTS, {"folder": str(sam), "phrases": []}, r"phrases is \[\]: expected"),
        (CONCEPTS, {"folder": str(sam), "phrases": ["cup", "cup"]}, "expected a list of different texts"),
        (CONCEPTS, {"folder": str(sam), "phrases": ["cup", " "]}, "expected a list of different texts"),
    ):
        with pytest.raises(UsageError, match=told):
            load_stage(stage, arguments)

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else found(name))
    with pytest.raises(UsageError, match=r"missing packages: transformers. Run `pip install 'segmint\[build,text\]'`"):
        load_stage(GENERATION, {"folder": str(sam)})


def test_a_folder_without_all_weights_is_refused(tmp_path: Path) -> None:
    """`transformers` fills them with random numbers, and only prints a warning."""
    sam = write_sam(tmp_path / "sam")
    weights = load_file(sam / "model.safetensors")
    del weights["mask_decoder.mask_tokens.weight"]
    save_file(weights, sam / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"lacks 1 of the weights of SamModel, such as mask_decoder\.mask_tokens"):
        MaskGeneration(str(sam))


def test_concepts_in_half_precision_are_almost_those_in_single(tmp_path: Path, rows: list[StageRow]) -> None:
    folder = write_sam3(tmp_path / "sam3")
    single, half = (found_by(Concepts(str(folder), PHRASES, 0.0, dtype=each), rows) for each in ("float32", "bfloat16"))
    for expected, masks in zip(single, half, strict=True):
        assert len(masks) == len(expected) == 16
        assert [mask.score for mask in masks] == pytest.approx([mask.score for mask in expected], abs=0.1)
        assert [mask.score for mask in masks] != [mask.score for mask in expected]
