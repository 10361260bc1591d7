"""Looks at one image's bytes at a reduced scale: what a curation decides by. Runs in a child process."""

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segmint.infra.storage.storage import Storage
from segmint.operators.child import Worker
from segmint.operators.curate.fitness import SIDE, at_scale, measure
from segmint.operators.curate.scorers import Scorer, load_scorers
from segmint.operators.curate.settings import ScorerConfig
from segmint.operators.opt_out.opt_out import opt_out
from segmint.operators.prepare.ingest import IngestConfig, ingest
from segmint.operators.similar.hashes import image_hashes


@dataclass(frozen=True)
class LookConfig:
    """What determines what is seen in an image."""

    ingest: IngestConfig
    mirror: bool
    opt_outs: bool
    scorers: tuple[ScorerConfig, ...]


@dataclass(frozen=True)
class Look:
    """What was seen in one image."""

    width: int  # pixels of the upright source
    height: int
    hashes: NDArray[np.uint64]  # of its views, (V,)
    thumbnail: NDArray[np.uint8]  # (64, 64), gray
    measures: dict[str, float]
    scores: tuple[float | None, ...]  # in the scorers' order; None: a scorer gave no number
    opt_out: str | None  # how its metadata forbids training with it, in a sentence


def look_at(data: bytes, config: LookConfig, scorers: Sequence[Scorer] = ()) -> Look:
    """Look at an image; raises `RejectedError` as `ingest` does for what cannot be decoded."""
    source = ingest(data, config.ingest, SIDE)
    image = at_scale(source.image)
    hashes = image_hashes(image, mirror=config.mirror)
    reserved = opt_out(data) if config.opt_outs else None
    return Look(
        width=source.source_width,
        height=source.source_height,
        hashes=hashes.views(),
        thumbnail=hashes.thumbnail,
        measures=measure(image),
        scores=tuple(scorer.score(image) for scorer in scorers),
        opt_out=None if reserved is None else reserved.detail,
    )


def build_looker(config: LookConfig, storage: Storage, assets: str | None) -> Worker[Look]:
    """Build `look_at` with its scorers, for a child process; `assets` is a folder that mirrors their files."""
    import cv2

    cv2.setNumThreads(1)
    warnings.filterwarnings("ignore", module="PIL")  # odd metadata is common among millions of photographs
    scorers = load_scorers(config.scorers, storage, assets)
    return functools.partial(look_at, config=config, scorers=scorers)
