"""Groups and rates by hand for a small ViT and for TinyViT; whole steps, and what they change."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from segmint.model.sam.geometry import Geometry
from segmint.model.sam.image_encoder_tinyvit import ImageEncoderTinyViT
from segmint.model.sam.image_encoder_vit import ImageEncoderViT, VitShape
from segmint.model.sam.load import Sam, build_sam, load_sam
from segmint.model.sam.mask_decoder import MaskDecoder, PromptEncoder
from segmint.model.training.encoder_layers import build_optimizer, recomputed_blocks
from segmint.model.training.recipe import FINETUNE, PAPER, LossSettings, Recipe, SamplingSettings
from segmint.model.training.sampling import drop_path
from segmint.model.training.step import StepSettings, TrainingMasks, train_step
from tests.support.random_weights import randomize

GRID = 8
SMALL = VitShape(width=64, depth=3, heads=2, global_blocks=(2,))
WHOLE = replace(PAPER["vit_h"], learning_rate=1.0, warmup_steps=4, decay_steps=(10,), layer_decay=0.5)


def small_sam(encoder: nn.Module | None = None, depth: int = 1) -> Sam:
    encoder = ImageEncoderViT(SMALL, 16 * GRID) if encoder is None else encoder
    return Sam(
        randomize(encoder), randomize(PromptEncoder(Geometry(patch_size=1024 // GRID))), randomize(MaskDecoder(depth))
    )


def rates(sam: Sam, recipe: Recipe) -> dict[str, tuple[float, float]]:
    """The learning rate and weight decay of each weight that is trained, by name."""
    optimizer, _ = build_optimizer(sam, recipe)
    names = {id(weight): name for name, weight in sam.named_parameters()}
    return {
        names[id(weight)]: (group["initial_lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for weight in group["params"]
    }


def test_the_groups_of_a_small_vit_by_hand() -> None:
    """Half the rate a block further from the neck; weight decay on the weights of linear maps and convolutions."""
    sam = small_sam()
    found = rates(sam, WHOLE)
    assert set(found) == {name for name, _ in sam.named_parameters()}
    for name, expected in {
        "image_encoder.pos_embed": (1 / 16, 0),
        "image_encoder.patch_embed.proj.weight": (1 / 16, 0.1),
        "image_encoder.patch_embed.proj.bias": (1 / 16, 0),
        "image_encoder.blocks.0.attn.qkv.weight": (1 / 8, 0.1),
        "image_encoder.blocks.0.attn.rel_pos_h": (1 / 8, 0),
        "image_encoder.blocks.0.norm1.weight": (1 / 8, 0),
        "image_encoder.blocks.1.mlp.lin1.bias": (1 / 4, 0),
        "image_encoder.blocks.2.mlp.lin1.weight": (1 / 2, 0.1),
        "image_encoder.neck.0.weight": (1, 0.1),
        "image_encoder.neck.1.weight": (1, 0),
        "prompt_encoder.no_mask_embed.weight": (1, 0),
        "prompt_encoder.mask_downscaling.0.weight": (1, 0.1),
        "mask_decoder.iou_token.weight": (1, 0),
        "mask_decoder.output_upscaling.0.weight": (1, 0.1),
        "mask_decoder.transformer.layers.0.self_attn.q_proj.weight": (1, 0.1),
    }.items():
        assert found[name] == expected, name


def test_the_groups_of_tinyvit() -> None:
    """Twelve blocks in four stages; the step to the next stage goes with the block before it, batch norms stay."""
    sam = small_sam(ImageEncoderTinyViT())
    found = rates(sam, WHOLE)
    for name, power in {
        "patch_embed.seq.0.c.weight": 13,
        "layers.0.blocks.0.conv1.c.weight": 12,
        "layers.0.blocks.1.conv3.c.weight": 11,
        "layers.0.downsample.conv2.c.weight": 11,
        "layers.1.blocks.0.attn.qkv.weight": 10,
        "layers.3.blocks.1.mlp.fc2.weight": 1,
        "neck.2.weight": 0,
    }.items():
        assert found[f"image_encoder.{name}"] == (0.5**power, 0.1), name
    assert found["image_encoder.layers.1.blocks.0.attn.attention_biases"] == (0.5**10, 0)
    idle = {name for name, _ in sam.named_parameters()} - set(found)
    assert {name for name in idle if ".bn." not in name} == {
        f"image_encoder.{part}.{kind}" for part in ("norm_head", "head") for kind in ("weight", "bias")
    }
    assert not any(".bn." in name for name in found)


def test_parts_that_are_not_trained_require_no_gradients() -> None:
    sam = small_sam()
    found = rates(sam, replace(FINETUNE, parts=("mask_decoder",)))
    assert {name.split(".")[0] for name in found} == {"mask_decoder"}
    assert {name for name, weight in sam.named_parameters() if weight.requires_grad} == set(found)
    with pytest.raises(ValueError, match="the image encoder is a Conv2d: expected SAM's ViT or MobileSAM's TinyViT"):
        build_optimizer(small_sam(nn.Conv2d(3, 256, 1)), WHOLE)


def test_the_schedule_sets_every_groups_rate() -> None:
    sam = small_sam()
    optimizer, schedule = build_optimizer(sam, WHOLE)
    for step, factor in ((0, 0.25), (3, 1), (9, 1), (10, 0.1)):
        assert schedule.set_rates(optimizer, step) == pytest.approx(factor)
        assert {group["lr"] / group["initial_lr"] for group in optimizer.param_groups} == {factor}


MAYBE_IDLE = ("mask_decoder.output_hypernetworks_mlps.", "prompt_encoder.point_embeddings.")
"""Weights of masks that were not chosen and of prompts that were not drawn: no gradient reaches them."""

SETTINGS = StepSettings(losses=LossSettings(), sampling=SamplingSettings(clicks=1), seed=5, dropout=0.1)


def squares() -> list[TrainingMasks]:
    targets = torch.zeros(2, 256, 256, dtype=torch.bool)
    targets[0, 30:140, 60:160], targets[1, 100:200, 20:180] = True, True
    return [TrainingMasks(targets[:1], (1024, 1024), [0]), TrainingMasks(targets[1:], (1024, 1024), [1])]


def step(sam: Sam, recipe: Recipe, pixels: Tensor) -> Tensor:
    """One step on two images with the image encoder in the graph; returns its losses."""
    optimizer, schedule = build_optimizer(sam, recipe)
    schedule.set_rates(optimizer, 0)
    with drop_path(sam.image_encoder, recipe.drop_path, seed=5, step=0, images=[0, 1]):
        losses = train_step(sam, sam.image_encoder(pixels), squares(), SETTINGS, step=0, total_masks=2)
    optimizer.step()
    return losses.total


@pytest.mark.parametrize("depth", [2, 3])
def test_a_step_of_the_whole_model_changes_its_weights(depth: int) -> None:
    """A ViT and a decoder of two or three layers; nothing that is no weight changes."""
    torch.manual_seed(depth)
    sam = small_sam(depth=depth)
    before = {name: value.clone() for name, value in sam.state_dict().items()}
    step(sam, replace(WHOLE, learning_rate=1e-3), torch.randn(2, 3, 16 * GRID, 16 * GRID))
    weights = {name for name, _ in sam.named_parameters()}
    changed = {name for name, value in sam.state_dict().items() if not torch.equal(value, before[name])}
    assert changed <= weights
    assert all(name.startswith(MAYBE_IDLE) for name in weights - changed)
    assert list(sam.state_dict()) == list(before)
    assert all(value.isfinite().all() for value in sam.state_dict().values())


def test_blocks_that_are_computed_again_give_the_same_gradients() -> None:
    gradients = []
    for again in (False, True):
        torch.manual_seed(0)
        pixels = torch.randn(2, 3, 16 * GRID, 16 * GRID)
        sam = small_sam()
        names = list(sam.state_dict())
        encoder = sam.image_encoder
        with drop_path(encoder, 0.5, seed=5, step=0, images=[0, 1]):
            if again:
                with recomputed_blocks(encoder):
                    train_step(sam, encoder(pixels), squares(), SETTINGS, step=0, total_masks=2)
            else:
                train_step(sam, encoder(pixels), squares(), SETTINGS, step=0, total_masks=2)
        gradients.append([weight.grad for weight in sam.parameters()])
        assert list(sam.state_dict()) == names
        assert all("forward" not in vars(block) for block in encoder.blocks)
    for kept, computed in zip(*gradients, strict=True):
        assert (kept is computed is None) or torch.equal(kept, computed)


def test_a_step_of_the_decoder_leaves_the_encoder_as_it_is() -> None:
    torch.manual_seed(0)
    sam = small_sam()
    before = {name: value.clone() for name, value in sam.state_dict().items()}
    step(sam, replace(FINETUNE, learning_rate=1e-3, drop_path=0.0), torch.randn(2, 3, 16 * GRID, 16 * GRID))
    changed = {name for name, value in sam.state_dict().items() if not torch.equal(value, before[name])}
    trained = {name for name, _ in sam.named_parameters() if not name.startswith("image_encoder.")}
    assert changed <= trained
    assert all(name.startswith(MAYBE_IDLE) for name in trained - changed)


def test_trained_weights_are_a_checkpoint_of_the_official_format(tmp_path: Path) -> None:
    sam = build_sam("mobile_sam", decoder_depth=3)
    names = list(sam.state_dict())
    optimizer, _ = build_optimizer(sam, FINETUNE)
    for weight in sam.mask_decoder.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    torch.save(sam.state_dict(), tmp_path / "trained.pt")
    again = load_sam(tmp_path / "trained.pt")
    assert list(again.state_dict()) == names
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in sam.state_dict().items())
