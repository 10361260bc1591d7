"""Threads that torch does not multiply, and results that do not depend on how many there are."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from segmint.model.automatic.crops import Crop
from segmint.model.automatic.generator import MaskGenerator, Workers, to_records
from segmint.model.automatic.settings import MaskSettings
from segmint.model.sam.load import load_sam
from segmint.model.sam.predictor import Predictor

pytestmark = pytest.mark.usefixtures("embedded_once")


def test_each_thread_computes_alone_and_the_others_as_before() -> None:
    before = torch.get_num_threads()
    workers = Workers(3)
    meet = threading.Barrier(3, timeout=30)

    def threads(_: int) -> tuple[int, str]:
        meet.wait()
        return torch.get_num_threads(), threading.current_thread().name

    found = list(workers.map(threads, range(3)))

    assert [count for count, _ in found] == [1, 1, 1]
    assert len({name for _, name in found}) == 3
    assert torch.get_num_threads() == before
    late: list[int] = []
    other = threading.Thread(target=lambda: late.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert late == [before]


def test_results_come_in_order_and_an_error_in_its_place() -> None:
    results = Workers(2).map(lambda n: 12 // (3 - n), range(5))

    assert [next(results) for _ in range(3)] == [4, 6, 12]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_what_is_done_first_waits_for_its_turn() -> None:
    second = threading.Event()

    def after_the_second(n: int) -> int:
        if n == 1:
            second.set()
        assert second.wait(timeout=30)
        return n

    assert list(Workers(2).map(after_the_second, range(4))) == [0, 1, 2, 3]


def test_the_number_of_threads_changes_no_bit(mobile_sam_path: Path, coffee: np.ndarray) -> None:
    predictor = Predictor(load_sam(mobile_sam_path))
    settings = MaskSettings.official(points_per_side=5, pred_iou_thresh=0.7, stability_score_thresh=0.8)
    crop = Crop(0, (0, 0, coffee.shape[1], coffee.shape[0]))
    # The encoder's own bits do depend on torch's threads.
    embedding = predictor.embed(coffee)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            generator = MaskGenerator(predictor, settings)
            candidates, funnel = generator.process_crop(crop, embedding, crop.size)
            found.append((to_records(candidates, crop.size), funnel))
    finally:
        torch.set_num_threads(before)

    assert len(found[0][0]) > 5
    assert found[0] == found[1] == found[2]
