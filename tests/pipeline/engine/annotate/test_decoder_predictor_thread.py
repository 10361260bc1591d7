"""One thread runs the model, and clicks come before the next layer of an image that is encoded."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segmint.model.sam.load import load_sam
from segmint.model.sam.predictor import Predictor
from segmint.pipeline.engine.annotate.decoder import PredictorThread
from tests.support.embedded_once import encoding_once

POINT: dict[str, Any] = {"points": np.array([[[300.0, 150.0]]]), "labels": np.array([[1]])}


@pytest.fixture(scope="module")
def one(mobile_sam_path: Path) -> Iterator[PredictorThread]:
    """The real model in its thread."""
    with PredictorThread(lambda: load_sam(mobile_sam_path)) as it:
        yield it


def test_a_click_is_answered_while_an_image_is_encoded(
    one: PredictorThread, mobile_sam_path: Path, coffee: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with encoding_once(tmp_path_factory):
        plain = Predictor(load_sam(mobile_sam_path))
        expected = plain.embed(coffee)
    order: list[str] = []
    begun, asked = threading.Event(), threading.Event()

    def hold() -> None:
        """Let no layer begin until the click waits."""
        if not begun.is_set():
            begun.set()
            assert asked.wait(30)

    def encode() -> None:
        made.append(one.embed(coffee))
        order.append("embedding")

    one.before_each_layer(hold)
    made: list[Any] = []
    thread = threading.Thread(target=encode)
    thread.start()
    assert begun.wait(30)
    answers: list[Any] = []
    click = threading.Thread(target=lambda: (answers.append(one.predict(expected, **POINT)), order.append("click")))
    click.start()
    while one.jobs.empty():
        time.sleep(0.001)
    asked.set()
    click.join()
    thread.join()
    assert order == ["click", "embedding"]
    assert torch.equal(made[0].features, expected.features)
    assert torch.equal(answers[0].low_res_logits, plain.predict(expected, **POINT).low_res_logits)


def test_all_work_is_done_in_the_thread_and_its_errors_come_back(one: PredictorThread) -> None:
    names = {one.run(lambda: one.run(threading.current_thread).name) for _ in range(3)}
    assert names == {"predictor"}
    with pytest.raises(ValueError, match="shape"):
        one.embed(np.zeros((3, 3), np.uint8))
    with pytest.raises(ZeroDivisionError):
        one.run(lambda: 1 // 0)
    assert one.run(int, "12") == 12


def test_a_model_that_cannot_be_loaded_leaves_no_thread() -> None:
    def fails() -> Any:
        raise OSError("no such weights")

    before = threading.active_count()
    with pytest.raises(OSError, match="no such weights"):
        PredictorThread(fails)
    assert threading.active_count() == before
