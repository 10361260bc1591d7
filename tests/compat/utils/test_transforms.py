"""The same numbers as the reference's transforms."""

import numpy as np
import pytest
import torch
from segment_anything.utils.transforms import ResizeLongestSide as Reference

from segmint.compat.utils.transforms import ResizeLongestSide


@pytest.mark.parametrize("size", [(400, 600), (600, 401), (1024, 3), (2000, 1333)])
def test_coordinates_and_sizes_are_the_references(size: tuple[int, int]) -> None:
    ours, theirs = ResizeLongestSide(1024), Reference(1024)
    assert ours.get_preprocess_shape(*size, 1024) == theirs.get_preprocess_shape(*size, 1024)
    rng = np.random.default_rng(0)
    points, boxes = rng.integers(0, 600, (5, 2, 2)), rng.uniform(0, 600, (7, 4))
    np.testing.assert_allclose(ours.apply_coords(points, size), theirs.apply_coords(points, size), rtol=1e-12)
    np.testing.assert_allclose(ours.apply_boxes(boxes, size), theirs.apply_boxes(boxes, size), rtol=1e-12)
    for name, value in (
        ("apply_coords_torch", torch.from_numpy(points)),
        ("apply_boxes_torch", torch.from_numpy(boxes)),
    ):
        mine, other = getattr(ours, name)(value, size), getattr(theirs, name)(value, size)
        assert mine.dtype == other.dtype == torch.float32
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=0)


def test_images_are_resized_as_the_reference_does(coffee: np.ndarray) -> None:
    for image in (coffee, coffee[:, ::-1], coffee[:9]):
        assert np.array_equal(ResizeLongestSide(256).apply_image(image), Reference(256).apply_image(image))
    batch = torch.from_numpy(coffee.copy()).permute(2, 0, 1)[None].float()
    assert ResizeLongestSide(256).apply_image_torch(batch).shape == (1, 3, 171, 256)
