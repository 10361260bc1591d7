"""`segmint assets export-onnx` as a user meets it."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from segmint.infra.assets import sha256_of
from segmint.infra.version import VERSION
from segmint.pipeline.commands.cli import app
from segmint.pipeline.masks import onnx_export


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["assets", "export-onnx", *map(str, arguments)])


def low_res_masks(path: Path) -> np.ndarray:
    inputs = {
        "image_embeddings": np.random.default_rng(0).normal(size=(1, 256, 64, 64)).astype(np.float32),
        "point_coords": np.array([[[500, 300], [0, 0]]], np.float32),
        "point_labels": np.array([[1, -1]], np.float32),
        "mask_input": np.zeros((1, 1, 256, 256), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array([60, 80], np.float32),
    }
    return onnxruntime.InferenceSession(path).run(["low_res_masks"], inputs)[0]


def test_a_file_names_its_weights_and_is_not_overwritten(
    tmp_path: Path, mobile_sam_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new folder" / "decoder.onnx"
    done = run("mobile_sam", "-o", path, "--json")
    assert done.exit_code == 0, done.output
    weights = sha256_of(mobile_sam_path)
    assert json.loads(done.stdout) == {
        "output": str(path),
        "data": None,
        "bytes": path.stat().st_size,
        "part": "decoder",
        "model_type": "mobile_sam",
        "weights_sha256": weights,
    }
    assert onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map == {
        "part": "decoder",
        "model_type": "mobile_sam",
        "decoder_layers": "2",
        "weights_sha256": weights,
        "segmint_version": VERSION,
    }
    content = path.read_bytes()
    assert str(tmp_path).encode() not in content
    assert str(mobile_sam_path.parent).encode() not in content

    done = run("mobile_sam", "-o", path)
    assert done.exit_code == 2
    assert f"{path} already exists and is not overwritten" in done.stderr
    assert path.read_bytes() == content

    monkeypatch.setattr(onnx_export, "MAX_FILE_BYTES", 1_000_000)
    beside = tmp_path / "large.onnx"
    done = run(mobile_sam_path, "-o", beside)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"decoder of mobile_sam (SHA-256 {weights[:12]}…) → {beside} and {beside}.data, ")
    assert beside.stat().st_size < 1_500_000 < Path(f"{beside}.data").stat().st_size
    assert np.array_equal(low_res_masks(beside), low_res_masks(path))


@pytest.mark.parametrize(
    ("weights", "arguments", "message"),
    [
        ("mobile_sma", (), "'mobile_sma' is neither a known name (mobile_sam,"),
        ("clp", (), "is not a PyTorch checkpoint of plain tensors"),
        ("other.pt", (), "no SAM mask decoder among the weights; found weight"),
        ("mobile_sam", ("-o", "."), "-o . is a folder: expected a file, such as ./decoder.onnx"),
        ("mobile_sam", ("--part", "encoder", "--single-mask"), "--single-mask requires --part decoder"),
    ],
)
def test_a_wrong_name_file_or_option_is_an_error_and_nothing_is_written(
    weights: str, arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.zeros(2)}, "other.pt")
    done = run(weights, "-o", "sam.onnx", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["other.pt"]
