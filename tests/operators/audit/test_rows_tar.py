"""What a released JPEG contains besides its image data, which depends only on its size and quality."""

import io
import tarfile
from collections.abc import Iterator

import numpy as np
import pytest

from segmint.catalogs.findings import Code, FindingLocation
from segmint.operators.audit import rows
from segmint.operators.audit.rows import audit_jpeg
from segmint.operators.images import JpegDecoder
from segmint.operators.prepare.release import ReleaseConfig, release
from tests.support.photographs import photograph

PLACE = FindingLocation("shards/x.tar")
SIZES = [(1, 1), (16, 16), (17, 15), (8, 33), (119, 64), (240, 181)]


@pytest.fixture(scope="module")
def decoder() -> Iterator[JpegDecoder]:
    with JpegDecoder(own=True) as made:
        yield made


@pytest.mark.parametrize("quality", [1, 10, 50, 75, 90, 95, 100])
def test_a_release_has_no_finding_and_other_bytes_around_its_image_data_have_one(
    decoder: JpegDecoder, quality: int
) -> None:
    for width, height in SIZES:
        pixels = photograph("astronaut", (width, height))
        row = {"id": 1, "width": width, "height": height}
        jpeg = release(np.ascontiguousarray(pixels), ReleaseConfig(jpeg_quality=quality)).jpeg
        assert list(audit_jpeg(jpeg, row, PLACE, decoder, quality)) == []
        (finding,) = audit_jpeg(jpeg + b"a photograph", row, PLACE, decoder, quality)
        assert (finding.code, finding.found) == (Code.JPEG_METADATA, "12 bytes after the picture's end")
        (finding,) = audit_jpeg(jpeg, row, PLACE, decoder, quality - 1 or 2)
        assert finding.code is Code.JPEG_METADATA


def segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(payload) + 2).to_bytes(2, "big") + payload


@pytest.mark.parametrize(
    "inserted",
    [
        segment(0xE0, b"JFIF\0" + bytes(7) + b"\1\1" + bytes(3)),
        segment(0xEB, b"other"),
        segment(0xDD, b"\0\0"),
        b"\xff\xff",
        b"\xff\x01",
    ],
)
def test_other_segments_are_found_before_the_image_data(inserted: bytes) -> None:
    jpeg = release(photograph("coffee", (40, 30)), ReleaseConfig()).jpeg
    row = {"id": 1, "width": 40, "height": 30}
    (finding,) = audit_jpeg(jpeg[:2] + inserted + jpeg[2:], row, PLACE, None, 95)
    assert finding.code is Code.JPEG_METADATA
    assert finding.found.startswith("other bytes before byte ")


def test_a_finding_about_something_else_leaves_the_hash_checked(
    decoder: JpegDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"id": 1, "ordinal": 0, "release_sha256": "0" * 64}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("sa_1.jpg"))
    for found, codes in (
        ([], [Code.OTHER_RELEASE]),
        ([Code.GPS_POSITION], [Code.GPS_POSITION, Code.OTHER_RELEASE]),
        ([Code.JPEG_METADATA], [Code.JPEG_METADATA]),
    ):
        findings = [PLACE.finding(code, "nothing", "something") for code in found]
        monkeypatch.setattr(rows, "audit_jpeg", lambda *_, findings=findings: findings)
        stream = rows.HashedStream(io.BytesIO(packed.getvalue()))
        audited = rows.audit_tar(stream, [row], lambda _: [], PLACE, with_images=True, decode=(), decoder=decoder)
        assert [finding.code for finding in audited] == [*codes, Code.TAR_MEMBERS]  # there is no JSON


def test_every_cut_is_found() -> None:
    jpeg = release(photograph("coffee", (16, 16)), ReleaseConfig()).jpeg
    row = {"id": 1, "width": 16, "height": 16}
    for length in range(len(jpeg)):
        (finding,) = audit_jpeg(jpeg[:length], row, PLACE, None, 95)
        assert finding.code is Code.BAD_JPEG
