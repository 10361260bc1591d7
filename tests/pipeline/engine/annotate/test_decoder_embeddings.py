"""Which embeddings are made ahead, in what order, and which are kept."""

import io
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from segmint.model.sam.geometry import SAM1
from segmint.model.sam.predictor import Embedding
from segmint.operators.images import JpegDecoder
from segmint.pipeline.engine.annotate.decoder import Embeddings
from segmint.pipeline.engine.annotate.source import NotReadyError, OpenImage
from segmint.pipeline.serving.images import ImageAddress, NoImageError


class Recorder:
    """Stands for the encoder, which is slow: its order is what is looked at."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.sam = SimpleNamespace(geometry=SAM1)

    def run(self, work: Callable[..., Any], *args: Any) -> Any:
        return work(*args)

    def embed(self, pixels: NDArray[np.uint8], size: tuple[int, int]) -> Embedding:
        self.made.append(round(float(pixels.mean())) // 10)
        return Embedding(torch.zeros(1, 1, 1, 1), (1024, 1024), size)


def read(image: int) -> OpenImage:
    """An image of one gray, which is ten times its id."""
    jpeg = io.BytesIO()
    Image.new("RGB", (16, 16), (image * 10,) * 3).save(jpeg, "JPEG", quality=95)
    data = jpeg.getvalue() if image < 25 else b"no JPEG"
    return OpenImage(ImageAddress(image, image - 1, 0), 1, {"height": 16, "width": 16}, (), data)


@pytest.fixture(scope="module")
def decoder() -> Iterator[JpegDecoder]:
    """A decoder in this process."""
    with JpegDecoder(own=True) as it:
        yield it


@pytest.fixture
def recorder() -> Recorder:
    """What was embedded."""
    return Recorder()


def embeddings(recorder: Recorder, decoder: JpegDecoder, kept: int, patience_s: float = 30.0) -> Embeddings:
    return Embeddings(recorder, decoder, read, kept, patience_s=patience_s)  # type: ignore[arg-type]


def wait_for(recorder: Recorder, count: int) -> None:
    for _ in range(500):
        if len(recorder.made) >= count:
            break
        time.sleep(0.01)
    time.sleep(0.05)


def test_everybodys_first_comes_before_anybodys_second(recorder: Recorder, decoder: JpegDecoder) -> None:
    made = embeddings(recorder, decoder, 8)
    made.prepare("ann", [1, 2, 3, 1])
    made.prepare("bob", [4, 2, 6])
    with made:
        wait_for(recorder, 5)
        assert recorder.made == [1, 4, 2, 3, 6]
        made.prepare("ann", [6, 1])
        while not made.jobs.empty():
            time.sleep(0.01)
        time.sleep(0.05)
        assert recorder.made == [1, 4, 2, 3, 6]


def test_no_more_are_kept_than_the_bound_and_the_wanted_ones_longest(recorder: Recorder, decoder: JpegDecoder) -> None:
    with embeddings(recorder, decoder, 3) as made:
        made.prepare("ann", [1, 2])
        wait_for(recorder, 2)
        for image in (7, 8, 9):
            made.get(read(image))
            assert len(made) <= 3
        assert set(made.recent.images()) == {1, 2, 9}
        assert made.get(read(1)).image == 1
        assert recorder.made == [1, 2, 7, 8, 9]
        made.prepare("ann", [])
        made.get(read(7))
        assert set(made.recent.images()) == {9, 1, 7}


def test_all_annotators_together_want_no_more_than_the_bound(recorder: Recorder, decoder: JpegDecoder) -> None:
    made = embeddings(recorder, decoder, 4)
    made.prepare("ann", [1, 2, 3])
    made.prepare("bob", [4, 5, 6, 7, 8])
    with made:
        wait_for(recorder, 4)
        assert recorder.made == [4, 5, 6, 7]
        assert set(made.recent.images()) == {4, 5, 6, 7}


@pytest.mark.usefixtures("processes")
def test_other_pixels_are_another_embedding(recorder: Recorder, decoder: JpegDecoder) -> None:
    with embeddings(recorder, decoder, 3) as made:
        known = made.get(read(3))
        assert made.get(read(3)) is known
        made.recent.forget(3, unless=known.jpeg_sha256)
        assert made.recent.get(3) is known
        made.recent.forget(3, unless="0" * 64)
        assert made.recent.get(3) is None
        with pytest.raises(NoImageError, match="image 25"):
            made.get(read(25))
        assert made.get(read(3)).image == 3  # the thread goes on


def test_who_asks_too_early_is_told_so_and_it_is_made_once(
    recorder: Recorder, decoder: JpegDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    lets = threading.Event()
    embed = recorder.embed

    def slowly(pixels: NDArray[np.uint8], size: tuple[int, int]) -> Embedding:
        assert lets.wait(30)
        return embed(pixels, size)

    monkeypatch.setattr(recorder, "embed", slowly)
    with embeddings(recorder, decoder, 3, patience_s=0.05) as slow:
        for _ in range(3):
            with pytest.raises(NotReadyError, match="still embedding"):
                slow.get(read(3))
        lets.set()
        for _ in range(500):
            if not slow.asked:
                break
            time.sleep(0.01)
        assert slow.get(read(3)).image == 3
        slow.recent.forget(3)
        slow.patience_s = 30.0
        assert slow.get(read(3)).image == 3
    assert recorder.made == [3, 3]  # once for all three, and again after it was forgotten
    assert slow.jobs.empty()
