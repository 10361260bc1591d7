"""Large photographs are taken as a build takes them."""

import pytest
from PIL import Image

from segmint.operators.prepare.release import ReleaseConfig
from segmint.operators.segment.mask_config import MasksConfig
from segmint.pipeline.masks.options import MasksOptions, PhotographPrompt, frame_of
from tests.support.bad_images import encode
from tests.support.released import in_a_build

QUICK = MasksConfig(profile="official", points_per_side=4)


@pytest.mark.parametrize("short_side", [399, 100])
@pytest.mark.parametrize("layers", [0, 2])
def test_sa1b_takes_the_pixels_of_a_build_for_a_large_photograph(coffee, layers, short_side):
    release, masks = ReleaseConfig(short_side=short_side), MasksConfig(crop_n_layers=layers)
    found = frame_of(coffee, MasksOptions(masks, release=release))
    built = in_a_build(encode(Image.fromarray(coffee), "PNG"), release, masks)
    assert (found.image == built.image).all()
    assert (found.original is None) == (built.original is None) == (layers == 0)
    assert found.original is None or (found.original == built.original).all()


def test_a_small_photograph_and_the_other_ways_keep_its_frame(coffee):
    small = ReleaseConfig(short_side=100)
    for options in (
        MasksOptions(),
        MasksOptions(release=small, full_frame=True),
        MasksOptions(QUICK, release=small),
        MasksOptions(prompts=(PhotographPrompt(((1, 2, 1),)),), release=small),
    ):
        found = frame_of(coffee, options)
        assert found.image is coffee
        assert found.original is None
