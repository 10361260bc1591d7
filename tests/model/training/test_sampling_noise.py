import numpy as np
import pytest
import torch

from segmint.model.training.sampling import draw_keys, highest_pixels, random_bits, uniforms

UNSIGNED = 1 << 64


def test_the_bits_are_splitmix64s() -> None:
    """The published generator's first outputs from seed 0, and another implementation on random keys and counters."""
    first = random_bits(torch.zeros(1, dtype=torch.int64), torch.arange(3)).tolist()
    assert [value % UNSIGNED for value in first] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    lowest = torch.iinfo(torch.int64)
    keys, counters = torch.randint(lowest.min, lowest.max, (2, 1000))
    for key, counter, found in zip(keys.tolist(), counters.tolist(), random_bits(keys, counters).tolist(), strict=True):
        z = (key + (counter + 1) * 0x9E3779B97F4A7C15) % UNSIGNED
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % UNSIGNED
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % UNSIGNED
        assert found % UNSIGNED == z ^ (z >> 31)


def test_every_part_of_a_key_counts() -> None:
    keys = [
        key
        for seed in (0, 1, 2**62)
        for step in (0, 1, 90_000)
        for iteration in (-1, 0, 1, 10)
        for key in draw_keys(seed, step, [0, 1, 2**62], iteration).tolist()
    ]
    assert len(set(keys)) == len(keys) == 108


def test_uniforms_are_uniform_and_never_0_or_1() -> None:
    drawn = uniforms(draw_keys(0, 0, range(20_000), 0), 3)
    assert drawn.min() > 0
    assert drawn.max() < 1
    counts = np.histogram(drawn.numpy(), bins=20, range=(0, 1))[0]
    assert ((counts - 3000) ** 2 / 3000).sum() < 50  # chi-square of 19 degrees: 1 in 10,000
    assert abs(np.corrcoef(drawn.numpy().T)[0, 1]) < 0.03
    assert uniforms(torch.tensor([7]), 1) != uniforms(torch.tensor([8]), 1)


def test_a_pixel_lies_in_its_region_and_each_is_as_likely() -> None:
    region = torch.zeros(4, 5, dtype=torch.bool)
    region[1, 2:], region[3, 0] = True, True
    cases = 8000
    pixels = highest_pixels(region.expand(cases, -1, -1), draw_keys(3, 5, range(cases), 1))
    found, counts = pixels.unique(return_counts=True)
    assert found.tolist() == [7, 8, 9, 15]
    assert ((counts - cases / 4) ** 2 / (cases / 4)).sum() < 21  # 3 degrees: 1 in 10,000


def test_an_empty_region_has_no_pixel() -> None:
    regions = torch.zeros(3, 2, 2, dtype=torch.bool)
    regions[1, 1, 0] = True
    assert highest_pixels(regions, draw_keys(0, 0, range(3), 0)).tolist() == [-1, 2, -1]
    assert highest_pixels(regions[:0], draw_keys(0, 0, [], 0)).tolist() == []


@pytest.mark.parametrize("seed", range(3))
def test_other_pixels_of_a_region_do_not_move_the_highest(seed: int) -> None:
    regions = torch.rand(500, 8, 8) < 0.5
    keys = draw_keys(seed, 0, range(500), 0)
    pixels = highest_pixels(regions, keys)
    fewer = regions & (torch.rand(500, 8, 8) < 0.7)
    fewer.flatten(1)[torch.arange(500), pixels] = True
    assert torch.equal(highest_pixels(fewer, keys), pixels)
