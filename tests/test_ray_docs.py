"""The examples of docs/ray.md run as they are printed, but on a CPU, with MobileSAM and few points."""

import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.builds import AS_SHIPPED, NO_DETECTORS, ONE_EACH, segmint_here
from tests.support.cells import examples_of, run_cells

PAGE = Path(__file__).resolve().parents[1] / "docs" / "ray.md"

HERE = {
    '["vit_h"]("sam_vit_h_4b8939.pth").to("cuda")': '["mobile_sam"]("mobile_sam")',
    '(sam, output_mode="coco_rle")': '(sam, points_per_side=3, output_mode="coco_rle")',
    '"weights": "sam_vit_h_4b8939.pth", "device": "cuda"': '"weights": "mobile_sam", "device": "cpu", '
    '"points_per_side": 3',
    "num_gpus=1": "num_gpus=0",
}
"""Text of the examples, and its replacement for a machine without a GPU or the weights of ViT-H."""

QUICK = {
    "model": AS_SHIPPED,
    "resources": ONE_EACH,
    "deidentify": NO_DETECTORS,
    "masks": {"points_per_side": 3, "crop_n_layers": 0},
}
"""Settings of the build: few points and no detectors, in the test's Ray."""


@pytest.mark.ray
@pytest.mark.usefixtures("weights", "local_ray")
def test_the_examples_run_and_both_steps_find_the_same_masks(
    tmp_path: Path, coffee: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    Image.fromarray(coffee).resize((300, 200)).save(tmp_path / "photos/coffee.png")
    monkeypatch.chdir(tmp_path)
    examples = examples_of(PAGE)
    for printed, replacement in HERE.items():
        assert any(printed in example for example in examples)
        examples = [example.replace(printed, replacement) for example in examples]
    for name in ("photos", "by-import", "masks"):  # workers run in another folder
        examples = [re.sub(rf'(_files|_parquet)\("{name}"', rf'\1("{tmp_path / name}"', each) for each in examples]
    examples = [each.replace('f"dataset/', f'f"{tmp_path}/dataset/') for each in examples]
    (command,) = re.findall(
        r"^```\nsegmint (.*s3://bucket/photos.*)\n```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    settings = [word for key, value in QUICK.items() for word in ("--set", f"{key}={value}")]
    built = segmint_here(*shlex.split(command.replace("s3://bucket/photos", "photos")), *settings)
    assert re.search(r"written +1 image with [1-9]\d* masks? in 1 shard", built)
    run_cells(examples)
    (by_import,) = pq.read_table(tmp_path / "by-import").to_pylist()
    (mapped,) = pq.read_table(tmp_path / "masks").to_pylist()
    assert mapped["error"] is None
    assert [mask["segmentation"] for mask in mapped["masks"]] == [mask["segmentation"] for mask in by_import["masks"]]
    assert len(mapped["masks"]) > 0
    assert "'license': 'CC0-1.0'" in capsys.readouterr().out
