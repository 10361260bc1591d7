"""Text prompts for SAM: CLIP's embedding of a text, projected to one token of the prompt encoder (SAM paper, D.5)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from segmint.infra.errors import UsageError
from segmint.model.sam.common import EMBEDDING_CHANNELS
from segmint.operators.text.clip import Clip, ClipFolder

_LINEAGE = "segmint"  # key of the safetensors file's metadata


class TextPrompts:
    """Embedder of texts as prompts. It combines a CLIP with a projection (D to 256) trained for it and a SAM."""

    def __init__(self, clip: Clip, projection: nn.Linear, clip_sha256: str | None = None) -> None:
        """`clip_sha256` is the hash of the CLIP's folder, which is available as an attribute.

        Raises `UsageError` if the projection doesn't map embeddings of this CLIP to SAM's tokens.
        """
        if projection.in_features != clip.dimension:
            raise UsageError(
                f"the projection takes embeddings of {projection.in_features} numbers, but CLIP's have {clip.dimension}"
            )
        if projection.out_features != EMBEDDING_CHANNELS:
            raise UsageError(
                f"the projection returns {projection.out_features} numbers, but SAM's tokens have {EMBEDDING_CHANNELS}"
            )
        self._clip, self._projection, self.clip_sha256 = clip, projection, clip_sha256

    @classmethod
    def load(cls, clip: str | Path, projection: str | Path, device: str = "cpu", sam_sha256: str | None = None) -> Self:
        """Load a CLIP's folder and a projection's file onto a device.

        Raises `UsageError` if one of them can't be used, or if the projection was trained with another CLIP. With
        `sam_sha256`, also raises it if the projection was trained with different SAM weights.
        """
        folder = ClipFolder.open(Path(clip))
        linear, lineage = load_projection(projection)
        for name, here in (("clip_sha256", folder.sha256), ("sam_sha256", sam_sha256)):
            if here is not None and lineage.get(name) != here:
                raise UsageError(f"{projection} was trained with {name} {lineage.get(name)}, but this one is {here}")
        return cls(folder.load(device), linear.to(device), folder.sha256)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the tokens (B, 256) float32 of B texts. Embeddings are scaled to length 1 before the projection."""
        found = self._clip.embed_texts(texts)
        with torch.inference_mode():
            tokens: Tensor = self._projection(found / found.norm(dim=1, keepdim=True))
        return tokens


def save_projection(path: str | Path, projection: nn.Linear, lineage: Mapping[str, Any]) -> None:
    """Write a projection with its lineage, which contains JSON values including `sam_sha256` and `clip_sha256`."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in projection.state_dict().items()}
    save_file(tensors, path, {_LINEAGE: json.dumps(dict(lineage), sort_keys=True)})


def load_projection(path: str | Path) -> tuple[nn.Linear, Mapping[str, Any]]:
    """Read a projection and its lineage from a file. Raise `UsageError` if `save_projection` didn't write the file."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            lineage = json.loads((file.metadata() or {})[_LINEAGE])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it isn't a dict)
        projection = nn.Linear(state["weight"].shape[1], state["weight"].shape[0])
        projection.load_state_dict(state)
        if not all(tensor.isfinite().all() for tensor in state.values()):
            raise ValueError("it contains numbers that aren't finite")
    except Exception as error:
        raise UsageError(f"{path} isn't a projection of text prompts: {error}") from error
    return projection.requires_grad_(False), lineage
