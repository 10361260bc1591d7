import copy
import warnings

import numpy as np
import pytest
import torch

from segmint.model.sam.geometry import Geometry
from segmint.model.sam.image_encoder_vit import ImageEncoderViT, VitShape
from segmint.model.sam.load import (
    CUDA_BATCH,
    MAX_BATCH,
    BatchEncoder,
    CompilationError,
    Sam,
    build_sam,
    compile_arguments,
    default_batch_size,
)
from segmint.model.sam.mask_decoder import PromptEncoder
from tests.support.random_weights import randomize

SIDE = 320


@pytest.fixture(scope="module")
def small_sam() -> Sam:
    """A SAM for images of 320 pixels, whose ViT has two narrow blocks, one of them global."""
    sam = build_sam("mobile_sam")
    encoder = ImageEncoderViT(VitShape(32, depth=2, heads=2, global_blocks=(1,)), image_size=SIDE)
    return randomize(Sam(encoder, PromptEncoder(Geometry(SIDE)), sam.mask_decoder))


@pytest.fixture(scope="module")
def images() -> list[torch.Tensor]:
    generator = np.random.default_rng(0)
    sizes = [(SIDE, 200), (100, SIDE), (SIDE, SIDE)]
    return [torch.from_numpy(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def in_one(embeddings: list[tuple[torch.Tensor, ...]]) -> torch.Tensor:
    """The embeddings of images, which have no high-resolution features, as one tensor."""
    return torch.cat([embedding for (embedding,) in embeddings])


@torch.inference_mode()
def test_batches_give_what_each_image_gives_alone(small_sam: Sam, images: list[torch.Tensor]) -> None:
    encoder = BatchEncoder(small_sam)
    alone = encoder(images, batch_size=1)
    together = encoder(images, batch_size=2)
    assert [part.shape for (part,) in together] == [(1, 256, 20, 20)] * 3
    torch.testing.assert_close(in_one(together), in_one(alone), atol=1e-4, rtol=0)
    assert (alone[0][0] - alone[1][0]).abs().max() > 0.1


@torch.inference_mode()
def test_the_bits_depend_on_the_batch_size_and_not_on_the_company(small_sam: Sam, images: list[torch.Tensor]) -> None:
    encoder = BatchEncoder(small_sam)
    assert torch.equal(in_one(encoder(images[2:], batch_size=2)), encoder(images, batch_size=2)[2][0])
    assert encoder([], batch_size=2) == []


@pytest.mark.parametrize("size", [0, -1, MAX_BATCH + 1])
def test_a_batch_that_cannot_be_is_refused(small_sam: Sam, images: list[torch.Tensor], size: int) -> None:
    with pytest.raises(ValueError, match=rf"batch_size is {size}: expected 1 to 64"):
        BatchEncoder(small_sam)(images, batch_size=size)


def test_the_largest_batch_stays_under_the_elements_that_kernels_index() -> None:
    """The widest layers, for an image: a ViT-H's perceptron, and TinyViT's first stage at a quarter of the side."""
    assert MAX_BATCH * max(64 * 64 * 4 * 1280, 256 * 256 * 4 * 64) < 2**31


def test_a_cpu_takes_images_one_by_one() -> None:
    assert default_batch_size(torch.device("cpu")) == 1
    assert default_batch_size(torch.device("cuda")) == CUDA_BATCH


def test_a_gpu_compiles_the_same_kernels_in_each_process() -> None:
    """Inductor takes what is quickest at the moment otherwise; on a CPU it times nothing, and bits must stay."""
    on_gpu = compile_arguments("default", torch.device("cuda"))
    assert torch._inductor.list_options().count("deterministic") == 1  # noqa: SLF001 - not public
    assert on_gpu == {"options": {"deterministic": True}}
    assert compile_arguments("default", torch.device("cpu")) == {"mode": "default"}
    assert compile_arguments("reduce-overhead", torch.device("cuda")) == {"mode": "reduce-overhead"}


@torch.inference_mode()
def test_a_failed_compilation_is_reported_and_the_encoder_runs_eagerly(
    small_sam: Sam, images: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = in_one(BatchEncoder(small_sam)(images[:1], batch_size=1))

    def break_down(*_: object, **__: object) -> None:
        raise OSError("no compiler here\nand more")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", break_down)
    torch.compiler.reset()
    encoder = BatchEncoder(small_sam, "default")
    failed = r"torch\.compile of the image encoder failed \(.*no compiler here and more\)"
    with pytest.warns(RuntimeWarning, match=failed + "; running it eagerly"):
        found = in_one(encoder(images[:1], batch_size=1))
    assert torch.equal(found, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(in_one(encoder(images[:1], batch_size=1)), expected)
    torch.compiler.reset()
    strict = BatchEncoder(small_sam, "default", must_compile=True)
    for _ in range(2):
        with pytest.raises(CompilationError, match=failed):
            strict(images[:1], batch_size=1)


@pytest.mark.long
@torch.inference_mode()
@pytest.mark.parametrize("mode", ["default", "max-autotune-no-cudagraphs"])
def test_a_compiled_encoder_gives_the_same_embeddings(small_sam: Sam, images: list[torch.Tensor], mode: str) -> None:
    torch.compiler.reset()
    expected = BatchEncoder(small_sam)(images, batch_size=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch.compile of the image encoder failed")
        found = BatchEncoder(small_sam, mode)(images, batch_size=1)
    torch.testing.assert_close(in_one(found), in_one(expected), atol=1e-4, rtol=0)


@pytest.mark.cuda
@torch.inference_mode()
@pytest.mark.parametrize("mode", [None, "default", "reduce-overhead"])
def test_a_gpu_gives_the_embeddings_of_the_cpu(small_sam: Sam, images: list[torch.Tensor], mode: str | None) -> None:
    expected = BatchEncoder(small_sam)(images)
    found = BatchEncoder(copy.deepcopy(small_sam).cuda(), mode)(images, batch_size=2)
    torch.testing.assert_close(in_one(found).cpu(), in_one(expected), atol=1e-2, rtol=0)
