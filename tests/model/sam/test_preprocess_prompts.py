import numpy as np
import pytest
import torch

from segmint.model.sam.preprocess import Array, check_prompts

POINTS, LABELS = np.zeros((2, 3, 2)), np.ones((2, 3))
BOXES, MASKS = np.zeros((2, 4)), np.zeros((2, 1, 256, 256), np.float32)
NOWHERE = np.full((2, 3, 2), np.nan)


@pytest.mark.parametrize(
    ("points", "labels", "boxes", "masks", "message"),
    [
        (None, None, None, None, "no prompt: expected points with labels, boxes, masks"),
        (POINTS, None, None, None, "points without labels"),
        (None, LABELS, None, None, "labels without points"),
        (None, LABELS, BOXES, None, "labels without points"),
        (POINTS[0], LABELS, None, None, r"points have the shape \(3, 2\): expected \(B, N, 2\)"),
        (POINTS, LABELS[0], None, None, r"labels have the shape \(3,\): expected \(B, N\)"),
        (POINTS, LABELS[:, :2], None, None, r"labels have the shape \(2, 2\): expected \(2, 3\)"),
        (None, None, BOXES[0, :3], None, r"boxes have the shape \(3,\): expected \(B, 4\) or \(4,\)"),
        (None, None, BOXES[:, :3], None, r"boxes have the shape \(2, 3\): expected \(B, 4\)"),
        (None, None, None, MASKS[:, 0], r"masks have the shape \(2, 256, 256\): expected \(B, 1, 256, 256\)"),
        (None, None, None, MASKS[..., :64], r"masks have the shape \(2, 1, 256, 64\)"),
        (POINTS, LABELS, BOXES[:1], None, "batch sizes differ: 2 in points, 1 in boxes"),
        (None, None, BOXES, MASKS[:1], "batch sizes differ: 2 in boxes, 1 in masks"),
        (POINTS, 2 * LABELS, None, None, r"labels contain 2: expected 1 \(foreground\), 0 \(background\) or -1"),
        (NOWHERE, LABELS, None, None, "points contain NaN or infinity"),
        (POINTS[0], LABELS[0, :2], None, None, r"labels have the shape \(1, 2\): expected \(1, 3\)"),
        (POINTS[0, 0], LABELS[0, :1], None, None, r"points have the shape \(2,\): expected .*\(N, 2\) with labels"),
        (None, None, np.array([["1", "2", "3", "4"]]), None, "boxes have the type str.*: expected numbers"),
        (POINTS[0], LABELS[0], BOXES, None, "batch sizes differ: 1 in points, 2 in boxes"),
    ],
)
def test_prompts_that_do_not_fit_are_refused_in_words(
    points: Array | None, labels: Array | None, boxes: Array | None, masks: Array | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_prompts(points, labels, boxes, masks)


def test_arrays_and_tensors_of_any_number_type_become_the_same_prompts() -> None:
    numbers = [[[1, 2], [30, 40]]]
    for points in (
        np.array(numbers),
        np.array(numbers, np.float32),
        torch.tensor(numbers, dtype=torch.uint8),
    ):
        found = check_prompts(points, np.array([[1, -1]], np.int8), None, None)
        assert found.points is not None
        assert found.points.dtype == torch.float64
        assert found.points.tolist() == numbers


def test_one_prompt_may_come_without_its_batch() -> None:
    alone = check_prompts([[1, 2], [3, 4]], [1, 0], [1, 2, 3, 4], MASKS[0, 0])  # type: ignore[arg-type]
    batched = check_prompts(np.array([[[1, 2], [3, 4]]]), np.array([[1, 0]]), np.array([[1, 2, 3, 4]]), MASKS[:1])
    for name in ("points", "labels", "boxes", "masks"):
        assert torch.equal(getattr(alone, name), getattr(batched, name))
    one_channel = check_prompts(None, None, None, MASKS[0]).masks
    assert one_channel is not None
    assert one_channel.shape == (1, 1, 256, 256)


def test_read_only_and_mirrored_arrays_are_taken_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    boxes = np.array([[3.0, 2.0, 1.0, 0.0]])[:, ::-1]
    boxes.flags.writeable = False
    found = check_prompts(None, None, boxes, None)
    assert found.boxes is not None
    assert found.boxes.tolist() == [[0, 1, 2, 3]]
    assert not recwarn.list


def test_coordinates_are_scaled_along_their_own_axis() -> None:
    prompts = check_prompts(np.array([[[1, 10]]]), np.array([[1]]), np.array([[1, 10, 2, 20]]), None)
    scaled = prompts.scaled(x=2, y=0.5)
    assert scaled.points is not None
    assert scaled.points.tolist() == [[[2, 5]]]
    assert scaled.boxes is not None
    assert scaled.boxes.tolist() == [[2, 5, 4, 10]]


DISK = np.hypot(*np.mgrid[-128:128, -128:128]) < 60
SOFT = (DISK * 0.9 + 0.01).astype(np.float32)  # such as shares, or an edge that was scaled


@pytest.mark.parametrize(
    "mask",
    [
        DISK,
        DISK.tolist(),
        torch.from_numpy(DISK),
        DISK.astype(np.uint8),
        DISK.astype(np.uint8) * 255,
        DISK.astype(">i4"),
        torch.from_numpy(DISK.astype(np.uint16) * 255),
    ],
)
def test_a_binary_mask_becomes_logits(mask: Array) -> None:
    found = check_prompts(None, None, None, mask).masks
    assert found is not None
    assert found.dtype == torch.float32
    assert torch.equal(found[0, 0], torch.from_numpy(np.where(DISK, 10, -10)).float())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", np.longdouble])
def test_logits_stay_as_they_are(dtype: str) -> None:
    logits = np.random.default_rng(0).normal(size=(2, 1, 256, 256)).astype(dtype)
    for given in (logits, np.abs(logits), np.zeros_like(logits)):
        found = check_prompts(None, None, None, given).masks
        assert found is not None
        assert np.array_equal(found.numpy(), given.astype(np.float32))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("masks", DISK.astype(np.float32), "masks contain only 0 and 1 as float32: expected logits"),
        ("masks", torch.from_numpy(DISK) * 255.0, "masks contain only 0 and 255 as float32: expected logits"),
        ("masks", DISK.astype(np.int64) * 7, "masks have the type int64 and the maximum 7: expected logits"),
        ("masks", DISK.astype(np.int8) * -1, "masks have the type int8 and the maximum 0: expected logits"),
        ("masks", SOFT, "masks have the type float32 and the maximum 0.9.*: expected logits"),
        ("masks", torch.from_numpy(SOFT) * 255, "masks have the type float32 and the maximum 2.*: expected logits"),
        ("masks", torch.from_numpy(DISK) * 1j, "masks have the type complex64: expected numbers"),
        ("points", POINTS[0] > 0, "points have the type bool: expected numbers"),
        ("points", torch.zeros(1, 1, 2, dtype=torch.complex64), "points have the type complex64: expected numbers"),
        ("boxes", torch.ones(4, dtype=torch.bool), "boxes have the type bool: expected numbers"),
        ("boxes", BOXES * 1j, "boxes have the type complex128: expected numbers"),
    ],
)
def test_a_type_that_a_prompt_cannot_have_is_refused(name: str, value: Array, message: str) -> None:
    prompts = {"points": None, "labels": LABELS[0] if name == "points" else None, "boxes": None, "masks": None}
    with pytest.raises(ValueError, match=message):
        check_prompts(**{**prompts, name: value})


def test_labels_may_be_true_or_false() -> None:
    labels = check_prompts(POINTS[0], np.array([True, False, True]), None, None).labels
    assert labels is not None
    assert labels.tolist() == [[1, 0, 1]]
