"""Products by either library are torch's plain ones."""

import pytest
import torch
import torch.nn.functional as F

from segmint.model.sam import common
from segmint.model.sam.common import GeluConv2d, Linear, linear, product


@torch.inference_mode()
@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_the_plain_ones(onednn: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "ONEDNN", onednn and common.ONEDNN)
    onto = torch.full((31, 47), 3.0, dtype=dtype)
    generator = torch.Generator().manual_seed(4)
    a, b = (torch.randn(2, *size, generator=generator).to(dtype) for size in ((31, 16), (16, 47)))
    bias = torch.randn(47, generator=generator).to(dtype)
    near = {"atol": 1e-5 if dtype == torch.float32 else 0.1, "rtol": 0.02}

    torch.testing.assert_close(product(a, b), a @ b, **near)
    torch.testing.assert_close(product(a[:1], b[:1]), a[:1] @ b[:1], **near)
    torch.testing.assert_close(product(a[0], b[0]), a[0] @ b[0], **near)
    torch.testing.assert_close(product(b[0].T, a[0].T), b[0].T @ a[0].T, **near)
    torch.testing.assert_close(linear(a[0], b[0].T), a[0] @ b[0], **near)
    torch.testing.assert_close(linear(a[0], b[0].T, bias), a[0] @ b[0] + bias, **near)
    torch.testing.assert_close(product(a, b, torch.stack([onto, onto])), a @ b + onto, **near)
    torch.testing.assert_close(product(a[0], b[0], onto), a[0] @ b[0] + onto, **near)
    torch.testing.assert_close(linear(a[0], b[0].T, bias, gelu=True), F.gelu(a[0] @ b[0] + bias), **near)


@torch.inference_mode()
def test_strided_and_cut_matrices_are_products_too() -> None:
    whole = torch.randn(4, 60, 60)
    a, b = whole[2, 3:20, 7:30], whole[3, 1:24, 5:60:2]
    torch.testing.assert_close(product(a, b), a.double().mm(b.double()).float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(product(a.T, a), a.double().T.mm(a.double()).float(), atol=1e-5, rtol=0)
    assert product(a[:0], b).shape == (0, b.shape[1])


def test_a_layer_is_the_plain_one_with_and_without_gradients() -> None:
    layer, x = Linear(24, 8), torch.randn(2, 5, 3, 24)
    expected = F.linear(x, layer.weight, layer.bias)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer(x, gelu=True), F.gelu(expected))


@pytest.mark.parametrize("groups", [1, 8])
def test_a_convolution_with_gelu_is_the_plain_one_with_and_without_gradients(groups: int) -> None:
    convolution = torch.nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=groups).to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 21, 20).to(memory_format=torch.channels_last)
    expected = F.gelu(convolution(x))
    with torch.inference_mode():
        torch.testing.assert_close(GeluConv2d(convolution)(x), expected, atol=1e-5, rtol=0)
    GeluConv2d(convolution)(x).sum().backward()
    assert convolution.weight.grad is not None


def test_products_work_under_the_callers_autocast() -> None:
    layer, convolution = Linear(8, 4), GeluConv2d(torch.nn.Conv2d(3, 4, 3))
    rows, image = torch.randn(2, 8), torch.randn(1, 3, 5, 5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(rows.bfloat16()).shape == (2, 4)
        assert convolution(image.bfloat16()).shape == (1, 4, 3, 3)
        assert product(rows.bfloat16(), torch.randn(8, 3)).shape == (2, 3)
