"""Training of a projection for text prompts: CLIP's embeddings of crops in place of texts (SAM paper, Appendix D.5)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segmint.infra.errors import UsageError
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location
from segmint.model.sam.common import EMBEDDING_CHANNELS
from segmint.model.sam.sam import Sam
from segmint.operators.text.clip import Clip, ClipFolder
from segmint.operators.text.prompts import save_projection
from segmint.pipeline.engine.train.record import TrainingRunRecord, put_by_hash
from segmint.pipeline.engine.train.settings import TrainConfig

_PROJECTION = "prompt_encoder.text_projection."


def load_clip(config: TrainConfig, run: TrainingRunRecord, device: str) -> Clip | None:
    """Load the run's CLIP. Return None if `text.clip` isn't set. Raises `UsageError` if its files aren't the run's."""
    if config.text.clip is None:
        return None
    folder = ClipFolder.open(Path(config.text.clip))
    if folder.sha256 != run.config["text"]["clip"]:
        raise UsageError(f"text.clip: {folder.path} differs between machines: expected the same files everywhere")
    return folder.load(device)


def add_projection(sam: Sam, clip: Clip, seed: int) -> None:
    """Add a projection with random weights to the prompt encoder. Its tokens are as large as SAM's learned tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projection = nn.Linear(clip.dimension, EMBEDDING_CHANNELS)
        nn.init.normal_(projection.weight)
    sam.prompt_encoder.text_projection = projection.to(sam.device)


def embed_crops(clip: Clip, at_once: int, crops: Tensor, shown: Tensor) -> Tensor:
    """Embed crops with CLIP, `at_once` at a time, and normalize the embeddings to length 1."""
    parts = zip(torch.split(crops, at_once), torch.split(shown, at_once), strict=True)
    found = torch.cat([clip.embed_crops(*part) for part in parts])
    units: Tensor = found / found.norm(dim=1, keepdim=True)
    return units


def take_projection(weights: dict[str, Tensor]) -> nn.Linear | None:
    """Remove the projection from trained weights and return it. Return None if they contain no projection."""
    names = [name for name in weights if name.startswith(_PROJECTION)]
    if not names:
        return None
    state = {name.removeprefix(_PROJECTION): weights.pop(name) for name in names}
    projection = nn.Linear(state["weight"].shape[1], state["weight"].shape[0])
    projection.load_state_dict(state)
    return projection


def put_projection(output: Location, projection: nn.Linear, lineage: Mapping[str, Any]) -> dict[str, str]:
    """Write the projection as `text-<hash>.safetensors`. Return its name and its SHA-256 for the run's record."""
    with ScratchFolder() as name:
        path = Path(name) / "text.safetensors"
        save_projection(path, projection, lineage)
        file, sha256 = put_by_hash(output, path)
    return {"file": file, "sha256": sha256}
