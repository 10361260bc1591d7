"""Generators, predictors, and datasets in other processes: forked ones, and ones that unpickle them."""

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import segmint
from segmint.compat import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry
from segmint.model.device import check_process, inference
from tests.support.locations import location_of
from tests.support.trainable import write_three

START_S = 120

pytestmark = pytest.mark.usefixtures("embedded_once")


@pytest.fixture(scope="module")
def photograph(coffee: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(coffee[100:200, 200:300])


@pytest.fixture(scope="module")
def generator(weights: None, photograph: np.ndarray) -> segmint.MaskGenerator:
    made = segmint.MaskGenerator("mobile_sam", "official", points_per_side=2, stability_score_thresh=0.5, device="cpu")
    made.generate(photograph)  # used before it reaches another process
    return made


class Masks(Dataset[list[tuple[int, int]]]):
    """The areas of a photograph's masks, by a generator and by its predictor."""

    def __init__(self, generator: segmint.MaskGenerator, photograph: np.ndarray) -> None:
        self.generator, self.photograph = generator, photograph

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> list[int]:
        found = self.generator.generate(self.photograph)
        prompted = self.generator.predictor.predict(self.photograph, points=[[30, 40]])  # type: ignore[arg-type]
        return [*(record.area for record in found.records), *(record.area for record in prompted.records)]


def test_workers_of_a_loader_return_the_same_masks(generator: segmint.MaskGenerator, photograph: np.ndarray) -> None:
    dataset = Masks(generator, photograph)
    loader = DataLoader(dataset, None, num_workers=1, multiprocessing_context="forkserver", timeout=START_S)
    expected = dataset[0]
    assert len(expected) > 1
    assert list(loader) == [expected]


def answer(dataset: Masks, answers: Any) -> None:
    answers.put(dataset[0])


def test_a_forked_process_returns_the_same_masks(generator: segmint.MaskGenerator, photograph: np.ndarray) -> None:
    dataset = Masks(generator, photograph)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=answer, args=(dataset, answers))
    child.start()
    try:
        assert answers.get(timeout=START_S) == dataset[0]
    finally:
        child.kill()
        child.join()


def test_a_predictor_is_pickled_with_its_kernels(generator: segmint.MaskGenerator, photograph: np.ndarray) -> None:
    made = generator.predictor
    kernels = made.kernels
    made.kernels = None
    try:
        assert pickle.loads(pickle.dumps(made)).kernels is None
    finally:
        made.kernels = kernels
    copied = pickle.loads(pickle.dumps(made))
    assert type(copied) is segmint.Predictor
    assert copied.kernels == kernels
    expected = made.predict(photograph, boxes=[10, 10, 60, 50])  # type: ignore[arg-type]
    found = pickle.loads(pickle.dumps(copied.predict(photograph, boxes=[10, 10, 60, 50])))
    assert torch.equal(found.low_res_logits, expected.low_res_logits)


def test_compat_objects_are_pickled_after_use(weights: None, photograph: np.ndarray) -> None:
    sam = sam_model_registry["mobile_sam"]("mobile_sam")
    predictor = SamPredictor(sam)
    predictor.set_image(photograph)
    generator = SamAutomaticMaskGenerator(sam, points_per_side=1)
    expected = generator.generate(photograph)
    found = pickle.loads(pickle.dumps(generator)).generate(photograph)
    assert [mask["area"] for mask in found] == [mask["area"] for mask in expected]
    copied = pickle.loads(pickle.dumps(predictor))
    box = np.array([10, 10, 60, 50])
    assert np.array_equal(copied.predict(box=box)[2], predictor.predict(box=box)[2])


def test_a_fork_of_a_process_that_used_the_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    with (
        pytest.raises(RuntimeError, match="load the predictor or generator in the worker"),
        inference(torch.device("cuda", 0)),
    ):
        pass
    check_process(torch.device("cpu"))


def test_datasets_and_their_batches_are_pickled_after_use(tmp_path: Path) -> None:
    write_three(location_of(tmp_path / "dataset"))
    dataset = segmint.open_dataset(str(tmp_path / "dataset"))
    batches = dataset.batches(1, shuffle=False)
    expected = [dataset[0].id, dataset[2].id], [[each.id for each in batch] for batch in batches]
    loader = segmint.BatchLoader(batches, collate_fn=segmint.collate, num_workers=1, timeout=START_S)
    assert [batch.ids.tolist() for batch in loader] == expected[1]
    again = pickle.loads(pickle.dumps(dataset))
    assert [again[0].id, again[2].id] == expected[0]
    assert [[each.id for each in batch] for batch in pickle.loads(pickle.dumps(batches))] == expected[1]
