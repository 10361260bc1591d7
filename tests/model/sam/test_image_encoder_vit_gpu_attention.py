"""A GPU attends with kernels that the type of the weights fixes; without a GPU, on fake tensors."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: PLC2701 - torch documents it under this name
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends  # noqa: PLC2701 - nothing public tells

from segmint.model.sam import image_encoder_vit
from segmint.model.sam.image_encoder_vit import attend, attention_kernels, relative_attention

HALF = [torch.bfloat16, torch.float16]


@pytest.fixture
def gpu() -> Iterator[None]:
    with FakeTensorMode(), torch.inference_mode(), torch.device("cuda"):
        yield


@pytest.mark.parametrize(("triton", "expected"), [(True, "triton"), (False, "flash")])
def test_the_type_of_the_weights_fixes_the_kernels(
    triton: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_encoder_vit, "HAS_TRITON", triton)
    assert [attention_kernels(dtype) for dtype in HALF] == [expected] * 2
    assert attention_kernels(torch.float32) == "efficient"


@pytest.mark.parametrize(
    ("dtype", "bias", "expected"),
    [
        (torch.bfloat16, False, ["flash", "efficient"]),
        (torch.float32, False, ["efficient", "math"]),
        (torch.bfloat16, True, ["efficient", "math"]),
        (torch.float32, True, ["efficient", "math"]),
    ],
)
@pytest.mark.usefixtures("gpu")
def test_torch_tries_libraries_in_a_fixed_order(
    dtype: torch.dtype, bias: bool, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[list[str]] = []
    names = {
        SDPBackend.FLASH_ATTENTION: "flash",
        SDPBackend.EFFICIENT_ATTENTION: "efficient",
        SDPBackend.MATH: "math",
        SDPBackend.CUDNN_ATTENTION: "cudnn",
    }

    def note(q: Tensor, *_: Tensor, attn_mask: Tensor | None, scale: float | None) -> Tensor:
        enabled = _cur_sdpa_kernel_backends(with_priority=True)
        tried.append([names[backend] for backend in enabled])
        return q

    monkeypatch.setattr(F, "scaled_dot_product_attention", note)
    part = torch.empty(1, 2, 49, 32, dtype=dtype)
    attend(part, part, part, torch.empty(1, 2, 49, 49, dtype=dtype) if bias else None)
    assert tried == [expected]
    assert torch.backends.cuda.cudnn_sdp_enabled(), "only the call is pinned"


def test_no_other_place_leaves_the_library_to_torch() -> None:
    """Besides a ViT's attention in bands, which is a CPU's."""
    calls = {
        path.name: count
        for path in sorted((Path(__file__).resolve().parents[3] / "model").rglob("*.py"))
        if (count := path.read_text().count("F.scaled_dot_product_attention("))
    }
    assert calls == {"image_encoder_vit.py": 3}


def test_a_cpu_attends_as_torch_does() -> None:
    q, k, v = torch.randn(3, 1, 2, 5, 8)
    assert torch.equal(attend(q, k, v, scale=0.5), F.scaled_dot_product_attention(q, k, v, scale=0.5))


@pytest.mark.usefixtures("gpu")
def test_our_kernels_take_half_precision_without_gradients() -> None:
    pytest.importorskip("triton")
    tokens = torch.empty(1, 64, 64, 1280, dtype=torch.bfloat16)
    assert relative_attention(tokens, 16, 14) is not None
    assert relative_attention(tokens, 16, 20) is None, "a window that they do not know"
    assert relative_attention(tokens.float(), 16, 14) is None
    with torch.inference_mode(False), torch.enable_grad():
        assert relative_attention(tokens, 16, 14) is None


def test_our_kernels_are_no_cpus() -> None:
    with torch.inference_mode():
        assert relative_attention(torch.zeros(1, 64, 64, 1280, dtype=torch.bfloat16), 16, 14) is None


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
def test_pinned_kernels_run_on_a_gpu(dtype: torch.dtype, bias: bool) -> None:
    q, k, v = torch.randn(3, 2, 4, 49, 32, device="cuda", dtype=dtype)
    mask = torch.randn(1, 4, 49, 49, device="cuda", dtype=dtype) if bias else None
    parts = (q, k, v) if mask is None else (q, k, v, mask)
    exact = F.scaled_dot_product_attention(*(part.cpu().float() for part in parts))
    most = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(attend(q, k, v, mask).cpu().float(), exact, atol=most, rtol=most)
