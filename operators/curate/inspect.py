"""Inspection of one image's bytes at reduced scale for curation; runs in a child process."""

import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmint.catalogs.reasons import Reason, RejectedError
from segmint.infra.assets.cache import sha256_of
from segmint.infra.assets.known import AssetError
from segmint.infra.assets.resolve import resolve
from segmint.infra.errors import UsageError
from segmint.infra.storage.storage import Storage
from segmint.operators.child import Worker
from segmint.operators.curate.fitness import SIDE, at_scale, measure
from segmint.operators.curate.settings import ScorerConfig
from segmint.operators.images import Pixels
from segmint.operators.opt_out.opt_out import opt_out
from segmint.operators.prepare.ingest import IngestConfig, ingest
from segmint.operators.similar.hashes import image_hashes

_TRIAL = (512, 640)  # pixels of the image that a module is tried with


class Scorer:
    """A loaded scorer module.

    The constructor raises `UsageError` if the file's hash is wrong or the module returns no finite number for a gray
    image.
    """

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
                f"{where}: {path} doesn't return a number for a gray image: expected a TorchScript module that takes "
                "one RGB image, (3, H, W) uint8, and returns one finite number"
            )

    def score(self, image: Pixels) -> float | None:
        """Score an image, (H, W, 3) uint8 RGB. Return None if the module fails or returns no finite number."""
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
    """Load all scorers of a configuration. torch uses one thread, because more would change the last bits of sums."""
    if configs:  # otherwise nothing needs torch, which takes seconds to import
        import torch

        torch.set_num_threads(1)
    return tuple(Scorer(config, storage, assets) for config in configs)


@dataclass(frozen=True)
class InspectionConfig:
    """Everything that determines the result of an inspection."""

    ingest: IngestConfig
    mirror: bool
    opt_outs: bool
    scorers: tuple[ScorerConfig, ...]


@dataclass(frozen=True)
class ImageInspection:
    """Result of inspecting one image."""

    width: int  # pixels of the upright source
    height: int
    hashes: NDArray[np.uint64]  # (V,) hashes of the image's views
    thumbnail: NDArray[np.uint8]  # (64, 64), gray
    measures: dict[str, float]
    scores: tuple[float | None, ...]  # in the scorers' order; None if a scorer returned no number
    opt_out: str | None  # a sentence on how the image's metadata forbids training


class UndecodedError(RejectedError):
    """Raised when an image can't be decoded. Includes the opt-out from the image's metadata, if any."""

    def __init__(self, reason: Reason, detail: str, opt_out: str | None) -> None:
        super().__init__(reason, detail)
        self.opt_out = opt_out

    def __reduce__(self) -> tuple[type["UndecodedError"], tuple[Reason, str, str | None]]:  # type: ignore[override]
        """Support pickling, because the verdict crosses process boundaries."""
        return type(self), (self.reason, self.detail, self.opt_out)


def inspect_image(data: bytes, config: InspectionConfig, scorers: Sequence[Scorer] = ()) -> ImageInspection:
    """Inspect an image. Raise `UndecodedError` if `ingest` rejects it."""
    reserved = read_opt_out(data) if config.opt_outs else None
    try:
        source = ingest(data, config.ingest, SIDE)
    except RejectedError as verdict:
        raise UndecodedError(verdict.reason, verdict.detail, reserved) from None
    image = at_scale(source.image)
    hashes = image_hashes(image, mirror=config.mirror)
    return ImageInspection(
        width=source.source_width,
        height=source.source_height,
        hashes=hashes.views,
        thumbnail=hashes.thumbnail,
        measures=measure(image),
        scores=tuple(scorer.score(image) for scorer in scorers),
        opt_out=reserved,
    )


def read_opt_out(data: bytes) -> str | None:
    """Return a sentence that states how an image's metadata forbids training, or None if it doesn't."""
    found = opt_out(data)
    return None if found is None else found.detail


def build_opt_out_reader() -> Worker[str | None]:
    """Build `read_opt_out` for a child process."""
    return read_opt_out


def build_looker(config: InspectionConfig, storage: Storage, assets: str | None) -> Worker[ImageInspection]:
    """Build `inspect_image` with its scorers, for a child process. `assets` is a folder that mirrors their files."""
    import cv2

    cv2.setNumThreads(1)
    warnings.filterwarnings("ignore", module="PIL")  # odd metadata is common among millions of photographs
    scorers = load_scorers(config.scorers, storage, assets)
    return functools.partial(inspect_image, config=config, scorers=scorers)
