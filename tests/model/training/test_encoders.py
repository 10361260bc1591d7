"""The image encoders' plain paths have gradients: ViT's are the reference's, and all weights of TinyViT get one."""

import torch

from benchmarks.masks.reference import reference_vit
from segmint.model.sam.image_encoder_tinyvit import ImageEncoderTinyViT
from segmint.model.sam.image_encoder_vit import ImageEncoderViT, VitShape
from tests.support.random_weights import randomize


def test_the_vits_gradients_are_the_references() -> None:
    """A window block and a global one; windows of 14 are padded."""
    shape = VitShape(width=768, depth=2, heads=12, global_blocks=(1,))
    ours = randomize(ImageEncoderViT(shape, 256))
    theirs = reference_vit(shape, 256)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    image, weights = torch.randn(1, 3, 256, 256), torch.randn(1, 256, 16, 16)
    for encoder in (ours, theirs):
        (encoder(image) * weights).mean().backward()
    for (name, found), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert found.grad is not None, name
        assert expected.grad is not None, name
        largest = expected.grad.abs().max()
        assert largest > 0, f"{name} has no gradient to compare"
        assert (found.grad - expected.grad).abs().max() <= 1e-4 * largest, name


def test_every_weight_of_tinyvit_that_the_embedding_depends_on_gets_a_gradient() -> None:
    encoder = randomize(ImageEncoderTinyViT())
    statistics = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    (encoder(torch.randn(1, 3, 256, 256)) * torch.randn(1, 256, 16, 16)).mean().backward()
    idle = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in idle if not name.startswith(("head", "norm_head"))] == []
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())
    for name, buffer in encoder.named_buffers():
        assert torch.equal(buffer, statistics[name]), f"{name} changed in evaluation mode"
