"""The server's model, run by one thread that gives priority to clicks, even while an image is being encoded.

torch creates a separate team of threads for each thread that computes. If a process's teams have more threads than
there are cores, libgomp puts waiting threads to sleep immediately. A prompt consists of many small steps, and waking
the threads for each step takes as long as the step itself. With a single team, the threads stay awake between the steps
for as long as `GOMP_SPINCOUNT` allows.
"""

import itertools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from segmint.model.sam.predictor import Embedding, Predictor, PromptMasks
from segmint.model.sam.sam import Sam

_URGENT, _LATER, _LAST = range(3)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(order=True)
class _PredictorJob:
    urgency: int
    number: int
    work: Callable[[], Any] = field(compare=False)
    result: "Future[Any]" = field(compare=False, default_factory=Future)


class PredictorThread(Predictor, AbstractContextManager["PredictorThread"]):
    """`Predictor` that does all its work in one thread, including `load`. Thread-safe. Use it as a context manager.

    `embed` takes the longest, so it gives way to other work. It starts when no other work is waiting. Before each layer
    of the encoder, the thread runs at most one waiting job.
    """

    def __init__(self, load: Callable[[], Sam]) -> None:
        self.jobs: queue.PriorityQueue[_PredictorJob] = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=self._work, name="predictor", daemon=True)
        self._thread.start()
        try:
            self._do(_URGENT, lambda: Predictor.__init__(self, load()))
            self.before_each_layer(self._let_one_pass)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self.jobs.put(_PredictorJob(_LAST, next(self._numbers), lambda: None))
        self._thread.join()

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `work` in the thread and return its result."""
        answer: T = self._do(_URGENT, lambda: work(*args, **kwargs))
        return answer

    def embed(self, image: npt.NDArray[np.uint8] | Tensor, frame_size: tuple[int, int] | None = None) -> Embedding:
        """Embed an image as `Predictor.embed` does."""
        embedding: Embedding = self._do(_LATER, lambda: Predictor.embed(self, image, frame_size))
        return embedding

    def predict(self, *args: Any, **kwargs: Any) -> PromptMasks:
        """Predict masks as `Predictor.predict` does."""
        return self.run(Predictor.predict, self, *args, **kwargs)

    def upscale(self, logits: Tensor, embedding: Embedding) -> Tensor:
        """Upscale logits as `Predictor.upscale` does."""
        return self.run(Predictor.upscale, self, logits, embedding)

    def _do(self, urgency: int, work: Callable[[], Any]) -> Any:
        if threading.current_thread() is self._thread:
            return work()
        job = _PredictorJob(urgency, next(self._numbers), work)
        self.jobs.put(job)
        return job.result.result()

    def _work(self) -> None:
        while True:
            job = self.jobs.get()
            _answer(job)
            if job.urgency == _LAST:
                return

    def _let_one_pass(self) -> None:
        """Run at most one urgent job, so that the encoding of an image finishes no matter how many clicks arrive."""
        if threading.current_thread() is self._thread and self.jobs.queue and self.jobs.queue[0].urgency == _URGENT:
            _answer(self.jobs.get())


def _answer(job: _PredictorJob) -> None:
    try:
        job.result.set_result(job.work())
    except BaseException as error:  # noqa: BLE001 - passed on to the waiting thread
        job.result.set_exception(error)
