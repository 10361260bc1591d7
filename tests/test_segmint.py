"""The front door."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import segmint

ROOT = Path(__file__).resolve().parents[1]


def test_import_is_light():
    script = (
        "import sys, segmint\n"
        "assert not {'torch', 'ray', 'numpy', 'pyarrow', 'pydantic'} & set(sys.modules)\n"
        "from segmint import MaskSettings\n"
        "assert 'ray' not in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_every_name_is_there_once_asked_for():
    for name in segmint.__all__:
        assert callable(getattr(segmint, name))
        assert name in dir(segmint)
    from segmint.pipeline.masks.generator import MaskGenerator

    assert segmint.MaskGenerator is MaskGenerator


def test_an_unknown_name_says_which_are_known():
    with pytest.raises(AttributeError, match="MaskGenerator"):
        segmint.MaskGenerater  # noqa: B018


def test_version_is_the_packages():
    dynamic = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["dynamic"]["version"]
    module, _, name = dynamic["attr"].rpartition(".")
    assert segmint.__version__ == getattr(importlib.import_module(module), name)


def test_the_example_of_the_module_works(coffee):
    sam = segmint.load_sam("mobile_sam", device="cpu")
    settings = segmint.MaskSettings.official(points_per_side=2, pred_iou_thresh=0.5)
    generator = segmint.MaskGenerator(segmint.Predictor(sam), settings)
    records = generator.generate(np.ascontiguousarray(coffee[::2, ::2])).records
    assert records
    assert all(record.segmentation.size == (200, 300) for record in records)
