"""The cost of training: torch's counter and autograd on a real step, and what recomputation saves and costs."""

from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from segmint.model.sam import load
from segmint.model.sam.load import build_sam
from segmint.model.training import recipe as training_settings
from segmint.model.training.encoder_layers import build_optimizer
from segmint.model.training.recipe import FINETUNE, PAPER, SamplingSettings
from segmint.model.training.step import StepSettings, TrainingMasks, train_step, training_cost
from tests.support.tiny_vit import TINY


def test_a_real_step_has_the_counted_operations_and_stores_the_counted_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "VIT_SHAPES", {"vit_b": TINY})
    counted = training_cost("vit_b", 2, FINETUNE)
    torch.manual_seed(0)
    sam = build_sam("vit_b")
    build_optimizer(sam, FINETUNE)
    targets = torch.zeros(2, 256, 256, dtype=torch.bool)
    targets[:, 40:90, 30:120] = True
    weights = {weight.untyped_storage().data_ptr() for weight in sam.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # no address is reused, so this holds all four iterations
        return tensor

    settings = StepSettings(losses=FINETUNE.losses, sampling=FINETUNE.sampling, seed=0)
    with (
        sdpa_kernel(SDPBackend.MATH),  # the counter doesn't know the CPU's own kernel
        FlopCounterMode(display=False) as counter,
        saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        train_step(sam, torch.randn(1, 256, 64, 64), [TrainingMasks(targets, (1024, 1024), [0, 1])], settings, 0, 2)
    work = counter.get_total_flops()
    assert work <= counted.image_flop + 2 * counted.mask_flop <= 1.02 * work
    stored = sum(map(len, kept.values())) / FINETUNE.sampling.iterations
    assert 0.85 * stored <= 2 * counted.mask_bytes <= 1.15 * stored
    trained = [weight.numel() for weight in sam.parameters() if weight.requires_grad]
    assert counted.trained == sum(trained)
    assert counted.state_bytes == 4 * counted.weights + 12 * sum(trained)


def test_recomputed_blocks_store_less_and_compute_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "VIT_SHAPES", {"vit_b": TINY})
    monkeypatch.setattr(training_settings, "PAUSES", 0)  # iterations that the encoder has no part in
    recipe = replace(PAPER["vit_b"], sampling=SamplingSettings(clicks=1))
    plain, again = (training_cost("vit_b", 2, recipe, recompute) for recompute in (False, True))
    assert plain.trained == plain.weights
    assert again.image_bytes < 0.8 * plain.image_bytes
    assert 0.5 * plain.encode_flop < again.image_flop - plain.image_flop <= plain.encode_flop
    assert again.mask_flop == plain.mask_flop
