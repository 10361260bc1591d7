"""The held-out images that a run is evaluated on, read once."""

from collections.abc import Sequence
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor

from segmint.model.sam.sam import Sam
from segmint.pipeline.engine.train.data.draws import StepDraw
from segmint.pipeline.engine.train.data.reading import TrainingImage, TrainingImageReader
from segmint.pipeline.engine.train.embedding import FrozenEncoder, encoder_input
from segmint.pipeline.engine.train.evaluation import Evaluation, draw_sample, evaluate
from segmint.pipeline.engine.train.logs import RunLog
from segmint.pipeline.engine.train.world import WorkerRank


class HeldOutSample:
    """The same images and masks at every evaluation, divided among the workers.

    Of a frozen encoder their embeddings stay in memory, 4 MB each.
    """

    def __init__(
        self,
        sam: Sam,
        draws: Sequence[StepDraw],
        reader: TrainingImageReader,
        encoder: FrozenEncoder | None,
        pictures: int,
        world: WorkerRank = WorkerRank(),  # noqa: B008 (a frozen value)
    ) -> None:
        """`pictures` is how many of the images are drawn; the first worker draws them all."""
        self._sam = sam
        self._draws = draws
        self._reader = reader
        self._encoder = encoder
        self._pictures = pictures
        self._world = world
        self._embeddings: dict[int, Tensor] = {}

    def evaluate(self, step: int) -> Evaluation:
        """Evaluate the model as it is after a step."""
        return evaluate(self._sam, self._reads, self._embed, step, self._world)

    def draw(self, step: int, log: RunLog) -> None:
        """Draw the first images as the model sees them after a step."""
        for number, read in enumerate(self._pictured):
            pixels = self._reader.pixels_of(read)
            if pixels is not None:
                log.picture(step, number, draw_sample(self._sam, pixels, read.masks, self._embed(read)))

    @cached_property
    def _reads(self) -> list[TrainingImage]:
        found = (self._read(draw) for draw in self._world.part(self._draws))
        return [read for read in found if read is not None]

    @cached_property
    def _pictured(self) -> list[TrainingImage]:
        mine = {read.slot: read for read in self._reads}
        found = (mine.get(draw.slot) or self._read(draw) for draw in self._draws)
        return list(islice((read for read in found if read is not None), self._pictures))

    def _read(self, draw: StepDraw) -> TrainingImage | None:
        return self._reader.read(draw) if self._encoder is None else self._reader.read(draw, self._encoder.kept)

    def _embed(self, read: TrainingImage) -> Tensor:
        if self._encoder is None:
            with torch.no_grad():
                features: Tensor = self._sam.image_encoder(encoder_input(self._sam, [read]))
            return features
        if read.image not in self._embeddings:
            self._embeddings[read.image] = self._encoder.embed(read)
        return self._embeddings[read.image]
