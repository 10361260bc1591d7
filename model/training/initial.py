"""Initial weights for the paper's training: a pretrained image encoder, and random weights for all other parts.

The encoder's weights come from MAE (arXiv 2111.06377) or ViTDet (arXiv 2203.16527), in a PyTorch checkpoint in which
tensors have their authors' names. If the checkpoint's positions are for a different grid, they are resized, as in
ViTDet.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from segmint.model.sam.load import Architecture, SamWeightsError, build_sam, encoder_architecture, read_state
from segmint.model.sam.sam import Sam

_PREFIXES = ("module.", "model.", "backbone.net.", "backbone.", "encoder.")
_RENAMED = {".mlp.fc1.": ".mlp.lin1.", ".mlp.fc2.": ".mlp.lin2."}
_OWN = ("patch_embed.", "blocks.", "pos_embed")


def inspect_encoder(path: str | Path) -> Architecture:
    """Detect the architecture in a file of encoder weights. Raises the same errors as `load_sam`."""
    return encoder_architecture(dict(_renamed(read_state(path, "meta"))))


def sam_with_encoder(path: str | Path, decoder_layers: int, seed: int) -> Sam:
    """Create a SAM with the encoder weights from a file. All other weights are drawn at random from the seed.

    Raises SamWeightsError if weights of the encoder are missing, have different shapes, or belong to a different kind
    of ViT. Also raises the same errors as `load_sam`.
    """
    found = dict(_renamed(read_state(path, "cpu")))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sam = build_sam(encoder_architecture(found), decoder_layers)
    expected = sam.image_encoder.state_dict()
    for name in sorted(found.keys() - {f"image_encoder.{each}" for each in expected}):
        raise SamWeightsError(f"{path} has {name.removeprefix('image_encoder.')}, which SAM's encoder lacks")
    state = {}
    for name, weight in expected.items():
        given = found.get(f"image_encoder.{name}")
        if given is None:
            if not name.startswith("neck.") and ".rel_pos_" not in name:
                raise SamWeightsError(f"{path} lacks the encoder's {name}: expected weights of MAE or ViTDet")
            continue
        state[name] = resized(name, given.to(torch.float32), weight)
        if state[name].shape != weight.shape:
            raise SamWeightsError(f"{path}: {name} is {tuple(given.shape)}, but the encoder's is {tuple(weight.shape)}")
    sam.image_encoder.load_state_dict(expected | state)
    return sam


def resized(name: str, given: Tensor, weight: Tensor) -> Tensor:
    """Resize a position embedding to the shape of `weight`. Other weights stay unchanged.

    Absolute positions are interpolated bicubically, and relative positions are interpolated linearly. MAE's absolute
    positions are (1, 1 + side², C). The first position belongs to the class token and is dropped.
    """
    if name == "pos_embed" and given.ndim == 3:
        side = math.isqrt(given.shape[1])
        given = given[:, given.shape[1] - side**2 :].reshape(1, side, side, given.shape[2])
    if given.shape == weight.shape:
        return given
    if name == "pos_embed":
        grid = F.interpolate(given.permute(0, 3, 1, 2), weight.shape[1:3], mode="bicubic", align_corners=False)
        return grid.permute(0, 2, 3, 1).contiguous()
    if ".rel_pos_" in name:
        return F.interpolate(given.T[None], weight.shape[0], mode="linear")[0].T.contiguous()
    return given


def _renamed(state: object) -> Iterator[tuple[str, Tensor]]:
    """Yield the encoder's tensors with SAM's names, without extra parts such as MAE's class token and last norm."""
    if isinstance(state, Mapping) and isinstance(state.get("model"), Mapping):
        state = state["model"]
    for name, tensor in state.items() if isinstance(state, Mapping) else ():
        for prefix in _PREFIXES:
            name = str(name).removeprefix(prefix)
        for theirs, ours in _RENAMED.items():
            name = name.replace(theirs, ours)
        if isinstance(tensor, Tensor) and name.startswith(_OWN):
            yield f"image_encoder.{name}", tensor
