"""Measures parts of the truth in one process: loads the weights once, and reads images ahead."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa

from segmint.infra.device import resolve_compute
from segmint.infra.errors import SegmintError
from segmint.infra.log import get_logger
from segmint.infra.threads import map_ahead
from segmint.model.sam.predictor import Predictor
from segmint.operators.decoding import JpegDecoder
from segmint.operators.evaluate.encoders import share_equal_encoders
from segmint.operators.rows import Row
from segmint.operators.segment.models import load_model
from segmint.pipeline.engine.evaluate.measure import EvaluateTask, PartlyMeasuredError, PartResult
from segmint.pipeline.engine.evaluate.truth import (
    Decoders,
    PendingImage,
    SkippedTruth,
    TruthImage,
    TruthPart,
    UnreadableTruthError,
)

_THREADS = 2
_AHEAD = 3


class _ReadResult(NamedTuple):
    """An image that was read, or why it could not be."""

    name: str
    image: TruthImage | None
    why: str = ""


class Evaluator:
    """The weights of a run in one process. A context manager: its decoders' children end with it."""

    def __init__(self, task: EvaluateTask, names: Sequence[str]) -> None:
        """Load the weights; `names` are those of the truths, for what is left out."""
        self._task = task
        self._names = names
        compute = resolve_compute(task.device, task.precision, task.threads)
        self._computed_on = f"{compute.device}, {compute.precision}"
        models = [load_model(weights.find(), compute) for weights in task.weights]
        share_equal_encoders(models)
        self._models = [Predictor(model) for model in models]
        self._decoders = Decoders(JpegDecoder(own=True, processes=1), JpegDecoder(own=False, processes=1))

    def measure(self, truth: int, part: TruthPart, done: Callable[[int], None] = lambda images: None) -> PartResult:
        """Measure the images of a part of truth number `truth`; calls `done` with the images so far.

        What cannot be read or measured is listed, and stops nothing.
        """
        started = time.monotonic()
        rows: list[Row] = []
        skipped: list[SkippedTruth] = []
        measured = 0
        for count, read in enumerate(self._read(part), start=1):
            why = [read.why] if read.image is None else [*read.image.skipped]
            if read.image is not None:
                try:
                    rows += self._rows(read.image)
                    measured += 1
                except PartlyMeasuredError as error:
                    rows += _with_head(read.image, error.rows)
                    measured += 1
                    why.append(str(error))
                except ValueError as error:
                    why.append(str(error))
                except Exception as error:
                    if _is_lost_device(error):
                        raise
                    get_logger("evaluate").warning("image failed", image=read.name, exc_info=True)
                    why.append(f"{type(error).__name__}: {error}")
            skipped += [SkippedTruth(self._names[truth], read.name, each) for each in why]
            done(count)
        table = pa.Table.from_pylist(rows, schema=self._task.measure.schema)
        return PartResult(table, skipped, measured, self._computed_on, time.monotonic() - started)

    def _rows(self, image: TruthImage) -> list[Row]:
        return _with_head(image, self._task.measure.rows(self._models, image))

    def _read(self, part: TruthPart) -> Iterator[_ReadResult]:
        """The images in order, read and decoded by threads; a part that breaks off gives a last entry that says why."""
        broken: list[str] = []

        def pending() -> Iterator[PendingImage]:
            try:
                yield from part.pending()
            except (SegmintError, OSError) as error:
                broken.append(f"the rest of it cannot be read: {error}")

        yield from map_ahead(self._load, pending(), _THREADS, _AHEAD, "truth")
        for why in broken:
            yield _ReadResult(part.name, None, why)

    def _load(self, pending: PendingImage) -> _ReadResult:
        try:
            return _ReadResult(pending.name, pending.load(self._decoders))
        except UnreadableTruthError as error:
            return _ReadResult(pending.name, None, str(error))
        except Exception as error:  # noqa: BLE001 - one image must not stop the others
            return _ReadResult(pending.name, None, f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """End the decoders' children."""
        for decoder in self._decoders:
            decoder.close()

    def __enter__(self) -> "Evaluator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _with_head(image: TruthImage, rows: Sequence[Row]) -> list[Row]:
    head = {"truth": image.truth, "image_id": image.image_id, "image": image.name}
    return [{**head, **row} for row in rows]


def _is_lost_device(error: Exception) -> bool:
    """Whether a GPU failed otherwise than by a lack of memory: nothing can be computed on it in this process."""
    import torch

    return isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.cuda.OutOfMemoryError)
