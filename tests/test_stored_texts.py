"""Every text of segmint that a dataset stores, word for word.

`segmint repair` must make an old dataset's files again byte for byte, and a build may continue a dataset that an older
version began. So these texts stay as they are, even where a better wording is at hand. Reword what is only shown, never
what is stored. Each table or test names where its texts are stored. Only `VERSION` changes, with a release.
"""

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from datetime import UTC, date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segmint.catalogs.dataset.commits import Commit, FileEntry
from segmint.catalogs.dataset.manifest import CatalogPart, DatasetManifest, Weights, manifest_name, put_manifest
from segmint.catalogs.dataset.regions import WantedRegion
from segmint.catalogs.dataset.shards_index import shards_index
from segmint.catalogs.dataset.summaries import NOTHING
from segmint.catalogs.dataset.tombstones import Asked, Taken, TakenImage, TakenNames
from segmint.catalogs.dataset.versions.digest import current_digest
from segmint.catalogs.layout import commit_name, data_path, part_path
from segmint.catalogs.licenses import LicensePolicy
from segmint.catalogs.reasons import Reason, RejectedError
from segmint.catalogs.schema import ADDED, NORMALIZED, STAGED
from segmint.catalogs.source.demo import write_demo
from segmint.catalogs.source.normalize import normalize
from segmint.catalogs.source.scan import scan
from segmint.infra.storage.errors import StorageFaultError
from segmint.infra.storage.storage import Storage
from segmint.infra.version import VERSION
from segmint.model.detectors.faces import FaceDetector
from segmint.model.detectors.plates import PlateDetector
from segmint.operators.child import Children
from segmint.operators.prepare.deidentify import RULES, DeidentifyConfig, FacesConfig, PlatesConfig, deidentify
from segmint.operators.prepare.ingest import IngestConfig, _guarded
from segmint.operators.prepare.prepare import Prepare, PrepareConfig, RefusedError, prepare_image
from segmint.operators.prepare.read_image import ImageReader
from segmint.operators.prepare.release import ReleaseConfig
from segmint.operators.rows import Row, faulted
from segmint.operators.schemas import IMAGES, MASKS, REJECTS, SCHEMAS_OF, SOURCES
from segmint.operators.segment.numerics import Numerics
from segmint.operators.segment.segment import check_count
from segmint.operators.shards.corrected_rows import redact_row
from segmint.operators.shards.files import annotations_json, build_shard_files
from segmint.operators.shards.taken_rows import take_down, without_taken
from segmint.pipeline.building.dataset.growth import count_licenses
from segmint.pipeline.building.execution.quarantine import Quarantine
from segmint.pipeline.config.config import Config, identity
from segmint.pipeline.corrections.takedown import takedown
from tests.support import child_workers
from tests.support.bad_images import (
    animation,
    encode,
    flipped,
    jpeg,
    photograph,
    png,
    png_bomb,
    png_chunk,
    retagged_tiff,
)
from tests.support.locations import location_of
from tests.support.signed_images import data_mining, image

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of the damage that these files have

POLICY = LicensePolicy(frozenset({"CC-BY-4.0", "CC0-1.0"}), require_redistributable=True, policy_date=date(2026, 1, 1))
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")  # those of the datasets whose texts these are
CONFIG = PrepareConfig(
    ingest=IngestConfig(formats=FORMATS, max_bytes=4_000_000, max_pixels=100_000_000),
    deidentify=DeidentifyConfig(faces=FacesConfig(detector="none"), plates=PlatesConfig(detector="none")),
    release=ReleaseConfig(),
    crops=None,
)
KINDS = "expected one of JPEG, PNG, WEBP, TIFF, BMP, GIF"
ALLOWED = "CC-BY-4.0, CC0-1.0"


# `stage`, `reason` and `detail` of `rejects`, by what the catalog says of a row.

CATALOG_REFUSALS: list[tuple[dict[str, Any], str, str, str]] = [
    (
        {"image_id": "", "uri": ""},
        "catalog",
        "taken_down",
        "taken down after the catalog was pinned; a file in tombstones/ says why",
    ),
    ({"refused_reason": "duplicate_image", "refused_detail": "as row 3"}, "curate", "duplicate_image", "as row 3"),
    ({"refused_reason": "unfit", "license": None}, "curate", "unfit", "refused in the catalog"),
    ({"refused_reason": "opted_out", "duplicate_of": 7}, "curate", "opted_out", "refused in the catalog"),
    ({"duplicate_of": 7}, "catalog", "duplicate_id", "the image_id stands already in the row of ordinal 7"),
    (
        {"opt_out": True},
        "catalog",
        "opted_out",
        "the catalog says that the rights holder has opted this image out",
    ),
    ({"license": None}, "catalog", "license_missing", "the catalog names no license for this image"),
    (
        {"license": "CC BY"},
        "catalog",
        "license_not_allowed",
        f"'CC BY' is no license identifier (did you mean CC-BY-4.0?); allowed: {ALLOWED}",
    ),
    (
        {"license": "xyzzy!?"},
        "catalog",
        "license_not_allowed",
        f"'xyzzy!?' is no license identifier; allowed: {ALLOWED}",
    ),
    (
        {"license": "cc-by-nc-4.0"},
        "catalog",
        "license_not_allowed",
        f"the license CC-BY-NC-4.0 is not among those allowed: {ALLOWED}",
    ),
    (
        {"license": "x" * 1001},
        "catalog",
        "license_not_allowed",
        f"'{'x' * 80}… (1,001 characters)' is no license identifier; allowed: {ALLOWED}",
    ),
    (
        {"license": "https://user:secret@host/terms?token=abc"},
        "catalog",
        "license_not_allowed",
        f"'https://[redacted]@host/terms?token=[redacted]' is no license identifier; allowed: {ALLOWED}",
    ),
    (
        {"valid_until": date(2025, 12, 31)},
        "catalog",
        "license_expired",
        "the license held until 2025-12-31; the dataset's policy date is 2026-01-01",
    ),
    (
        {"redistributable": None},
        "catalog",
        "not_redistributable",
        "redistribution is required and is unknown for this image",
    ),
    (
        {"redistributable": False},
        "catalog",
        "not_redistributable",
        "redistribution is required and is denied for this image",
    ),
    (
        {"uri": ""},
        "read",
        "uri_not_allowed",
        "an empty URI: expected s3://bucket/key, file:///path or a local path",
    ),
    ({"uri": "x" * 9000}, "read", "uri_not_allowed", "a URI of 9,000 characters; expected at most 8,192"),
    ({"uri": "a\nb.jpg"}, "read", "uri_not_allowed", r"the URI 'a\nb.jpg' holds a control character"),
    (
        {"uri": "a%0Ab.jpg"},
        "read",
        "uri_not_allowed",
        "the URI 'a%0Ab.jpg' holds a percent-encoded control character",
    ),
    (
        {"uri": "s3://bucket/%2E%2E/x.jpg"},
        "read",
        "uri_not_allowed",
        "'s3://bucket/%2E%2E/x.jpg' climbs by '..', plain or percent-encoded",
    ),
    (
        {"uri": "a b://c.jpg"},
        "read",
        "uri_not_allowed",
        "the URI 'a b://c.jpg' chains protocols or has no valid scheme",
    ),
    (
        {"uri": "ftp://host/x.jpg"},
        "read",
        "uri_not_allowed",
        "the scheme ftp:// of 'ftp://host/x.jpg' is not allowed; expected one of abfs, abfss, az, file, gcs, gs, hdfs, "
        "s3, or a local path",
    ),
    (
        {"uri": "s3://user:secret@bucket/x.jpg"},
        "read",
        "uri_not_allowed",
        "the URI 's3://[redacted]@bucket/x.jpg' carries a user part or a signature: credentials come by the standard "
        "chain (environment, profile, instance or pod role), never inside a URI",
    ),
    (
        {"uri": "s3://bucket/x.jpg?X-Amz-Signature=abc"},
        "read",
        "uri_not_allowed",
        "the URI 's3://bucket/x.jpg?X-Amz-Signature=[redacted]' carries a user part or a signature: credentials come "
        "by the standard chain (environment, profile, instance or pod role), never inside a URI",
    ),
    (
        {"uri": "file://host/x.jpg"},
        "read",
        "uri_not_allowed",
        "'file://host/x.jpg' names a host: expected file:///absolute/path",
    ),
    (
        {"uri": "s3:///x.jpg"},
        "read",
        "uri_not_allowed",
        "'s3:///x.jpg' names no valid bucket: expected s3://bucket/key",
    ),
    (
        {"uri": "gs:///x.jpg"},
        "read",
        "uri_not_allowed",
        "'gs:///x.jpg' names no valid bucket: expected gs://bucket/key",
    ),
    ({"uri": "../x.jpg"}, "read", "uri_not_allowed", "'../x.jpg' climbs out of its catalog's folder by '..'"),
    ({"uri": "nowhere.jpg"}, "read", "not_found", "the store answers, and there is no such object"),
    ({"uri": "large.bmp"}, "read", "too_large", "over the limit ingest.max_bytes of 4,000,000 bytes"),
    (
        {"uri": "exit.bmp", "sha256": "AB" * 32},
        "read",
        "hash_mismatch",
        f"the catalog says SHA-256 {'ab' * 32}, the object has "
        "e596899f114b5162402325dfb31fdaa792fabed718628336cc7a35a24f38eaa9",
    ),
    (
        {"uri": "crash.bmp"},
        "prepare",
        "killed_worker",
        "the process that decoded it died, twice (SIGSEGV)",
    ),
    ({"uri": "exit.bmp"}, "prepare", "killed_worker", "the process that decoded it died, twice (exit code 5)"),
    ({"uri": "hang.bmp"}, "prepare", "timed_out", "not done within ingest.timeout_s = 1.5 seconds, twice"),
    (
        {"uri": "hoard.bmp"},
        "prepare",
        "out_of_memory",
        "needs more memory than the process that decodes images may take",
    ),
]


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[dict[str, Any]], Row]]:
    """What a real stage makes of a catalog's row; its child processes do what an image's bytes say."""
    folder = tmp_path_factory.mktemp("refused")
    orders = {"crash": b"crash", "exit": b"exit", "hang": b"sleep 60", "hoard": b"allocate 1000000000"}
    for name, data in {**orders, "large": bytes(4_000_001)}.items():
        (folder / f"{name}.bmp").write_bytes(data)
    stage = Prepare(CONFIG, Storage(), POLICY, str(folder / "catalog.jsonl"))
    stage._children.close()
    stage._children = Children(child_workers.obedient, timeout_s=1.5, memory_limit=256 << 20)  # type: ignore[assignment]

    def refuse(columns: dict[str, Any]) -> Row:
        row = {**dict.fromkeys(STAGED.names), "ordinal": 8, "id": 9, "image_id": "x", "uri": "nowhere.jpg"}
        row |= {"license": "CC0-1.0", "redistributable": True, **columns}
        for _ in range(5):
            (result,) = stage(pa.Table.from_pylist([row], schema=STAGED)).to_pylist()
            if "died before it took one" not in (result["fault"] or ""):
                break  # else pebble saw the death of a child before it saw that the child had an image
        return cast(Row, result)

    yield refuse
    stage.close()


@pytest.mark.parametrize(("columns", "stage", "reason", "detail"), CATALOG_REFUSALS)
def test_a_row_is_refused_in_these_words(
    refused: Callable[[dict[str, Any]], Row], columns: dict[str, Any], stage: str, reason: str, detail: str
) -> None:
    row = refused(columns)
    assert (row["stage"], row["reason"], row["detail"], row["fault"]) == (stage, reason, detail, None)


def test_a_policy_that_allows_nothing_says_none() -> None:
    policy = replace(POLICY, allow=frozenset())
    assert policy.judge("CC0-1.0", True, None) == (
        Reason.LICENSE_NOT_ALLOWED,
        "the license CC0-1.0 is not among those allowed: none",
    )


def test_a_local_path_in_a_stores_catalog_is_refused_in_these_words() -> None:
    reader = ImageReader(Storage(), "s3://bucket/catalog.csv", 1000)
    with pytest.raises(RejectedError) as verdict:
        reader.read({"uri": "/x.jpg"})
    assert verdict.value.reason == "uri_not_allowed"
    assert verdict.value.detail == (
        "'/x.jpg' is a local path, but its catalog 's3://bucket/catalog.csv' is not a local file: "
        "give a URI of a store, or a path relative to the catalog"
    )


def test_an_object_that_cannot_be_read_is_refused_in_these_words() -> None:
    class Unreadable(Storage):
        def read(self, uri: str, max_bytes: int | None = None) -> bytes:
            raise StorageFaultError("500")

        def healthy(self, uri: str) -> bool:
            return True

    with pytest.raises(RejectedError) as verdict:
        ImageReader(Unreadable(), "/catalog.csv", 1000).read({"uri": "x.jpg"})
    assert verdict.value.reason == "unreadable_object"
    assert verdict.value.detail == "reading it fails again and again, while its store answers"


# `stage`, `reason` and `detail` of `rejects`, by the bytes of the object.

REFUSED_KINDS = {
    b"%PDF-1.7": "PDF",
    b"8BPS\x00\x01": "Photoshop (PSD)",
    b"%!PS-Adobe": "PostScript",
    b"\xc5\xd0\xd3\xc6": "PostScript",
    b"\x00\x00\x00\x0cjP  \r\n": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\x00\x00\x00\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"\x00\x00\x01\x00": "icon (ICO)",
    b"DDS ": "DirectDraw (DDS)",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"qoif": "QOI",
    b"FUJIFILMCCD-RAW": "camera raw (RAF)",
    b"IIU\x00": "camera raw (RW2)",
    b"IIRO": "camera raw (ORF)",
    b"gimp xcf": "GIMP (XCF)",
    b"\x59\xa6\x6a\x95": "Sun raster",
    b"P6\n3 2\n255\n": "Netpbm",
    b'<svg xmlns="x"/>': "SVG",
    **{b"\x00\x00\x00\x18ftyp" + brand: "AVIF" for brand in (b"avif", b"avis")},
    **{b"\x00\x00\x00\x18ftyp" + brand: "HEIC" for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")},
    **{b"\x00\x00\x00\x18ftyp" + brand: "HEIF" for brand in (b"mif1", b"msf1")},
    b"\x00\x00\x00\x18ftypcrx ": "Canon CR3",
}
SIGNATURE = b"\x89PNG\r\n\x1a\n"
CUT_JPEG = jpeg()[: len(jpeg()) // 2]

BYTES_REFUSALS: list[tuple[bytes, str, str, str]] = [
    (b"", "ingest", "empty_object", "the object holds no bytes"),
    (
        image("JPEG", data_mining("DMI-PROHIBITED-AIMLTRAINING")),
        "ingest",
        "opted_out",
        "the image's metadata forbids training with it: plus:DataMining is DMI-PROHIBITED-AIMLTRAINING",
    ),
    (b"<html>", "ingest", "not_an_image", f"markup text such as HTML; {KINDS}"),
    (b"\x01\x02\x03", "ingest", "not_an_image", f"bytes that begin like no known picture; {KINDS}"),
    *((data, "ingest", "unsupported_format", f"a {kind} file; {KINDS}") for data, kind in REFUSED_KINDS.items()),
    (SIGNATURE + bytes(4_000_000), "ingest", "too_large", "4,000,008 bytes; the limit ingest.max_bytes is 4,000,000"),
    (
        b"RIFF" + struct.pack("<I", 100) + b"WEBP" + bytes(20),
        "ingest",
        "truncated",
        "the WEBP ends after 32 bytes; its header says 108",
    ),
    (flipped(png(), 20, 1), "ingest", "corrupt", "the PNG's IHDR chunk at byte 8 has a wrong CRC"),
    (
        SIGNATURE + flipped(png_chunk(b"\x01\x02\x03\x04", b"!"), 8, 1),
        "ingest",
        "corrupt",
        "the PNG's unnamed chunk at byte 8 has a wrong CRC",
    ),
    (SIGNATURE, "ingest", "truncated", "the PNG ends after 8 bytes, before its IEND chunk"),
    (
        SIGNATURE + struct.pack(">I", 2**31) + b"IHDR",
        "ingest",
        "corrupt",
        "the PNG's chunk at byte 8 has an impossible length",
    ),
    (png()[:16], "ingest", "truncated", "the PNG ends after 16 bytes; its chunk at byte 8 needs 33"),
    (jpeg()[:12], "ingest", "truncated", "the JPEG ends after 12 bytes, inside its header"),
    (
        png_bomb(10_048, 10_048),
        "ingest",
        "too_large",
        "10048×10048 is 100,962,304 pixels; the limit ingest.max_pixels is 100,000,000",
    ),
    (
        encode(photograph().resize((1, 2)), "PNG"),
        "ingest",
        "too_small",
        "1×2; the limit ingest.min_short_side is 64 pixels",
    ),
    (
        encode(photograph().convert("F"), "TIFF"),
        "ingest",
        "unsupported_format",
        "a TIFF file with samples of kind F, which have no defined white",
    ),
    (
        encode(photograph(), "TIFF", tiffinfo={254: 1}),
        "ingest",
        "unsupported_format",
        "a camera's raw file, of which TIFF holds a thumbnail",
    ),
    (retagged_tiff(254, 2, b"1\x00"), "ingest", "corrupt", "the TIFF's tag 254 is not a whole number"),
    (
        retagged_tiff(279, 11, struct.pack("<f", math.inf)),
        "ingest",
        "corrupt",
        "the TIFF's tags of its strips or tiles are not whole numbers",
    ),
    (
        encode(photograph(), "TIFF")[:50_000],
        "ingest",
        "truncated",
        "the TIFF ends after 50000 bytes, before its pixels do",
    ),
    (animation("TIFF", 2), "ingest", "unsupported_format", "a TIFF file of several pages; expected one"),
    (animation("GIF", 2), "ingest", "animated", "an animated GIF file; expected a single frame"),
    (animation("WEBP", 2), "ingest", "animated", "an animated WEBP file; expected a single frame"),
    (CUT_JPEG, "ingest", "truncated", "the JPEG's data ends early: Premature end of JPEG file"),
    (
        CUT_JPEG + b"\xff\xd9",
        "ingest",
        "truncated",
        "the JPEG's data ends early: Corrupt JPEG data: premature end of data segment",
    ),
    (
        jpeg()[:-2] + bytes(3) + b"\xff\xd9",
        "ingest",
        "corrupt",
        "the JPEG's data is damaged: Corrupt JPEG data: 1 extraneous bytes before marker 0xd9",
    ),
    (
        encode(photograph().resize((66_000, 64)), "PNG"),
        "release",
        "too_large",
        "66000×64 pixels to release; a JPEG's side has at most 65500",
    ),
]


@pytest.mark.parametrize(
    ("data", "stage", "reason", "detail"), BYTES_REFUSALS, ids=[detail[:60] for *_, detail in BYTES_REFUSALS]
)
def test_bytes_are_refused_in_these_words(data: bytes, stage: str, reason: str, detail: str) -> None:
    with pytest.raises(RefusedError) as verdict:
        prepare_image(data, CONFIG, [])
    assert (verdict.value.stage, verdict.value.reason, verdict.value.detail) == (stage, reason, detail)


@pytest.mark.parametrize(
    ("error", "reason", "detail"),
    [
        (Image.DecompressionBombError(), "too_large", "a frame inside the GIF file is over a decoder's limit"),
        (OSError("image file is truncated"), "truncated", "the GIF ends early: image file is truncated"),
        (
            OSError("cannot  identify\n<_io.BytesIO object at 0x7f00ab>"),
            "corrupt",
            "the GIF cannot be decoded: cannot identify it",
        ),
        (ValueError(), "corrupt", "the GIF cannot be decoded: no message"),
        (ValueError("x" * 999), "corrupt", f"the GIF cannot be decoded: {'x' * 120}"),
    ],
)
def test_a_decoders_complaint_is_stored_in_these_words(error: Exception, reason: str, detail: str) -> None:
    """The decoder's own words differ from version to version, and a dataset pins the version; ours are around them."""

    def complain() -> None:
        raise error

    with pytest.raises(RejectedError) as verdict:
        _guarded(complain, "GIF")
    assert (verdict.value.reason, verdict.value.detail) == (reason, detail)


@pytest.mark.parametrize(
    ("reason", "detail"),
    [
        (
            Reason.TIMED_OUT,
            "takes longer than resources.segment.timeout_s = 600 s, 2 times alone and each time right after a control "
            "image came through",
        ),
        (
            Reason.OUT_OF_MEMORY,
            "takes more memory than its worker had, 2 times alone and each time right after a control image came "
            "through",
        ),
        (
            Reason.KILLED_WORKER,
            "ends the process that segments it, 2 times alone and each time right after a control image came through",
        ),
    ],
)
def test_an_image_that_ends_its_worker_is_refused_in_these_words(
    monkeypatch: pytest.MonkeyPatch, reason: Reason, detail: str
) -> None:
    """The deaths are given: real ones take minutes, and tests/end_to_end/test_deadly_images.py has them."""
    quarantine = Quarantine(cast(Any, SimpleNamespace(segment_timeout_s=600.0)), start_timeout_s=1)
    monkeypatch.setattr(quarantine, "_prepare", lambda ordinal: object())
    monkeypatch.setattr(quarantine, "_try_alone", lambda prepared: reason)
    quarantine._rows = pa.table({"ordinal": [3]})
    quarantine._known = {3: faulted({}, "segment", RuntimeError("not tried yet"))}
    assert quarantine.try_suspects([]).verdicts == 1
    row = quarantine._known[3]
    assert (row["stage"], row["reason"], row["detail"], row["fault"]) == ("segment", str(reason), detail, None)


def test_an_image_that_a_detector_fails_on_is_refused_in_these_words() -> None:
    class Fragile:
        kind, name = "plate", "plates.ts"

        def detect(self, image: Any) -> list[Any]:
            if image.shape == (8, 8, 3):
                raise RuntimeError("Traceback of TorchScript:\n  in forward\nRuntimeError: a shape\n")
            return []

    with pytest.raises(RejectedError) as verdict:
        deidentify(np.zeros((8, 8, 3), np.uint8), [cast(Any, Fragile())])
    detail = "the plate detector plates.ts fails on this image, and not on others: RuntimeError: a shape"
    assert (verdict.value.reason, verdict.value.detail) == (Reason.DETECTOR_FAILED, detail)


def test_an_image_with_too_many_masks_is_refused_in_these_words() -> None:
    with pytest.raises(RejectedError) as verdict:
        check_count(12_345)
    detail = "12,345 masks; there are ids for 10,000 masks of one image"
    assert (verdict.value.reason, verdict.value.detail) == (Reason.TOO_MANY_MASKS, detail)


REASONS = [
    "license_not_allowed",
    "license_missing",
    "license_expired",
    "not_redistributable",
    "duplicate_id",
    "uri_not_allowed",
    "not_found",
    "unreadable_object",
    "empty_object",
    "hash_mismatch",
    "not_an_image",
    "unsupported_format",
    "animated",
    "truncated",
    "corrupt",
    "too_large",
    "too_small",
    "detector_failed",
    "too_many_masks",
    "killed_worker",
    "out_of_memory",
    "timed_out",
    "taken_down",
    "duplicate_image",
    "unfit",
    "opted_out",
]


def test_every_reason_is_spelled_like_this_and_has_its_words_above() -> None:
    """`reason` of `rejects`, and `counts` of a commit."""
    assert list(Reason) == REASONS
    with_words = {row[-2] for row in CATALOG_REFUSALS} | {row[-2] for row in BYTES_REFUSALS}
    assert with_words | {"unreadable_object", "detector_failed", "too_many_masks"} == set(REASONS)


# What a takedown and a redaction store.


def test_a_takedown_stores_these_words(tmp_path: Path) -> None:
    """The tombstone, its name, the blank row of the catalog, `licenses` of the next dataset.json."""
    catalog = tmp_path / "catalog.jsonl"
    catalog.write_text(
        '{"uri": "a.jpg", "image_id": "image-1", "license": "CC0-1.0"}\n{"uri": "b.jpg", "license": ""}\n'
    )
    dataset = tmp_path / "dataset"
    pinned = normalize(location_of(catalog), dataset / "part.parquet")
    part = part_path(0, pinned.sha256)
    (dataset / "catalog").mkdir()
    pinned.path.rename(dataset / part)
    licenses = count_licenses(dataset / part)
    assert licenses == {"CC0-1.0": 1, "missing": 1}
    put_manifest(
        location_of(dataset),
        DatasetManifest(
            name="small",
            config={"release": ReleaseConfig().model_dump()},
            config_sha256="",
            numerics={},
            code_version="",
            weights=Weights(name="", sha256=""),
            licenses=licenses,
            catalog=(CatalogPart(path=part, rows=2, sha256=pinned.sha256, source_sha256="", first_shard=0),),
            images_per_shard=2,
            policy_date=date(2026, 1, 1),
        ),
        1,
    )
    now = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    before = current_digest(location_of(dataset))
    takedown(location_of(dataset), Asked(ids=("image-1",)), "the author asked", now)

    (tombstone,) = (dataset / "tombstones").iterdir()
    assert tombstone.name == "a3e03a2cdd40.json"
    assert tombstone.read_text() == (
        '{"asked":{"ids":["image-1"],"license":null,"provider":null},'
        '"images":[{"id":1,"image_id":"image-1","ordinal":0,"sha256":null,"uri":"a.jpg"}],'
        f'"reason":"the author asked","schema_version":1,"version_before":"{before}",'
        '"when":"2026-03-04T05:06:07Z"}\n'
    )
    manifest = DatasetManifest.from_json((dataset / "dataset.g2.json").read_bytes())
    assert manifest.licenses == {"missing": 1, "taken_down": 1}
    blank, kept = pq.read_table(dataset / manifest.catalog[0].path).to_pylist()
    assert blank == {**dict.fromkeys(NORMALIZED.names), "ordinal": 0, "id": 1, "image_id": "", "uri": ""}
    assert kept["image_id"] == "b.jpg"


def test_a_row_that_is_taken_down_says_this_alone() -> None:
    """A row of `rejects`, as the catalog's blank row is refused (above)."""
    row = take_down({"ordinal": 0, "id": 1, "image_id": "a", "uri": "a.jpg", "license": "CC0-1.0", "masks": []})
    assert row == {
        "ordinal": 0,
        "id": 1,
        "image_id": "",
        "uri": "",
        "license": None,
        "masks": None,
        "stage": "catalog",
        "reason": "taken_down",
        "detail": "taken down after the catalog was pinned; a file in tombstones/ says why",
    }


def test_regions_are_named_by_these_words() -> None:
    """`regions` of `images`: `kind` and `source`. A TorchScript detector is named by its file."""
    size = {"source_width": 451, "source_height": 300, "width": 451, "height": 300}
    wanted = WantedRegion(id=1, kind="other", x=1, y=2, w=30, h=40)
    row = redact_row({**size, "regions": [], "release": jpeg()}, [wanted], ReleaseConfig(), RULES[-1])
    assert row["regions"] == [
        {"kind": "other", "score": 1.0, "x": 1, "y": 2, "w": 30, "h": 40, "source": "manual"},
    ]
    assert FaceDetector.__init__.__defaults__ is not None
    assert "mtcnn" in FaceDetector.__init__.__defaults__
    assert PlateDetector.__init__.__defaults__ is not None
    assert "clp" in PlateDetector.__init__.__defaults__


# What the catalog's texts become: columns of `catalog/`, `images` and `rejects`, and `source_sha256` of dataset.json.


def test_a_catalogs_texts_are_stored_like_this(tmp_path: Path) -> None:
    rows = [
        {
            "uri": "s3://user:secret@bucket/x.jpg",
            "license": " CC0-1.0 ",
            "attribution": "https://user:secret@host/a?token=abc",
            "provider": "https://host/?X-Amz-Signature=abc AKIAABCDEFGHIJKLMNOP",
            "sha256": "AB" * 32,
            "country": "us",
            "redistributable": True,
            "valid_until": "2030-01-31",
        },
        {"uri": "s3://user:secret@bucket/x.jpg", "license": ""},
        {"uri": "c.jpg", "license": "https://user:secret@host/a"},
        {"uri": "d.jpg", "license": "Permission " * 2000},
    ]
    (tmp_path / "catalog.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    catalog = normalize(location_of(tmp_path / "catalog.jsonl"), tmp_path / "part.parquet")
    first, second, *_ = pq.read_table(catalog.path).to_pylist()
    assert first == {
        "ordinal": 0,
        "id": 1,
        "image_id": "s3://[redacted]@bucket/x.jpg",
        "uri": "s3://[redacted]@bucket/x.jpg",
        "license": "CC0-1.0",
        "attribution": "https://[redacted]@host/a?token=[redacted]",
        "provider": "https://host/?X-Amz-Signature=[redacted] [redacted]",
        "source_url": None,
        "redistributable": True,
        "valid_until": date(2030, 1, 31),
        "country": "US",
        "sha256": "ab" * 32,
        "duplicate_of": None,
    }
    assert (second["image_id"], second["license"], second["duplicate_of"]) == ("s3://[redacted]@bucket/x.jpg", None, 0)
    licenses = pq.read_table(catalog.path).column("license").to_pylist()[2:]
    assert licenses == ["https://[redacted]@host/a", f"{('Permission ' * 8)[:80]}… (21,999 characters)"]


def test_a_scan_joins_copyrights_like_this(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    (tmp_path / "a.jpg.license").write_text(
        "SPDX-License-Identifier: CC0-1.0\nSPDX-FileCopyrightText: 2020 A\nSPDX-FileCopyrightText: 2021 B\n"
    )
    assert list(scan(location_of(tmp_path))) == [
        {"license": "CC0-1.0", "uri": f"{tmp_path}/a.jpg", "image_id": "a.jpg", "attribution": "2020 A; 2021 B"}
    ]


DEMO = [
    {
        "uri": "photos/astronaut.png",
        "license": "LicenseRef-public-domain",
        "image_id": "astronaut",
        "attribution": "NASA",
        "provider": "scikit-image",
        "source_url": "https://flic.kr/p/r9qvLn",
        "redistributable": True,
        "country": "US",
        "caption": "Eileen Collins, astronaut. No known copyright restrictions, "
        "released into the public domain by NASA.",
    },
    {
        "uri": "photos/coffee.png",
        "license": "CC0-1.0",
        "image_id": "coffee",
        "attribution": "Rachel Michetti, courtesy of Pikolo Espresso Bar",
        "provider": "scikit-image",
        "source_url": "https://scikit-image.org/docs/stable/api/skimage.data.html#skimage.data.coffee",
        "redistributable": True,
        "caption": "A coffee cup.",
    },
    {
        "uri": "photos/motorcycle_left.png",
        "license": "LicenseRef-middlebury-2014-stereo",
        "image_id": "motorcycle_left",
        "attribution": "Nera Nesic, Porter Westling, Xi Wang, York Kitajima, Greg Krathwohl, "
        "Daniel Scharstein (Middlebury)",
        "provider": "scikit-image",
        "source_url": "https://vision.middlebury.edu/stereo/data/scenes2014/",
        "redistributable": False,
        "country": "US",
        "caption": "A motorcycle, from the Middlebury 2014 stereo benchmark. "
        "Refused: its license is not among those allowed.",
    },
    {
        "uri": "photos/chelsea.png",
        "license": "CC0-1.0",
        "image_id": "chelsea",
        "attribution": "Stefan van der Walt",
        "provider": "scikit-image",
        "source_url": "https://scikit-image.org/docs/stable/api/skimage.data.html#skimage.data.chelsea",
        "redistributable": True,
        "caption": "Chelsea the cat.",
    },
    {
        "uri": "photos/flower.jpg",
        "license": "CC-BY-2.0",
        "image_id": "flower",
        "attribution": "vultilion",
        "provider": "scikit-learn",
        "source_url": "https://www.flickr.com/photos/vultilion/6056698931/",
        "redistributable": True,
        "caption": "A flower. Refused as expired: the date is made up, the true license has no end.",
        "valid_until": "2020-12-31",
    },
    {
        "uri": "photos/china.jpg",
        "license": "CC-BY-2.0",
        "image_id": "china",
        "attribution": "danielbuechele",
        "provider": "scikit-learn",
        "source_url": "https://www.flickr.com/photos/danielbuechele/6061409035/",
        "redistributable": True,
        "country": "CN",
        "caption": "A building in China.",
    },
    {
        "uri": "photos/china-broken.jpg",
        "license": "CC-BY-2.0",
        "image_id": "china-broken",
        "attribution": "danielbuechele",
        "provider": "scikit-learn",
        "source_url": "https://www.flickr.com/photos/danielbuechele/6061409035/",
        "redistributable": True,
        "country": "CN",
        "caption": "The same file cut in half. Refused as broken.",
    },
    {
        "uri": "photos/coffee.png",
        "license": "CC0-1.0",
        "image_id": "coffee",
        "attribution": "Rachel Michetti, courtesy of Pikolo Espresso Bar",
        "provider": "scikit-image",
        "source_url": "https://scikit-image.org/docs/stable/api/skimage.data.html#skimage.data.coffee",
        "redistributable": True,
        "caption": "The cup once more. Refused: its image_id stood there before.",
    },
]


def test_the_demos_catalog_says_this(tmp_path: Path) -> None:
    stored = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in DEMO)
    assert write_demo(tmp_path).read_text(encoding="utf-8") == stored


# Files of a dataset: their names, keys and fixed words.


def test_files_are_named_like_this() -> None:
    digest = "0123456789abcdef" * 4
    assert (manifest_name(1), manifest_name(2)) == ("dataset.json", "dataset.g2.json")
    assert part_path(1, digest) == "catalog/part-1-0123456789ab.parquet"
    assert data_path("shards", 7, digest) == "shards/sa_000007-0123456789ab.tar"
    assert [data_path(kind, 7, digest) for kind in ("images", "masks", "rejects")] == [
        f"{kind}/sa_000007-0123456789ab.parquet" for kind in ("images", "masks", "rejects")
    ]
    assert commit_name(7, 2) == "000007.g2.json"


def test_a_shards_files_say_this() -> None:
    """Members of the tar with their JSON, `counts` of the commit."""
    mask = {
        "segmentation": {"size": [2, 3], "counts": "06"},
        "bbox": [0.0, 0.0, 3.0, 2.0],
        "area": 6,
        "predicted_iou": 0.5,
        "stability_score": 1.0,
        "crop_box": [0.0, 0.0, 3.0, 2.0],
        "point_coords": [[1.5, 0.5]],
    }
    assert annotations_json(9, "sa_9.jpg", (2, 3), [mask]).decode() == (
        '{"image":{"image_id":9,"width":3,"height":2,"file_name":"sa_9.jpg"},"annotations":[{"id":90000,'
        '"segmentation":{"size":[2,3],"counts":"06"},"bbox":[0.0,0.0,3.0,2.0],"area":6,"predicted_iou":0.5,'
        '"stability_score":1.0,"crop_box":[0.0,0.0,3.0,2.0],"point_coords":[[1.5,0.5]]}]}'
    )
    accepted: Row = {"ordinal": 8, "id": 9, "image_id": "x", "width": 3, "height": 2, "masks": [], "release": b"jpeg"}
    refused: Row = {"ordinal": 9, "id": 10, "image_id": "y", "stage": "read", "reason": "not_found"}
    files = build_shard_files([{**accepted, "reason": None}, refused], with_images=True)
    assert files.counts == {"rows": 2, "images": 1, "masks": 0, "rejected": 1, "rejected:not_found": 1}
    assert files.tar[:512].startswith(b"sa_9.jpg\x00")
    assert files.tar[1024:1536].startswith(b"sa_9.json\x00")


def test_commits_and_indexes_say_this() -> None:
    entry = FileEntry("shards/sa_000000-0123456789ab.tar", 5, "01" * 32)
    commit = Commit(0, 1, (0, 2), "07dea44c13b1", {"rows": 2, "images": 1, "rejected": 1}, (entry,))
    assert commit.to_json().decode() == (
        '{"counts":{"images":1,"rejected":1,"rows":2},"files":[{"path":"shards/sa_000000-0123456789ab.tar",'
        f'"sha256":"{"01" * 32}","size":5}}],"generation":1,"numerics":"07dea44c13b1","ordinals":[0,2],"shard":0}}\n'
    )
    assert shards_index("small", [commit]).decode() == (
        '{"__kind__":"wids-shard-index-v1","name":"small","shardlist":[{"filesize":5,"nsamples":1,'
        '"url":"shards/sa_000000-0123456789ab.tar"}],"wids_version":1}\n'
    )
    assert tuple(vars(NOTHING)) == ("shards", "files", "bytes", "counts", "numerics")


def test_a_manifest_says_this() -> None:
    """dataset.json, and in it the keys of the configuration and of the numerics."""
    manifest = DatasetManifest(
        name="small",
        config={},
        config_sha256="c",
        numerics={},
        code_version=VERSION,
        weights=Weights(name="mobile_sam", sha256="w"),
        licenses={"CC0-1.0": 1},
        catalog=(CatalogPart(path="p", rows=1, sha256="s", source_sha256="t", first_shard=0),),
        images_per_shard=2,
        policy_date=date(2026, 1, 1),
    )
    assert manifest.to_json().decode() == (
        '{"catalog":[{"first_shard":0,"path":"p","rows":1,"sha256":"s","source_sha256":"t"}],'
        f'"code_version":"{VERSION}",'
        '"config":{},"config_sha256":"c","images_per_shard":2,"licenses":{"CC0-1.0":1},"name":"small","numerics":{},'
        '"policy_date":"2026-01-01","schema_version":2,"weights":{"name":"mobile_sam","sha256":"w"}}\n'
    )
    assert " ".join(field.name for field in fields(Numerics) if field.name != "unrecorded") == NUMERICS
    config = Config.model_validate(
        {"name": "small", "catalog": "/c.csv", "output": "/d", "license": {"allow": ["CC0-1.0"]}}
    )
    assert " ".join(keys(identity(config))) == CONFIGURATION


def keys(tree: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The dotted keys of a tree, in their order."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from keys(value, f"{above}{key}.")
        else:
            yield above + key


NUMERICS = (
    "device device_kind precision encoder points_per_chunk crops_per_batch threads weights_sha256 segmint torch "
    "torchvision numpy opencv pillow littlecms simplejpeg libjpeg_turbo pyarrow facenet_pytorch onnxruntime "
    "pi_heif "  # since HEIC is read
    "cpu "  # on a CPU alone
    "cuda cudnn triton attention chunks "  # on a GPU alone
    "detectors"  # where these run on a GPU
)

CONFIGURATION = (
    "name images_per_shard license.allow license.require_redistributable license.respect_opt_out ingest.formats "
    "ingest.max_pixels "
    "ingest.min_short_side "
    "ingest.max_bytes deidentify.rule deidentify.faces.detector deidentify.faces.score deidentify.plates.detector "
    "deidentify.plates.score release.short_side release.jpeg_quality release.format masks.profile "
    "masks.points_per_side masks.crop_n_layers masks.crop_n_points_downscale_factor masks.crop_overlap_ratio "
    "masks.pred_iou_thresh masks.stability_score_thresh masks.stability_score_offset masks.box_nms_thresh "
    "masks.crop_nms_thresh masks.min_mask_region_area masks.max_mask_area_ratio masks.drop_redaction_artifacts "
    "model.weights"
)


def test_columns_are_named_like_this() -> None:
    """`catalog/`, `images`, `masks` and `rejects`; docs/dataset.md has what is in them."""
    assert " ".join(NORMALIZED.names) == (
        "ordinal id image_id uri license attribution provider source_url redistributable valid_until country "
        "sha256 duplicate_of"
    )
    assert " ".join(ADDED.names) == "opt_out refused_reason refused_detail"  # only where a row has a value
    images = (
        "ordinal id image_id uri license attribution provider source_url country source_sha256 source_width "
        "source_height width height faces plates regions masks funnel statistics"
    )
    masks = (
        "ordinal id image_id annotation_id segmentation bbox area predicted_iou stability_score crop_box "
        "point_coords relative_size concavity center_x center_y aspect_ratio touches_border"
    )
    steps = (
        "predicted over_iou stable under_max_area inside_crop after_nms1 after_nms2 cleaned removed_by_cleanup written"
    )
    assert " ".join(SCHEMAS_OF[1]["images"].names) == images
    assert " ".join(SCHEMAS_OF[1]["masks"].names) == masks
    assert " ".join(field.name for field in SCHEMAS_OF[1]["images"].field("funnel").type) == steps
    assert " ".join(IMAGES.names) == f"{images} answer annotator stage seconds complete next_mask"
    assert " ".join(MASKS.names) == (
        f"{masks} label source annotator seconds prompts parent origin model redacted_share redaction_iou"
    )
    added = "holes_filled islands_removed redaction_artifacts"
    assert " ".join(field.name for field in IMAGES.field("funnel").type) == f"{steps} {added}"
    assert SOURCES == ("automatic", "assisted", "corrected", "manual", "imported")
    assert " ".join(REJECTS.names) == ("ordinal id image_id uri stage reason detail")


def test_a_row_whose_source_was_taken_down_says_this() -> None:
    """A row of `rejects` under another ordinal: its names are the catalog's."""
    image = TakenImage(ordinal=7, id=8, image_id="b", uri="b.jpg", sha256="ab" * 32)
    row = {"ordinal": 0, "id": 1, "image_id": "a", "uri": "a.jpg", "reason": None, "source_sha256": "ab" * 32}
    assert without_taken(row, Taken({7: image}, TakenNames.of([image]))) == {
        **row,
        "source_sha256": None,
        "stage": "catalog",
        "reason": "taken_down",
        "detail": "its URI or its bytes were taken down under another row; a file in tombstones/ says why",
    }
