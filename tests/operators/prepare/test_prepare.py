"""From catalog rows to released images or verdicts: every row comes out, in order, and no original leaks."""

import functools
import hashlib
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segmint.catalogs.dataset.tombstones import NO_NAMES, RemovedImage, RemovedNames
from segmint.catalogs.findings import Reason, RejectedError
from segmint.catalogs.licenses import LicensePolicy
from segmint.catalogs.parquet import NORMALIZED
from segmint.catalogs.source.normalize import normalize
from segmint.infra.assets import sha256_of
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import StorageFaultError, UnreadableObjectError
from segmint.infra.storage.retry import RetryPolicy
from segmint.infra.storage.storage import Storage
from segmint.operators.child import Children, SuspectError
from segmint.operators.opt_out import read_refusal_lists
from segmint.operators.prepare.deidentify import DeidentifyConfig, FacesConfig, PlatesConfig
from segmint.operators.prepare.detector_socket import DetectorProcessError
from segmint.operators.prepare.ingest import IngestConfig
from segmint.operators.prepare.prepare import (
    Prepare,
    PrepareConfig,
    PreparedImage,
    PrepareResources,
    RefusedError,
    build_worker,
    prepare_image,
)
from segmint.operators.prepare.release import CropLayers, ReleaseConfig
from segmint.operators.rows import PREPARED, Row
from segmint.operators.similar.near import jpeg_hashes
from tests.support import bad_images, signed_images
from tests.support.bad_images import encode, photograph, portrait, write_bad_catalog
from tests.support.bombs import Bomb, bombs, tiff_whose_pages_go_round
from tests.support.faulty_proxy import SHORT_LENGTH, faulty_proxy
from tests.support.locations import location_of
from tests.support.s3_server import S3Server

FACES_ONLY = DeidentifyConfig(plates=PlatesConfig(detector="none"))
NOTHING = DeidentifyConfig(faces=FacesConfig(detector="none"), plates=PlatesConfig(detector="none"))
POLICY = LicensePolicy(allow=frozenset({"CC0-1.0"}), require_redistributable=False, policy_date=date(2026, 1, 1))
FAST = RetryPolicy(attempts=2, first_wait_s=0.01, max_wait_s=0.01, deadline_s=5)
CATALOG = "/catalog/catalog.jsonl"


def config(deidentify: DeidentifyConfig = NOTHING, **changes: object) -> PrepareConfig:
    values: dict[str, object] = {
        "ingest": IngestConfig(timeout_s=60),
        "deidentify": deidentify,
        "release": ReleaseConfig(short_side=200),
        "crops": CropLayers(2, 512 / 1500),
    }
    return PrepareConfig(**{**values, **changes})  # type: ignore[arg-type]


def table(*rows: dict[str, object]) -> pa.Table:
    filled = []
    for ordinal, row in enumerate(rows):
        base = {"ordinal": ordinal, "id": ordinal + 1, "image_id": f"image {ordinal}", "license": "CC0-1.0"}
        filled.append({**dict.fromkeys(NORMALIZED.names), **base, **row})
    return pa.Table.from_pylist(filled, schema=NORMALIZED)


def pixels(jpeg: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(jpeg)) as image:
        return np.asarray(image).astype(int)


@pytest.fixture(scope="module")
def prepare() -> Iterator[Prepare]:
    """A stage whose child detects faces."""
    stage = Prepare(config(FACES_ONLY), Storage(retry=FAST), POLICY, CATALOG)
    yield stage
    stage.close()


@pytest.fixture
def portrait_file(tmp_path: Path) -> Path:
    path = tmp_path / "portrait.jpg"
    path.write_bytes(encode(portrait(), "JPEG", exif=bad_images.exif(1)))
    return path


def test_a_face_is_gone_from_everything_that_is_released(prepare: Prepare, portrait_file: Path) -> None:
    result = prepare(table({"uri": str(portrait_file)}))
    assert result.schema == PREPARED
    (row,) = result.to_pylist()
    assert (row["stage"], row["reason"], row["detail"], row["fault"]) == (None, None, None, None)
    assert row["source_sha256"] == hashlib.sha256(portrait_file.read_bytes()).hexdigest()
    assert row["release_sha256"] == hashlib.sha256(row["release"]).hexdigest()
    assert (row["source_width"], row["source_height"], row["width"], row["height"]) == (512, 512, 200, 200)
    assert (row["faces"], row["plates"], len(row["regions"])) == (1, 0, 1)
    assert pixels(row["release"]).shape == (200, 200, 3)
    region = row["regions"][0]
    face = np.s_[region["y"] : region["y"] + region["h"], region["x"] : region["x"] + region["w"]]
    change = np.abs(pixels(row["original"]) - pixels(portrait_file.read_bytes())).mean(axis=2)
    assert change[face].mean() > 10
    change[face] = 0
    assert change.mean() < 1
    for left in (row["release"], row["original"]):
        assert b"SEGMINT" not in left
        assert b"Exif" not in left


def test_the_original_is_left_out_where_nothing_needs_it(portrait_file: Path) -> None:
    data = portrait_file.read_bytes()
    assert build_worker(config(crops=None), Storage(), None)(data).original is None
    assert build_worker(config(release=ReleaseConfig(short_side=512)), Storage(), None)(data).original is None
    assert build_worker(config(), Storage(), None)(data).original is not None


def test_the_original_is_as_large_as_its_crops_need() -> None:
    """Crops that are as large as the image need an original of 1024 pixels; regions are in pixels of the source."""
    source = portrait().resize((1600, 1600))
    settings = config(FACES_ONLY, release=ReleaseConfig(short_side=400), crops=CropLayers(1, 1.0))
    prepared = build_worker(settings, Storage(), None)(encode(source, "JPEG"))
    assert pixels(prepared.original).shape == (1024, 1024, 3)
    region = prepared.regions[0]
    change = np.abs(pixels(prepared.original) - np.asarray(source.resize((1024, 1024)), int)).mean(axis=2)
    x0, y0, x1, y1 = (v * 16 // 25 for v in (region.x, region.y, region.x + region.w, region.y + region.h))
    face = np.s_[y0 : y1 + 1, x0 : x1 + 1]
    assert change[face].mean() > 10
    change[face] = 0
    assert change.mean() < 2


def test_the_same_image_gives_the_same_bytes_in_any_process(prepare: Prepare, portrait_file: Path) -> None:
    rows = [{"uri": str(portrait_file)}] * 3
    together = prepare(table(*rows)).to_pylist()
    assert len({(row["release"], row["original"]) for row in together}) == 1
    other = Prepare(
        config(FACES_ONLY), Storage(retry=FAST), POLICY, CATALOG, PrepareResources(children=2, read_threads=3)
    )
    try:
        (alone,) = other(table(rows[0])).to_pylist()
    finally:
        other.close()
    assert (alone["release"], alone["regions"]) == (together[0]["release"], together[0]["regions"])


def test_verdicts_name_their_stage() -> None:
    worker = build_worker(config(), Storage(), None)
    with pytest.raises(RefusedError) as verdict:
        worker(b"<html>")
    assert (verdict.value.stage, verdict.value.reason) == ("ingest", Reason.NOT_AN_IMAGE)
    returned = pickle.loads(pickle.dumps(verdict.value))
    assert (returned.stage, returned.reason, returned.detail) == ("ingest", Reason.NOT_AN_IMAGE, verdict.value.detail)
    with pytest.raises(RefusedError) as verdict:
        worker(encode(photograph().resize((66_000, 64)), "PNG"))
    assert (verdict.value.stage, verdict.value.reason) == ("release", Reason.TOO_LARGE)


def test_the_catalog_is_judged_before_anything_is_read(prepare: Prepare, portrait_file: Path) -> None:
    nowhere = "/nowhere/at/all.jpg"
    result = prepare(
        table(
            {"uri": nowhere, "duplicate_of": 7},
            {"uri": nowhere, "license": None},
            {"uri": nowhere, "license": "CC-BY-4.0"},
            {"uri": nowhere, "valid_until": date(2025, 12, 31)},
            {"uri": str(portrait_file), "valid_until": date(2026, 1, 1)},
            {"uri": "../outside.jpg"},
            {"uri": "ftp://host/x.jpg"},
            {"uri": nowhere},
        )
    ).to_pylist()
    assert [(row["ordinal"], row["stage"], row["reason"]) for row in result] == [
        (0, "catalog", "duplicate_id"),
        (1, "catalog", "license_missing"),
        (2, "catalog", "license_not_allowed"),
        (3, "catalog", "license_expired"),
        (4, None, None),
        (5, "read", "uri_not_allowed"),
        (6, "read", "uri_not_allowed"),
        (7, "read", "not_found"),
    ]
    assert "ordinal 7" in result[0]["detail"]


def test_a_catalog_from_a_bucket_reads_no_file_of_this_machine(portrait_file: Path) -> None:
    stage = Prepare(config(), Storage(retry=FAST), POLICY, "s3://bucket/catalog.parquet")
    try:
        (row,) = stage(table({"uri": str(portrait_file)})).to_pylist()
    finally:
        stage.close()
    assert row["reason"] == "uri_not_allowed"


def test_hashes_are_checked_and_both_are_named(prepare: Prepare, portrait_file: Path) -> None:
    digest = hashlib.sha256(portrait_file.read_bytes()).hexdigest()
    good, bad = prepare(
        table({"uri": str(portrait_file), "sha256": digest}, {"uri": str(portrait_file), "sha256": "ab" * 32})
    ).to_pylist()
    assert good["reason"] is None
    assert (bad["stage"], bad["reason"]) == ("read", "hash_mismatch")
    assert digest in bad["detail"]
    assert "ab" * 32 in bad["detail"]


def test_an_opt_out_in_the_catalog_is_judged(prepare: Prepare, portrait_file: Path) -> None:
    rows = table({"uri": str(portrait_file)}, {"uri": str(portrait_file)})
    out, allowed = prepare(rows.append_column("opt_out", pa.array([True, False]))).to_pylist()
    assert (out["stage"], out["reason"]) == ("catalog", "opted_out")
    assert allowed["reason"] is None


def test_what_a_tombstone_names_is_refused_whatever_row_names_it(portrait_file: Path) -> None:
    """By the bytes, known from the catalog or read, and by every form of the URI; only then is nothing read."""
    other = portrait_file.with_name("other.jpg")
    other.write_bytes(portrait_file.read_bytes())
    fine = portrait_file.with_name("fine.jpg")
    fine.write_bytes(encode(photograph(), "JPEG"))
    digest = hashlib.sha256(portrait_file.read_bytes()).hexdigest()
    catalog = str(portrait_file.with_name("catalog.jsonl"))
    image = RemovedImage(ordinal=99, id=100, image_id="x", uri="gone.jpg", sha256=digest)
    taken = RemovedNames.of([image, image.model_copy(update={"sha256": None, "uri": "also.jpg"})], catalog)
    stage = Prepare(config(), Storage(retry=FAST), POLICY, catalog, taken=taken)
    folder = portrait_file.parent
    try:
        rows = stage(
            table(
                {"uri": "other.jpg"},
                {"uri": "fine.jpg", "sha256": digest},
                {"uri": "./gone.jpg"},
                {"uri": f"{folder}/also.jpg"},
                {"uri": f"file://{folder}/x/../also.jpg"},
                {"uri": "fine.jpg"},
            )
        ).to_pylist()
    finally:
        stage.close()
    assert [row["reason"] for row in rows] == [*["taken_down"] * 5, None]
    detail = "its URI, bytes, or pixels were taken down under another row; a file in tombstones/ says why"
    assert {(row["stage"], row["detail"]) for row in rows[:5]} == {("catalog", detail)}


def test_what_a_refusal_list_names_is_refused_before_it_is_decoded(portrait_file: Path) -> None:
    folder = portrait_file.parent
    (folder / "broken.jpg").write_bytes(b"not an image")
    digest = hashlib.sha256(b"not an image").hexdigest()
    (folder / "list.txt").write_text(f"{digest}\nexample.com\nhttps://other.org/a.jpg\ns3://bucket/in/b.jpg\n")
    refused = read_refusal_lists([location_of(folder / "list.txt")])
    stage = Prepare(config(), Storage(retry=FAST), POLICY, str(folder / "catalog.jsonl"), refused=refused)
    in_bucket = Prepare(config(), Storage(retry=FAST), POLICY, "s3://bucket/in/catalog.parquet", refused=refused)
    try:
        rows = stage(
            table(
                {"uri": "broken.jpg"},
                {"uri": "none.jpg", "sha256": digest.upper()},
                {"uri": "none.jpg", "source_url": "https://cdn.example.com/photo"},
                {"uri": "none.jpg", "source_url": "http://other.org/a.jpg", "license": "CC-BY-NC-4.0"},
                {"uri": portrait_file.name, "source_url": "https://other.org/b.jpg"},
            )
        ).to_pylist()
        rows += in_bucket(table({"uri": "b.jpg"})).to_pylist()
        collected = table({"uri": "none.jpg", "source_url": "other.org/b"})
        collected = collected.append_column("download_url", pa.array(["https://other.org/a.jpg"]))
        rows += stage(collected).to_pylist()
    finally:
        stage.close()
        in_bucket.close()
    assert [row["reason"] for row in rows] == [*["refused_by_list"] * 4, None, *["refused_by_list"] * 2]
    assert {(row["stage"], row["detail"]) for row in rows[:4]} == {
        ("catalog", "a refusal list names its bytes, its URL, or its domain")
    }


def test_a_picture_with_the_pixels_or_the_jpeg_of_a_removed_one_is_refused(portrait_file: Path) -> None:
    folder, data = portrait_file.parent, portrait_file.read_bytes()
    (folder / "appended.jpg").write_bytes(data + b"\0")
    (folder / "comment.jpg").write_bytes(data[:2] + b"\xff\xfe\x00\x04hi" + data[2:])
    (folder / "again.jpg").write_bytes(encode(photograph(), "JPEG", quality=60))
    names = [{"uri": name} for name in ("portrait.jpg", "appended.jpg", "comment.jpg", "again.jpg")]
    names[0] = {"uri": portrait_file.name}

    def prepared(taken: RemovedNames) -> list[Row]:
        stage = Prepare(config(), Storage(retry=FAST), POLICY, str(folder / "catalog.jsonl"), taken=taken)
        try:
            return stage(table(*names)).to_pylist()
        finally:
            stage.close()

    first, *others = prepared(NO_NAMES)
    for column in ("pixels_sha256", "release_sha256"):
        assert [row[column] == first[column] for row in others] == [True, True, False]
        assert [row["source_sha256"] == first["source_sha256"] for row in others] == [False] * 3
        rows = prepared(RemovedNames(pictures=frozenset({first[column]})))
        assert [row["reason"] for row in rows] == [*["taken_down"] * 3, None]
        assert {(row["stage"], row["release"]) for row in rows[:3]} == {("catalog", None)}
    assert first["hashes"] == jpeg_hashes(first["release"]).tolist()
    assert len(first["hashes"]) == 9


def test_an_object_over_the_byte_limit_is_not_read(portrait_file: Path) -> None:
    stage = Prepare(config(ingest=IngestConfig(max_bytes=1000)), Storage(retry=FAST), POLICY, CATALOG)
    try:
        (row,) = stage(table({"uri": str(portrait_file)})).to_pylist()
    finally:
        stage.close()
    assert (row["stage"], row["reason"]) == ("read", "too_large")
    assert "1,000" in row["detail"]


class UnreachableStorage(Storage):
    """A store whose reads raise `error`."""

    error: StorageFaultError

    def read(self, uri: str, max_bytes: int | None = None) -> bytes:
        raise self.error


@pytest.mark.parametrize("kind", [UnreadableObjectError, StorageFaultError])
def test_an_outage_is_a_fault_and_an_unreadable_object_a_verdict(kind: type[StorageFaultError]) -> None:
    storage = UnreachableStorage()
    storage.error = kind("503 Slow Down")
    stage = Prepare(config(), storage, POLICY, CATALOG)
    try:
        (row,) = stage(table({"uri": "/some/file.jpg"})).to_pylist()
    finally:
        stage.close()
    if kind is UnreadableObjectError:
        assert (row["stage"], row["reason"], row["fault"]) == ("read", "unreadable_object", None)
    else:
        assert row["reason"] is None
        assert "503 Slow Down" in row["fault"]


@pytest.mark.s3
def test_remote_bytes_are_refused_only_if_read_twice(
    s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = encode(photograph(), "JPEG")
    with faulty_proxy(s3_server.port) as proxy:
        storage = Storage({"s3://": {"endpoint_url": proxy.url}}, FAST)
        for name, data in {"whole.jpg": whole, "cut.jpg": whole[: len(whole) // 2]}.items():
            storage.put(f"s3://{s3_bucket}/{name}", data)
        stage = Prepare(config(), storage, POLICY, f"s3://{s3_bucket}/catalog.jsonl")
        try:
            proxy.plan = [("GET", SHORT_LENGTH)]
            (row,) = stage(table({"uri": "whole.jpg"})).to_pylist()
            assert (row["reason"], row["fault"]) == (None, None)
            assert row["source_sha256"] == hashlib.sha256(whole).hexdigest()
            proxy.plan = [("GET", SHORT_LENGTH)]
            (row,) = stage(table({"uri": "whole.jpg", "sha256": row["source_sha256"]})).to_pylist()
            assert (row["reason"], row["fault"]) == (None, None)
            proxy.requests.clear()
            (row,) = stage(table({"uri": "cut.jpg"})).to_pylist()
            assert (row["stage"], row["reason"]) == ("ingest", "truncated")
            assert proxy.requests == ["GET", "GET"]

            def ends_its_child(child: Children, data: bytes) -> NoReturn:
                raise SuspectError(Reason.KILLED_WORKER, "signal 9")

            monkeypatch.setattr(Children, "run", ends_its_child)  # twice already, so it is not read again
            proxy.requests.clear()
            (row,) = stage(table({"uri": "whole.jpg"})).to_pylist()
            assert (row["stage"], row["reason"], proxy.requests) == ("prepare", "killed_worker", ["GET"])
        finally:
            stage.close()


def test_a_child_that_cannot_start_is_a_fault(portrait_file: Path) -> None:
    broken = DeidentifyConfig(faces=FacesConfig(detector="/nowhere/faces.ts"), plates=PlatesConfig(detector="none"))
    stage = Prepare(config(broken), Storage(retry=FAST), POLICY, CATALOG)
    try:
        (row,) = stage(table({"uri": str(portrait_file)})).to_pylist()
    finally:
        stage.close()
    assert row["reason"] is None
    assert "/nowhere/faces.ts" in row["fault"]


def test_an_image_whose_search_gets_no_reply_three_times_is_a_fault(
    portrait_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def unanswered(child: Children[PreparedImage], data: bytes) -> NoReturn:
        events.append("search")
        raise DetectorProcessError("the process that searches images didn't reply")

    monkeypatch.setattr(Children, "run", unanswered)
    host: Any = SimpleNamespace(address="nobody's", ready=lambda: events.append("restart"))
    stage = Prepare(config(), Storage(retry=FAST), POLICY, CATALOG, detectors=host)
    try:
        events.clear()  # an actor waits for the process when it starts, too
        (row,) = stage(table({"uri": str(portrait_file)})).to_pylist()
    finally:
        stage.close()
    assert events == ["search", "restart", "search", "restart", "search"]
    assert (row["reason"], row["fault"].startswith("prepare: DetectorProcessError: ")) == (None, True)


def test_rows_that_were_judged_before_pass_through(prepare: Prepare) -> None:
    rows = prepare(table({"uri": "/nowhere.jpg"}))
    assert prepare(rows).equals(rows)


def test_no_rows_are_no_rows(prepare: Prepare) -> None:
    assert prepare(NORMALIZED.empty_table()).equals(PREPARED.empty_table())


DEADLY_RUN = """
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn
import pyarrow as pa, pyarrow.parquet as pq
from segmint.infra.storage.storage import Storage
from segmint.operators.prepare.prepare import Prepare, PrepareResources
from tests.operators.prepare import test_prepare as given

folder = Path(sys.argv[1])
stage = Prepare(given.config(), Storage(), given.POLICY, str(folder / "catalog.jsonl"), PrepareResources(children=2))
pq.write_table(stage(pq.read_table(folder / "normalized.parquet")), folder / "prepared.parquet")
stage.close()
"""


def test_every_bad_image_gets_its_verdict_and_the_rest_comes_through(tmp_path: Path) -> None:
    expected = write_bad_catalog(tmp_path)
    catalog = str(tmp_path / "catalog.jsonl")
    normalize(location_of(catalog), tmp_path / "normalized.parquet")
    root = Path(__file__).parents[3]
    paths = os.pathsep.join([str(bad_images.POISON), str(root)])
    subprocess.run(
        [sys.executable, "-c", DEADLY_RUN, str(tmp_path)], env={**os.environ, "PYTHONPATH": paths}, check=True
    )
    rows = pq.read_table(tmp_path / "prepared.parquet").to_pylist()
    found = [(row["image_id"], row["uri"], row["stage"], row["reason"]) for row in rows]
    assert found == [(one.image_id, one.uri, one.stage, one.reason) for one in expected]
    assert [row["ordinal"] for row in rows] == list(range(len(expected)))
    assert all(row["fault"] is None for row in rows)
    assert sum(row["reason"] is None for row in rows) == 35


def test_an_opted_out_image_is_refused_before_it_is_decoded(prepare: Prepare, tmp_path: Path) -> None:
    def signed(kind: str, use: str) -> bytes:
        return signed_images.signed(signed_images.image(kind), kind, signed_images.training("cawg", use))

    reserved = signed_images.image("JPEG", signed_images.packet("<tdm:reservation>1</tdm:reservation>"))
    files = {
        "xmp.jpg": reserved,
        "cut.jpg": reserved[: len(reserved) // 2],
        "c2pa.png": signed("PNG", "notAllowed"),
        "allowed.webp": signed("WEBP", "allowed"),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    rows = prepare(table(*({"uri": str(tmp_path / name)} for name in files))).to_pylist()
    assert [(row["stage"], row["reason"], row["fault"]) for row in rows] == [
        *[("ingest", "opted_out", None)] * 3,
        (None, None, None),
    ]
    assert rows[2]["detail"] == "the image's metadata forbids training with it: cawg.ai_training is notAllowed"

    begun_before = config(respect_opt_out=False)
    assert prepare_image(reserved, begun_before, []).release


@pytest.fixture(scope="module")
def cramped() -> Iterator[Children[PreparedImage]]:
    """A child as in builds, with a quarter of the memory."""
    factory = functools.partial(build_worker, config(), Storage(), None)
    with Children(factory, timeout_s=120, memory_limit=2**30) as children:
        yield children


@pytest.fixture(scope="module")
def impatient() -> Iterator[Children[PreparedImage]]:
    """The same with one second per image."""
    factory = functools.partial(build_worker, config(), Storage(), None)
    with Children(factory, timeout_s=1, memory_limit=2**30) as children:
        yield children


@pytest.mark.parametrize("bomb", [bomb for bomb in bombs() if not bomb.endless], ids=lambda bomb: bomb.name)
def test_a_bomb_costs_only_itself(cramped: Children[PreparedImage], bomb: Bomb) -> None:
    data = bomb.make()
    assert len(data) < 1 << 20
    with pytest.raises(RejectedError) as verdict:
        cramped.run(data)
    assert verdict.value.reason in bomb.reasons
    assert len(verdict.value.detail) < 500
    assert cramped.run(bad_images.jpeg()).width == 301


@pytest.mark.parametrize("bomb", [bomb for bomb in bombs() if bomb.endless], ids=lambda bomb: bomb.name)
def test_endless_work_is_ended(impatient: Children[PreparedImage], bomb: Bomb) -> None:
    data = bomb.make()
    assert len(data) < 10 << 20
    with pytest.raises(RejectedError) as verdict:
        impatient.run(data)
    assert verdict.value.reason in bomb.reasons


def test_cyclic_pages_end(cramped: Children[PreparedImage]) -> None:
    assert cramped.run(tiff_whose_pages_go_round()).source_width == 100


def nothing_found(path: Path) -> Path:
    """A TorchScript detector that finds nothing; torch is imported here, since that takes a second."""
    import torch

    class NullDetector(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
            return torch.zeros((0, 4)), torch.zeros(0), torch.zeros(0), torch.zeros(2)

    torch.jit.script(NullDetector()).save(path)
    return path


def test_a_detector_file_that_was_replaced_is_not_loaded(tmp_path: Path, portrait_file: Path) -> None:
    path = nothing_found(tmp_path / "faces.ts")
    pinned = DeidentifyConfig(faces=FacesConfig(detector=str(path)), plates=PlatesConfig(detector="none"))
    settings = config(pinned, detector_sha256={str(path): sha256_of(path)})
    assert build_worker(settings, Storage(), None)(portrait_file.read_bytes()).regions == ()
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(UsageError, match=r"faces\.ts is not the file that the dataset was created with"):
        build_worker(settings, Storage(), None)


def test_an_image_that_a_detectors_file_fails_on_is_refused_and_the_others_go_on(tmp_path: Path) -> None:
    from tests.support.torchscript import FragileDetector, saved, spot  # torch takes a second

    faces = FacesConfig(detector=str(saved(FragileDetector(), tmp_path / "faces.ts")))
    whole = np.asarray(photograph())
    for name, image in (("whole", whole), ("marked", spot(whole, 0, 0, 8))):
        (tmp_path / f"{name}.png").write_bytes(encode(Image.fromarray(image), "PNG"))
    stage = Prepare(config(DeidentifyConfig(faces=faces, plates=NOTHING.plates)), Storage(retry=FAST), POLICY, CATALOG)
    try:
        rows = stage(table(*({"uri": f"{tmp_path}/{name}.png"} for name in ("whole", "marked", "whole")))).to_pylist()
    finally:
        stage.close()
    assert [(row["stage"], row["reason"], row["fault"]) for row in rows] == [
        (None, None, None),
        ("deidentify", "detector_failed", None),
        (None, None, None),
    ]


CORE_LIMIT = """
import resource
from segmint.infra.storage.storage import Storage
from segmint.operators.prepare.prepare import Prepare
from tests.operators.prepare import test_prepare as given

_, most = resource.getrlimit(resource.RLIMIT_CORE)
resource.setrlimit(resource.RLIMIT_CORE, (most, most))
Prepare(given.config(), Storage(), given.POLICY, given.CATALOG).close()
print(most, resource.getrlimit(resource.RLIMIT_CORE)[0])
"""


def test_a_process_that_reads_originals_leaves_no_core_dump() -> None:
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", CORE_LIMIT],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    most, now = done.stdout.split()
    assert most != "0", "this machine allows no core dumps at all: this shows nothing"
    assert now == "0"


def test_a_catalog_of_devices_and_pipes_does_not_hang(prepare: Prepare, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    rows = prepare(
        table(*({"uri": uri} for uri in ("/dev/zero", "/dev/random", str(tmp_path / "pipe.jpg"))))
    ).to_pylist()
    assert [(row["stage"], row["reason"]) for row in rows] == [("read", "not_found")] * 3
