import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from segmint.model.detectors.plates import shrunk


@pytest.mark.parametrize("scale", [0.9, 0.5, 0.13])
def test_shrinking_agrees_with_pillow_on_any_number_of_threads(coffee: np.ndarray, scale: float) -> None:
    size = round(coffee.shape[1] * scale), round(coffee.shape[0] * scale)
    expected = np.asarray(Image.fromarray(coffee).resize(size, Image.Resampling.BILINEAR))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        found = shrunk(coffee, scale)
        torch.set_num_threads(3)
        again = shrunk(coffee, scale)
    finally:
        torch.set_num_threads(threads)
    assert np.abs(found.astype(int) - expected).max() <= 2
    assert np.array_equal(found, again)


def test_an_array_that_cannot_be_written_is_shrunk_without_a_warning(coffee: np.ndarray) -> None:
    image = coffee.copy()
    image.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shrunk(image, 0.5).shape == (200, 300, 3)
    assert shrunk(image, 1.0) is image


def test_images_are_enlarged(coffee: np.ndarray) -> None:
    assert shrunk(coffee[:40, :60], 2.0).shape == (80, 120, 3)
