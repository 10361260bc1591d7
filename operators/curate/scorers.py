"""Scorers: a user's TorchScript modules that assign a number to an image."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmint.infra.assets.cache import sha256_of
from segmint.infra.assets.known import AssetError
from segmint.infra.assets.resolve import resolve
from segmint.infra.errors import UsageError
from segmint.infra.storage.storage import Storage
from segmint.operators.curate.settings import ScorerConfig

Pixels = NDArray[np.uint8]

_TRIAL = (512, 640)  # pixels of the image that a module is tried with


class Scorer:
    """A loaded module. Raises `UsageError` if its hash is wrong or it returns no finite number for a gray image."""

    def __init__(self, config: ScorerConfig, storage: Storage, assets: str | None) -> None:
        import torch

        where = f"curate.scorers, {config.name}"
        try:
            path = resolve(config.file, mirror=assets, storage=storage)
        except AssetError as error:
            raise UsageError(f"{where}: {error}") from error
        found = sha256_of(path)
        if found != config.sha256:
            raise UsageError(f"{where}: {config.file} has SHA-256 {found}: expected {config.sha256}")
        try:
            self._module: Any = torch.jit.load(path, map_location="cpu").eval()  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            raise UsageError(f"{where}: {path} can't be loaded as TorchScript: {error}") from error
        self.name = config.name
        if self.score(np.full((*_TRIAL, 3), 128, np.uint8)) is None:
            raise UsageError(
                f"{where}: {path} returns no number for a gray image: expected a TorchScript module that takes one RGB "
                "image, (3, H, W) uint8, and returns one finite number"
            )

    def score(self, image: Pixels) -> float | None:
        """Return the score of an image, (H, W, 3) uint8 RGB; None if the module fails or returns no finite number."""
        import torch

        planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        try:
            # The optimizing executor may compute the first calls differently from later ones.
            with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
                number = float(self._module(planes))
        except (MemoryError, ImportError):
            raise
        except Exception as error:
            if "allocate memory" in str(error):
                raise
            return None
        return number if math.isfinite(number) else None


def load_scorers(configs: Sequence[ScorerConfig], storage: Storage, assets: str | None) -> tuple[Scorer, ...]:
    """Load all scorers of a configuration, with one thread each, because more would change the last bits of sums."""
    if configs:  # otherwise nothing needs torch, which takes seconds to import
        import torch

        torch.set_num_threads(1)
    return tuple(Scorer(config, storage, assets) for config in configs)
