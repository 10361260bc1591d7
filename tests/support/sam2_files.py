"""Files with SAM 2.1's weights, with the names that its authors use."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from segmint.model.sam.load import Sam

NAMES = (
    (r"^prompt_encoder", "sam_prompt_encoder"),
    (r"^mask_decoder", "sam_mask_decoder"),
    (r"^image_encoder\.high_res_projections\.0", "sam_mask_decoder.conv_s1"),
    (r"^image_encoder\.high_res_projections\.1", "sam_mask_decoder.conv_s0"),
    (r"^image_encoder\.no_memory_embed", "no_mem_embed"),
    (r"^(image_encoder\.neck\.convs\.\d)\.", r"\1.conv."),
    (r"\.mlp\.lin1\.", ".mlp.layers.0."),
    (r"\.mlp\.lin2\.", ".mlp.layers.1."),
)
"""Patterns of our names with their replacements in the checkpoints of SAM 2, in this order."""

MEMORY = ("memory_attention.layers.0.linear1.bias", "memory_encoder.fuser.layers.0.gamma", "no_obj_ptr")
"""Some of the tensors that only videos need, and that a loader must leave out."""


def official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict under the names of SAM 2's checkpoints, with some tensors that only videos need."""
    renamed = dict.fromkeys(MEMORY, torch.zeros(1))
    for name, tensor in state.items():
        for pattern, theirs in NAMES:
            name = re.sub(pattern, theirs, name)
        renamed[name] = tensor
    return renamed


def save_official(sam: Sam, path: Path) -> Path:
    """Write a file such as SAM 2.1's authors publish; returns its path."""
    torch.save({"model": official(sam.state_dict())}, path)
    return path
