"""Logs of a training run: a line per step, TensorBoard files, and overlays of held-out images."""

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from segmint.infra.errors import SegmintError
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location
from segmint.infra.uris import LOCAL, absolute, local_path, scheme
from segmint.pipeline.engine.train.evaluation import Evaluation
from segmint.pipeline.engine.train.trainer import StepResult

LOGS = "logs"
OVERLAYS = "overlays"


class RunLog(AbstractContextManager["RunLog"]):
    """Context manager for the log; TensorBoard's files go to `logs/` (in a bucket, only when `save` is called)."""

    def __init__(self, output: Location, say: Callable[[str], None]) -> None:
        """Open TensorBoard's files; `say` prints a line for people."""
        from tensorboardX import SummaryWriter

        self._say = say
        self._output = output
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        if scheme(output.uri) == LOCAL:
            self._folder = local_path(absolute(output.uri)) / LOGS
        else:
            self._scratch = ScratchFolder()
            self._folder = Path(self._scratch.name)
        try:
            self._writer = SummaryWriter(str(self._folder))
        except OSError as error:
            raise SegmintError(f"can't write the logs to {self._folder}: {error.strerror or error}") from error

    def step(self, result: StepResult, steps: int) -> None:
        """Log a step."""
        self._say(result.line(steps))
        if result.masks:
            for name in ("loss", "focal", "dice", "iou_error", "first_iou", "last_iou", "gradient", "rate", "masks"):
                self._writer.add_scalar(f"train/{name}", getattr(result, name), result.step)

    def evaluation(self, evaluation: Evaluation) -> None:
        """Log the scores on held-out images."""
        self._say(evaluation.line())
        self._writer.add_scalar("held_out/one_click", evaluation.one_click, evaluation.step)
        self._writer.add_scalar("held_out/oracle", evaluation.oracle, evaluation.step)

    def picture(self, step: int, number: int, png: bytes) -> None:
        """Store an overlay of a held-out image."""
        (self._output / OVERLAYS / f"step-{step:06d}-{number:02d}.png").put(png)

    def save(self) -> None:
        """Flush the log to the output."""
        self._writer.flush()
        if self._scratch is not None:
            for path in sorted(self._folder.iterdir()):
                (self._output / LOGS / path.name).put_file(path)

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self._writer.close()
            if kind is None:
                self.save()
        finally:
            if self._scratch is not None:
                self._scratch.cleanup()
