"""The viewer's pictures: the tar's bytes, small copies of them, and a memory that is bounded."""

import io
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.operators.images import JpegDecoder
from segmint.pipeline.quality.view.app import ShardImages, Thumbnails, WeightedCache, thumbnail
from segmint.pipeline.serving.images import ImageAddress, NoImageError
from tests.support.committed import write_dataset, write_generation
from tests.support.everything import jpegs, upload
from tests.support.locations import location_of


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Three committed shards of made-up rows: images 1, 2, 4, 5, 7 and 8."""
    write_dataset(location_of(tmp_path / "small"), shards=3)
    return tmp_path / "small"


@pytest.fixture(scope="module")
def decoder() -> Iterator[JpegDecoder]:
    with JpegDecoder(own=True, processes=1) as decoder:
        yield decoder


PLACES = [ImageAddress(number, number - 1, (number - 1) // 3) for number in (8, 1, 5, 2, 4, 7)]


def test_a_picture_has_the_bytes_that_the_tar_has(small: Path) -> None:
    pictures = ShardImages(location_of(small))
    assert {f"sa_{place.id}.jpg": pictures.jpeg(place) for place in PLACES} == jpegs(small)


@pytest.mark.s3
def test_from_s3_as_from_a_disk(small: Path, s3_bucket: str, s3_options: dict[str, dict[str, str]]) -> None:
    storage, uri = Storage(s3_options), f"s3://{s3_bucket}/small"
    upload(small, Location(storage, uri))
    pictures = ShardImages(Location(storage, uri))
    assert {f"sa_{place.id}.jpg": pictures.jpeg(place) for place in PLACES} == jpegs(small)


def test_no_picture_is_told(small: Path, tmp_path: Path) -> None:
    pictures = ShardImages(location_of(small))
    with pytest.raises(NoImageError, match=r"sa_3\.jpg is not in the tar of shard 0"):
        pictures.jpeg(ImageAddress(3, 2, 0))
    write_dataset(location_of(tmp_path / "annotations"), shards=1, with_images=False)
    with pytest.raises(NoImageError, match="only annotations"):
        ShardImages(location_of(tmp_path / "annotations")).jpeg(ImageAddress(1, 0, 0))


def test_a_shard_that_was_changed_meanwhile_is_told(small: Path) -> None:
    pictures = ShardImages(location_of(small))
    write_generation(location_of(small), shard=1, generation=2, refuse=2)
    (small / "commits" / "000001.g1.json").unlink()
    with pytest.raises(NoImageError, match="Restart the viewer"):
        pictures.jpeg(ImageAddress(4, 3, 1))


def test_nothing_of_a_shard_that_was_changed_is_shown_again(small: Path, decoder: JpegDecoder) -> None:
    pictures = ShardImages(location_of(small), look_s=0.0)
    thumbnails = Thumbnails(pictures, decoder)
    for place in PLACES:
        thumbnails.jpeg(place)
    write_generation(location_of(small), shard=1, generation=2, refuse=2)
    with pytest.raises(NoImageError):
        thumbnails.jpeg(PLACES[2])
    assert [place.shard for place in thumbnails.recent.values if place.shard == 1] == []  # those of the others, too
    assert pictures.changed([2, 1, 0, 1]) == {1}
    for place in PLACES:
        if place.shard == 1:
            with pytest.raises(NoImageError, match=r"shard 1 has changed .*\. Restart the viewer"):
                thumbnails.jpeg(place)
            with pytest.raises(NoImageError, match="shard 1 has changed"):
                pictures.jpeg(place)
        else:
            assert thumbnails.jpeg(place)
    assert len(thumbnails.recent.values) == len([place for place in PLACES if place.shard != 1])


def test_a_look_at_a_shard_holds_for_a_moment(small: Path) -> None:
    patient = ShardImages(location_of(small), look_s=60.0)
    patient.check(PLACES[2])
    write_generation(location_of(small), shard=1, generation=2, refuse=2)
    patient.check(PLACES[2])
    assert patient.changed([1]) == set()
    with pytest.raises(NoImageError, match="shard 1 has changed"):
        patient.check(PLACES[2], anew=True)
    assert patient.changed([1]) == {1}


def encoded(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(out, "JPEG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("size", "small_size"),
    [((2250, 1500), (480, 320)), ((600, 1200), (240, 480)), ((300, 200), (300, 200)), ((4000, 10), (480, 1))],
)
def test_a_thumbnail_keeps_the_shape_and_never_grows(size: tuple[int, int], small_size: tuple[int, int]) -> None:
    with Image.open(io.BytesIO(thumbnail(encoded(*size)))) as picture:
        assert picture.format == "JPEG"
        assert picture.size == small_size
        left, right = picture.convert("L").resize((1, 2), Image.Resampling.BOX).getdata()
    assert right - left > 60 or size[1] < 100  # the gradient goes from black at the top to white


def test_a_thumbnail_of_gray_is_a_picture() -> None:
    out = io.BytesIO()
    Image.new("L", (1000, 800), 90).save(out, "JPEG")
    with Image.open(io.BytesIO(thumbnail(out.getvalue()))) as picture:
        assert picture.size == (480, 384)


@pytest.mark.parametrize("data", [b"", b"GIF89a", encoded(800, 600)[:300], b"\xff\xd8\xff" + bytes(1000)])
def test_what_does_not_decode_is_told(data: bytes, decoder: JpegDecoder) -> None:
    class OneImage:
        def check(self, place: ImageAddress, *, anew: bool = False) -> None:
            pass

        def changed(self, shards: Iterable[int]) -> set[int]:
            return set()

        def jpeg(self, place: ImageAddress) -> bytes:
            return data

    with pytest.raises(NoImageError, match="can't decode this image"):
        Thumbnails(OneImage(), decoder).jpeg(PLACES[0])


def test_thumbnails_are_made_once(small: Path, decoder: JpegDecoder) -> None:
    thumbnails = Thumbnails(ShardImages(location_of(small)), decoder)
    first = thumbnails.jpeg(PLACES[0])
    for path in (small / "shards").iterdir():
        path.unlink()
    assert thumbnails.jpeg(PLACES[0]) == first
    with pytest.raises(NoImageError):
        thumbnails.jpeg(PLACES[1])


def test_what_was_used_last_is_kept_up_to_a_weight() -> None:
    recent: WeightedCache[int, bytes] = WeightedCache(10, len)
    assert recent.get(1, lambda: b"aaaa") == b"aaaa"
    assert recent.get(2, lambda: b"bbbb") == b"bbbb"
    assert recent.get(1, lambda: b"other") == b"aaaa"
    assert recent.get(3, lambda: b"cccc") == b"cccc"  # 2 goes: it was used longest ago
    assert list(recent.values.values()) == [b"aaaa", b"cccc"]
    assert recent.get(1, lambda: b"new1") == b"aaaa"
    assert recent.get(2, lambda: b"new2") == b"new2"
    assert recent.get(4, lambda: b"x" * 50) == b"x" * 50  # too heavy to keep
    assert not recent.values


def test_threads_share_what_is_kept() -> None:
    recent: WeightedCache[int, bytes] = WeightedCache(1000, len)
    barrier = threading.Barrier(8)

    def ask(_: int) -> list[bytes]:
        barrier.wait()
        return [recent.get(key, lambda key=key: bytes([key] * 10)) for key in range(200)]

    with ThreadPoolExecutor(8) as pool:
        for values in pool.map(ask, range(8)):
            assert values == [bytes([key] * 10) for key in range(200)]
    assert sum(map(len, recent.values.values())) == 1000
