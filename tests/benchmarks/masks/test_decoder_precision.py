"""The comparison of the decoder's precisions: products in half precision, sums over photographs, and a wrong file."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.masks.decoder_precision import compare, totals
from segmint.model.kernels import factored_plainly
from tests.support.half_products import HalfProducts, gpu_formulas


def test_products_of_fp16_are_summed_in_float32_and_rounded_once() -> None:
    one, other = torch.randn(2, 3, 64, 64).half()
    bias = torch.randn(64).half()
    with torch.inference_mode(), HalfProducts():
        found = (one @ other, torch.einsum("bij,bjk->bik", one, other), torch.nn.functional.linear(one, other[0], bias))
        assert torch.equal(one.float() @ other.float(), torch.bmm(one.float(), other.float())), "float32 stays as it is"
    product = (one.float() @ other.float()).half()
    layer = torch.nn.functional.linear(one.float(), other[0].float(), bias.float()).half()
    for result, expected in zip(found, (product, product, layer), strict=True):
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-3)
    with gpu_formulas():
        assert factored_plainly.logit_product(one.bfloat16(), other.bfloat16()).dtype == torch.float32


def test_results_of_another_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "dog.jpg").write_bytes(b"a photograph")
    (tmp_path / "dog_layers0.json").write_text(json.dumps({"sha256": "0" * 64, "annotations": []}))
    with pytest.raises(ValueError, match=r"dog\.jpg has SHA-256 [0-9a-f]{64}, but the recorded result is of 0000"):
        compare(tmp_path / "dog.jpg", tmp_path, 1)


def test_photographs_are_added_up() -> None:
    rows = [{"reference": 3, **{each: {"matched": {"0.99": n}} for each, n in (("bf16", 1), ("fp16", 3))}}] * 2
    assert totals(rows) == {"reference": 6, "bf16": 2, "fp16": 6}
