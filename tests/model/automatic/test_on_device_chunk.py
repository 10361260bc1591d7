"""A chunk is one graph for torch's compiler: nothing in it asks the host for a number."""

from pathlib import Path
from typing import Any

import pytest
import torch

from segmint.model.automatic import device_crops
from segmint.model.automatic.device_crops import KernelError, check_kernels, decode_chunk, draw_chunk, plan_image
from segmint.model.kernels import factored_image
from segmint.model.sam.load import load_sam


def test_a_chunk_is_one_graph_and_padding_is_never_wanted(mobile_sam_path: Path) -> None:
    sam = load_sam(mobile_sam_path)
    features = torch.randn(1, 256, 64, 64)
    points = torch.tensor([[300.0, 200.0, 1.0], [700.0, 500.0, 1.0], [700.0, 500.0, 0.0]], dtype=torch.float64)

    def decoded(features: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, ...]:
        masks = draw_chunk(decode_chunk(sam, plan_image(sam, features), points, threshold=0.0))
        return masks.logits, masks.predicted_iou, masks.wanted

    whole = torch.compile(decoded, fullgraph=True, backend="eager", dynamic=False)
    with torch.inference_mode():
        expected, found = decoded(features, points), whole(features, points)

    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=0)
    assert found[0].shape == (3, 3, 256, 256)
    assert found[2].tolist() == [[True] * 3, [True] * 3, [False] * 3]


@pytest.mark.parametrize("step", ["look", "answer", "draw"])
def test_kernels_that_compute_something_else_are_refused(
    step: str, mobile_sam_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sam = load_sam(mobile_sam_path)
    points = torch.tensor([[300.0, 200.0, 1.0], [700.0, 500.0, 0.0]], dtype=torch.float64)
    right = getattr(device_crops, step)

    def skewed(*arguments: Any) -> Any:
        """The step without some of its sums, as a compiler's fault left it, unless it is computed by formulas."""
        changed = list(arguments)
        if not factored_image.by_formulas.get():
            place = {"look": 3, "answer": 3, "draw": 1}[step]
            changed[place] = torch.zeros_like(changed[place])
        return right(*changed)

    with torch.inference_mode():
        plan = plan_image(sam, torch.randn(1, 256, 64, 64, generator=torch.Generator().manual_seed(1)))
        check_kernels(sam, plan, points, 0.0, decode_chunk(sam, plan, points, threshold=0.0))
        monkeypatch.setattr(device_crops, step, skewed)
        with pytest.raises(KernelError, match=r"wrong masks: the kernels' logits differ from .* by \d+%, and"):
            check_kernels(sam, plan, points, 0.0, decode_chunk(sam, plan, points, threshold=0.0))
