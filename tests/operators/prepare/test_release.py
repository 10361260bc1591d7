"""Released images are small, sharp, deterministic and without metadata."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from segmint.catalogs.findings import Reason, RejectedError
from segmint.model.automatic.crops import generate_crops
from segmint.model.sam.geometry import SAM1
from segmint.operators.prepare.ingest import IngestConfig, ingest
from segmint.operators.prepare.release import (
    CropLayers,
    ReleaseConfig,
    encode_original,
    original_size,
    release,
    released_size,
    resized,
)
from tests.support import bad_images

SMALL = ReleaseConfig(short_side=150)


def decode(jpeg: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(jpeg)) as image:
        return np.asarray(image)


def markers(jpeg: bytes) -> list[int]:
    """The second bytes of a JPEG's markers, up to the scan."""
    found, position = [], 2
    while jpeg[position + 1] != 0xDA:
        found.append(jpeg[position + 1])
        (length,) = struct.unpack_from(">H", jpeg, position + 2)
        position += 2 + length
    return found


@given(width=st.integers(1, 20_000), height=st.integers(1, 20_000), short_side=st.integers(1, 3000))
def test_the_short_side_is_exact_and_the_shape_kept(width: int, height: int, short_side: int) -> None:
    new_width, new_height = released_size(width, height, short_side)
    assert min(new_width, new_height) == min(width, height, short_side)
    assert new_width <= width
    assert new_height <= height
    scale = min(new_width, new_height) / min(width, height)
    assert abs(new_width - width * scale) <= 0.5
    assert abs(new_height - height * scale) <= 0.5


def test_the_original_is_as_large_as_the_last_crops_need() -> None:
    layers = CropLayers(2, 512 / 1500)
    assert original_size(4950, 3300, (2250, 1500), layers) == (3052, 2035)
    assert original_size(9900, 6600, (2250, 1500), layers) == (3052, 2035)
    assert original_size(2400, 1600, (2250, 1500), layers) == (2400, 1600), "never enlarged"
    assert original_size(2250, 1500, (2250, 1500), layers) is None
    assert original_size(4950, 3300, (2250, 1500), CropLayers(1, 512 / 1500)) is None, "the released image is enough"


@given(
    width=st.integers(1, 9000),
    height=st.integers(1, 9000),
    short_side=st.integers(1, 3000),
    layers=st.integers(1, 3),
    ratio=st.sampled_from([0.0, 0.2, 512 / 1500]),
)
def test_no_crop_of_the_last_layer_is_enlarged_by_the_encoder_unless_the_source_is_too_small(
    width: int, height: int, short_side: int, layers: int, ratio: float
) -> None:
    released = released_size(width, height, short_side)
    size = original_size(width, height, released, CropLayers(layers, ratio)) or released
    crops = generate_crops((released[1], released[0]), layers, ratio)
    first = next(crop for crop in crops if crop.layer == layers)
    longest = max(first.size[1] * size[0] / released[0], first.size[0] * size[1] / released[1])
    assert size[0] == width or size[1] == height or longest >= SAM1.image_size
    less = max(first.size[1] * (size[0] - 1) / released[0], first.size[0] * (size[1] - 1) / released[1])
    assert size == released or less < SAM1.image_size
    assert size[0] <= width
    assert size[1] <= height


def test_resizing_to_the_size_it_has_is_nothing(coffee: np.ndarray) -> None:
    assert resized(coffee, (600, 400)) is coffee
    assert decode(release(coffee, SMALL).jpeg).shape == resized(coffee, (225, 150)).shape


def test_images_are_downscaled_and_never_upscaled(astronaut: np.ndarray, coffee: np.ndarray) -> None:
    small = release(coffee, SMALL)
    assert (small.width, small.height) == (225, 150)
    assert decode(small.jpeg).shape == (150, 225, 3)
    same = release(astronaut, ReleaseConfig())
    assert (same.width, same.height) == (512, 512)
    assert np.abs(decode(same.jpeg).astype(int) - astronaut).mean() < 2


def test_downscaling_does_not_alias() -> None:
    stripes = np.zeros((600, 600, 3), np.uint8)
    stripes[:, ::2] = 255
    result = decode(release(stripes, ReleaseConfig(short_side=100)).jpeg)
    assert np.abs(result[:, 3:-3].astype(int) - 128).max() <= 2


def test_no_metadata_is_released() -> None:
    tagged = bad_images.encode(
        bad_images.photograph(),
        "JPEG",
        exif=bad_images.exif(6),
        icc_profile=bad_images.swapped_profile(),
        comment=b"SEGMINT-COMMENT",
    )
    assert b"SEGMINT-CAMERA" in tagged
    image = ingest(tagged, IngestConfig()).image
    for jpeg in (release(image, ReleaseConfig()).jpeg, release(image, SMALL).jpeg, encode_original(image)):
        assert b"SEGMINT" not in jpeg
        # JFIF's header, tables and the frame: no other APPn, no comment.
        assert set(markers(jpeg)) <= {0xE0, 0xDB, 0xC0, 0xC4}
        with Image.open(io.BytesIO(jpeg)) as opened:
            assert not opened.getexif()
            assert set(opened.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


def test_the_same_pixels_give_the_same_bytes(coffee: np.ndarray) -> None:
    assert release(coffee, SMALL) == release(coffee.copy(), SMALL)
    assert encode_original(coffee) == encode_original(coffee.copy())


def test_quality_and_subsampling(coffee: np.ndarray) -> None:
    def sampling(jpeg: bytes) -> bytes:
        frame = jpeg.index(b"\xff\xc0")
        return jpeg[frame + 11 : frame + 12]

    assert sampling(release(coffee, SMALL).jpeg) == b"\x22"
    assert sampling(encode_original(coffee)) == b"\x11"
    coarse = release(coffee, ReleaseConfig(short_side=150, jpeg_quality=50))
    assert len(coarse.jpeg) < len(release(coffee, SMALL).jpeg) / 2


def test_sides_too_long_for_a_jpeg_are_refused() -> None:
    long = np.zeros((64, 65_501, 3), np.uint8)
    for encode in (lambda: release(long, ReleaseConfig()), lambda: encode_original(long)):
        with pytest.raises(RejectedError, match="65501×64") as verdict:
            encode()
        assert verdict.value.reason is Reason.TOO_LARGE
    assert release(long[:, :65_500], ReleaseConfig()).width == 65_500
