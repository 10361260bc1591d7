"""Proof that an image that was taken down is nowhere: each place where it may be left is found when it is there."""

import json
import os
import shutil
import tarfile
import zipfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from segmint.catalogs.dataset.digest import current_digest
from segmint.catalogs.dataset.manifest import AppliedSegmenter, ModelTerms, load_manifest
from segmint.catalogs.dataset.outputs import OUTPUTS, note_output
from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.catalogs.dataset.tombstones import RemovedImage, TakedownRequest, put_tombstone, read_tombstones
from segmint.catalogs.dataset.versions import put_version
from segmint.catalogs.layout import DamagedDatasetError
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.pipeline.commands.cli import app
from segmint.pipeline.corrections.correction import forget
from segmint.pipeline.corrections.proof import WantedImage, prove, prove_redaction
from segmint.pipeline.corrections.redact import redact
from segmint.pipeline.corrections.takedown import takedown
from segmint.pipeline.export.export import ExportOptions, export_dataset
from segmint.pipeline.export.formats import Format
from segmint.pipeline.quality.audit.audit import AuditOptions, audit_dataset
from tests.support.builds import digests
from tests.support.committed_shard import CommittedShard
from tests.support.everything import upload
from tests.support.killed_writes import KilledProcessError, dying_after
from tests.support.locations import location_of
from tests.support.s3_server import S3Server


@pytest.fixture
def taken(dataset: Path) -> Path:
    """The small real dataset without image 2."""
    takedown(location_of(dataset), TakedownRequest(ids=("image-1",)), "asked for")
    return dataset


def found(dataset: Path) -> list[str]:
    return list(prove(location_of(dataset), "image-1").found)


def test_nothing_is_found_and_nothing_is_changed(taken: Path) -> None:
    before = digests(taken)
    for name in ("image-1", '"image-1"', "2", "sa_2"):
        proof = prove(location_of(taken), name)
        assert (proof.found, proof.not_checked, proof.shards, proof.reasons) == ((), (), 3, ("asked for",))
        assert proof.lines()[-1] == "not found"
    assert digests(taken) == before
    assert not (taken / OUTPUTS).exists()
    for other in ("image-4", "5", "image-77", '"2"'):
        with pytest.raises(UsageError, match=r"no tombstone of .* lists"):
            prove(location_of(taken), other)


def test_the_tombstone_names_the_version_before(dataset: Path) -> None:
    before = current_digest(location_of(dataset))
    takedown(location_of(dataset), TakedownRequest(ids=("image-1",)), "asked for")
    (tombstone,) = read_tombstones(location_of(dataset))
    assert tombstone.version_before == before != current_digest(location_of(dataset))
    assert prove(location_of(dataset), "2").versions_before == (before,)


def test_its_row_and_its_bytes_are_found_in_committed_files(taken: Path, small_dataset: Path) -> None:
    shard = CommittedShard(taken, 1)
    shard.rows["images"][0]["source_sha256"] = next(
        sample.row["source_sha256"] for sample in open_dataset(str(small_dataset)) if sample.id == 2
    )
    shard.write()
    (line,) = found(taken)
    assert line.startswith("images/sa_000001-")
    assert line.endswith("ordinal 3")
    whole = CommittedShard(small_dataset, 0)
    shutil.rmtree(taken / "commits")
    for kind in ("shards", "images", "masks", "rejects", "commits"):
        shutil.copytree(small_dataset / kind, taken / kind, dirs_exist_ok=True)
    lines = found(taken)
    for kind in ("shards", "images", "masks"):
        assert any(line.startswith(whole.commit.file(kind).path) for line in lines), kind
    assert any(line.endswith(", sa_2.jpg") for line in lines)


def test_left_overs_reports_and_other_files_are_found(taken: Path, small_dataset: Path) -> None:
    leftover = next((small_dataset / "masks").glob("sa_000000-*"))
    shutil.copy(leftover, taken / "masks")
    part = next((small_dataset / "catalog").iterdir())
    shutil.copy(part, taken / "catalog")
    for path, text in (
        *(("report/index.html", "<p>sa_2.jpg</p>"), ("report/sa_2_1_face.jpg", ""), ("pages/a.html", "image-1")),
        *(("b.txt", "image-11"), ("regions.jsonl", '{"id": 2, "kind": "face"}'), ("shards/.tmp-1", "image-1")),
    ):
        (taken / path).parent.mkdir(exist_ok=True)
        (taken / path).write_text(text)
    assert [line.partition(":")[0] for line in found(taken)] == [
        f"masks/{leftover.name}",
        f"catalog/{part.name}",
        f"{taken}/report/index.html mentions it",
        f"{taken}/report/sa_2_1_face.jpg",
        "pages/a.html mentions it",
        "regions.jsonl mentions it",
        "shards/.tmp-1 mentions it",
    ]


def test_what_users_wrote_into_the_dataset_is_searched(taken: Path, tmp_path: Path) -> None:
    """A reason in a version, and the name of an output, which only the note in the dataset still has."""
    location = location_of(taken)
    note_output(location, "export", location_of(tmp_path / "image-1"), {})
    (note,) = (taken / OUTPUTS).iterdir()
    manifest = load_manifest(location)
    applied = AppliedSegmenter(name="lamps.Lamps", identity={"arguments": {"only": ["image-1"]}}, model=ModelTerms())
    (taken / "dataset.g3.json").write_bytes(
        manifest.model_copy(update={"applied": {applied.sha256: applied}}).to_json()
    )
    put_version(location, "redact", reason="as the owner of image-1 asked")
    assert found(taken) == [
        "dataset.g3.json mentions it",
        f"outputs/{note.name} mentions it",
        "versions/2.json mentions it",
    ]


def test_numbers_are_recognized_where_they_are_an_image_s_and_short_names_are_named(taken: Path) -> None:
    removed = RemovedImage(ordinal=3, id=4, image_id="7", uri="a/b.jpg", sha256=None)
    wanted = WantedImage((removed,))
    for text in (b"sa_4_1_face.jpg", b'"image_id": 4}', b'{"id":4,"kind":"face"}', b"figure-sa_4"):
        assert wanted.is_mentioned(text), text
    for text in (b"sa_40", b"mesa_4", b"sa_4-0123456789ab.tar", b'{"id":4,"image_id":9}', b'"image_id":4.5'):
        assert not wanted.is_mentioned(text), text
    assert [wanted.is_value(column, "7") for column in ("image_id", "area")] == [True, False]
    put_tombstone(location_of(taken), read_tombstones(location_of(taken))[0].model_copy(update={"images": (removed,)}))
    assert [line for line in prove(location_of(taken), "7").not_checked if "'7'" in line or "number 4" in line] == [
        "the number 4 stored as a text, because it may be the name of another image",
        "the name '7' outside of tables: too short, or only digits",
    ]


@pytest.mark.parametrize("value", [4, 4.0, Decimal("4.00"), "4", "4.0", b"4", " 4 "])
def test_a_number_is_found_however_other_programs_store_it(value: Any) -> None:
    named = WantedImage((RemovedImage(ordinal=3, id=4, image_id="cat", uri="a/b.jpg", sha256=None),))
    assert named.is_value("image_id", value)
    assert not named.is_value("area", value)
    assert not named.is_value("annotation_id", value)
    digits = WantedImage((RemovedImage(ordinal=3, id=4, image_id="7", uri="a/b.jpg", sha256=None),))
    assert digits.is_value("image_id", value) is not isinstance(value, str | bytes)  # another image may be called 4
    if not isinstance(value, bytes | Decimal):
        text = json.dumps({"image_id": value.strip() if isinstance(value, str) else value}).encode()
        assert named.is_mentioned(text)
        assert digits.is_mentioned(text) is not isinstance(value, str)


@pytest.mark.parametrize(
    "value", [4.5, 40, True, None, float("nan"), float("inf"), "4.5", "4a", "4-cat", "-4", "44", [4]]
)
def test_other_values_aren_t_the_number(value: Any) -> None:
    wanted = WantedImage((RemovedImage(ordinal=0, id=4, image_id="cat", uri="a/b.jpg", sha256=None),))
    assert not wanted.is_value("image_id", value)
    assert not wanted.is_mentioned(json.dumps({"image_id": value}).encode())


def test_numbers_that_became_doubles_are_found_in_a_parquet_file(taken: Path) -> None:
    table = pa.table({"image_id": pa.array([9.0, None, 2.0]), "annotation_id": pa.array([90_000.0, None, None])})
    pq.write_table(table, taken / "boxes.parquet")
    assert "boxes.parquet, 1 row from row 2 on (image_id)" in found(taken)


def test_a_name_that_no_uri_can_have_and_a_report_that_is_a_file_are_not_passed_over(taken: Path) -> None:
    (taken / "a\nb.txt").write_text("x")
    (taken / "report").write_text("image-1")
    proof = prove(location_of(taken), "2")
    assert proof.found in (("report mentions it",), (f"{taken}/report mentions it", "report mentions it"))
    assert len(proof.not_checked) == 1


@pytest.fixture
def exported(dataset: Path, tmp_path: Path) -> Path:
    """The dataset with an export of every format, one of them without pictures, in `tmp_path`."""
    location = location_of(dataset)
    for format in Format:
        export_dataset(location, ExportOptions(format), location_of(tmp_path / format))
    export_dataset(location, ExportOptions(Format.HF, with_images=False), location_of(tmp_path / "rows"))
    return dataset


def test_exports_from_before_are_found_until_they_are_deleted(exported: Path, tmp_path: Path) -> None:
    location = location_of(exported)
    done = takedown(location, TakedownRequest(ids=("image-1",)), "asked for")
    assert len(done.outputs) == len(Format) + 1
    assert any("created from this dataset" in line and f" {tmp_path}/yolo (" in line for line in done.lines())
    proof = prove(location, "2")
    lines = {line.removeprefix(f"{tmp_path}/") for line in proof.found}
    jpegs = {f"{format}/images/sa_2.jpg" for format in Format if format is not Format.HF}
    count = len(list((tmp_path / "fiftyone/fields/masks.detections/sa_2").iterdir()))
    masks = {f"png-masks/masks/sa_2/{20_000 + index}.png" for index in range(count)}
    masks |= {f"fiftyone/fields/masks.detections/sa_2/{20_000 + index}.png" for index in range(count)}
    rows = "1 row from row 1 on (id, image.bytes, image.path, image_id, objects.id)"
    assert lines == {
        *jpegs,
        *masks,
        "coco/instances.json mentions it",
        "cvat/annotations/instances_default.json mentions it",
        "fiftyone/samples.json mentions it",
        "geojson/index.json mentions it",
        "geojson/masks/sa_2.geojson",
        f"hf/data/train-00000.parquet, {rows}",
        "label-maps/index.json mentions it",
        "label-maps/masks/sa_2.json",
        "label-maps/masks/sa_2.png",
        "label-studio/tasks.json mentions it",
        "lvis/lvis.json mentions it",
        "png-masks/index.json mentions it",
        "png-masks/masks/sa_2.json",
        f"rows/data/train-00000.parquet, {rows.replace('image.bytes, image.path, ', '')}",
        "sa-1b/file_list.txt mentions it",
        "sa-1b/images/sa_2.json",
        "sa-1b/index.json mentions it",
        "yolo/attributions.csv mentions it",
        "yolo/labels/sa_2.txt",
    }
    assert not proof.not_checked
    elsewhere = prove(location, "2", [f"../coco={tmp_path}/typo", f"../coco={tmp_path}/a=b"])
    assert (elsewhere.found, len(elsewhere.not_checked)) == (proof.found, 2)
    for name in (*Format, "rows"):
        shutil.rmtree(tmp_path / name)
    proof = prove(location, "2")
    assert (proof.found, proof.not_checked) == ((), ())
    assert proof.lines()[-1] == "not found; what is gone may have been moved"
    gone = (
        f"gone: nothing is at {tmp_path}/yolo, where segmint export --format yolo wrote (deleted or moved; if moved, "
    )
    assert f"{gone}pass --at '../yolo=URI')" in proof.lines()
    assert "not searched: the source catalog, the original photographs, " in "\n".join(proof.lines())
    export_dataset(location, ExportOptions(Format.COCO), location_of(tmp_path / "coco"))
    proof = prove(location, "2")
    replaced = [line for line in proof.gone if line.startswith("an earlier export at ../coco, which was replaced")]
    assert (proof.found, len(replaced)) == ((), 1)


def test_a_picture_with_another_name_is_found_by_its_hash(exported: Path, tmp_path: Path) -> None:
    """As a file, in a tar, in a tar in a zip, and in rows without a name."""
    jpeg = (tmp_path / "coco/images/sa_2.jpg").read_bytes()
    takedown(location_of(exported), TakedownRequest(ids=("image-1",)), "asked for")
    assert prove(location_of(exported), "2").hashes == 2  # of its JPEG and its pixels
    for format in Format:
        shutil.rmtree(tmp_path / format)
    place = tmp_path / "rows"
    (place / "data/train-00000.parquet").unlink()
    (place / "other.jpg").write_bytes(jpeg)
    with tarfile.open(place / "a.tar", "w") as archive:
        archive.add(place / "other.jpg", "b/other.jpg")
    with zipfile.ZipFile(place / "c.zip", "w", zipfile.ZIP_DEFLATED) as outer:
        outer.write(place / "a.tar", "inner.tar")
    pq.write_table(pa.table({"x": [[{"y": b"-"}, {"y": jpeg}]]}), place / "d.parquet")
    (place / "e.tfrecord").write_bytes(bytes(12) + jpeg)  # not found, and said not to be
    proof = prove(location_of(exported), "2")
    assert [line.removeprefix(f"{place}/") for line in proof.found] == [
        "a.tar, b/other.jpg is its JPEG",
        "c.zip, inner.tar, b/other.jpg is its JPEG",
        "d.parquet, 1 row from row 0 on (x.y)",
        "other.jpg is its JPEG",
    ]
    assert f"gone: 1 file of {place}, such as data/train-00000.parquet" in proof.lines()
    assert "or inside files of other kinds, such as TFRecord or pickle, " in proof.lines()[1]


def test_what_cannot_be_looked_into_is_named(taken: Path, tmp_path: Path) -> None:
    place = tmp_path / "out"
    export_dataset(location_of(taken), ExportOptions(Format.HF), location_of(place))
    whole = place / "data/train-00000.parquet"
    whole.write_bytes(whole.read_bytes()[:-20])
    with zipfile.ZipFile(place / "locked.zip", "w") as archive:
        archive.writestr("a.txt", "nothing")
    locked = bytearray((place / "locked.zip").read_bytes())
    locked[6] |= 1
    locked[locked.index(b"PK\x01\x02") + 8] |= 1  # marked as encrypted in both of its headers
    (place / "locked.zip").write_bytes(locked)
    (place / "b.7z").write_bytes(b"7z\xbc\xaf\x27\x1c and more")
    (place / "c.parquet").write_bytes(b"PARE and more")
    (place / "d.tar").write_bytes(b"not a tar")
    (place / "e.bin").write_bytes(b"SQLite format 3\0")
    (place / "e.h5").write_bytes(b"not HDF5")
    (place / "link").symlink_to(tmp_path)
    os.mkfifo(place / "pipe")
    with zipfile.ZipFile(place / "deep.zip", "w") as outer:
        for _ in range(2):
            (place / "deeper.zip").write_bytes((place / "locked.zip").read_bytes())
            with zipfile.ZipFile(place / "level.zip", "w") as inner:
                inner.write(place / "deeper.zip", "deeper.zip")
        outer.write(place / "level.zip", "level.zip")
    for name in ("deeper.zip", "level.zip"):
        (place / name).unlink()
    proof = prove(location_of(taken), "2")
    assert not proof.found
    assert [line.removeprefix(f"{place}/").partition(":")[0] for line in proof.not_checked] == [
        "b.7z",
        "c.parquet",
        "d.tar",
        "data/train-00000.parquet",
        "deep.zip, level.zip, deeper.zip",
        "e.bin",
        "e.h5",
        "locked.zip, a.txt",
        "link",
        "pipe",
    ]
    assert proof.lines()[-1] == "not found, but not everything could be checked"


def test_a_place_that_moved_is_not_checked_until_it_is_named(exported: Path, tmp_path: Path) -> None:
    location = location_of(exported)
    takedown(location, TakedownRequest(ids=("image-1",)), "asked for")
    for name in (*Format, "rows"):
        if name != "yolo":
            shutil.rmtree(tmp_path / name)
    (tmp_path / "moved").mkdir()
    shutil.move(exported, tmp_path / "moved/deep/dataset")
    location = location_of(tmp_path / "moved/deep/dataset")
    proof = prove(location, "2")
    assert (proof.found, proof.gone, len(proof.not_checked)) == ((), (), 12)
    assert "nothing is at" in proof.not_checked[0]
    places = [f"../{name}={tmp_path / name}" for name in (*Format, "rows")]
    proof = prove(location, "2", places)
    assert (len(proof.found), len(proof.gone), proof.not_checked) == (3, 11, ())
    (tmp_path / "yolo/segmint-files.jsonl").unlink()
    assert "has no segmint-files.jsonl of a complete export" in prove(location, "2", places).not_checked[0]
    shown = prove(location, "2", [f"{tmp_path / 'moved/deep/yolo'}={tmp_path / 'yolo'}"])
    assert any(line.startswith(f"{tmp_path / 'yolo'}/labels/sa_2.txt") for line in shown.found)
    with pytest.raises(UsageError, match=r"--at: expected NAME=URI with the NAME of a recorded output: \.\./coco, "):
        prove(location, "2", ["elsewhere=x"])


def test_an_interrupted_export_is_searched_and_its_list_is_unknown(dataset: Path, tmp_path: Path) -> None:
    location = location_of(dataset)
    with dying_after(5), pytest.raises(KilledProcessError):
        export_dataset(location, ExportOptions(Format.YOLO), location_of(tmp_path / "out"))
    takedown(location, TakedownRequest(ids=("image-1",)), "asked for")
    proof = prove(location, "2")
    assert proof.found == (f"{tmp_path}/out/images/sa_2.jpg",)
    (tmp_path / "out/images/sa_2.jpg").unlink()
    (line,) = prove(location, "2").not_checked
    assert line.endswith("has no segmint-files.jsonl of a complete export of this dataset")
    shutil.rmtree(tmp_path / "out")
    assert prove(location, "2").not_checked == ()


def test_a_redaction_names_the_exports_and_finds_the_picture_from_before(exported: Path, tmp_path: Path) -> None:
    location, regions = location_of(exported), tmp_path / "regions.jsonl"
    with pytest.raises(UsageError, match="no redaction of sa_1 is recorded"):
        prove_redaction(location, "1")
    begun = {"id": 1, "kind": "face", "x": 0, "y": 10, "w": 60, "h": 80}
    former = (tmp_path / "coco/images/sa_1.jpg").read_bytes()
    regions.write_text(json.dumps(begun))
    with dying_after(2), pytest.raises(KilledProcessError):
        redact(location, location_of(regions))
    assert prove_redaction(location, "1").lines()[0] == "sa_1: a redaction was begun"
    for x in (0, 90):
        regions.write_text(json.dumps({"id": 1, "kind": "face", "x": x, "y": 10, "w": 60, "h": 80}))
        done = redact(location, location_of(regions))
    assert len(done.outputs) == len(Format) + 1
    assert any(
        line.startswith(f"created from this dataset, delete it or create it again: {tmp_path}/yolo (")
        for line in done.lines()
    )
    proof = prove_redaction(location, "image-0")
    assert (proof.hashes, proof.not_checked) == (2, ())
    pictures = {f"{format}/images/sa_1.jpg is its JPEG" for format in Format if format is not Format.HF}
    parquet = "hf/data/train-00000.parquet, 1 row from row 0 on (image.bytes)"
    assert {line.removeprefix(f"{tmp_path}/") for line in proof.found} == {*pictures, parquet}
    for format in Format:
        shutil.rmtree(tmp_path / format)
    export_dataset(location, ExportOptions(Format.HF), location_of(tmp_path / "hf"))
    proof = prove_redaction(location, "sa_1")
    assert (proof.found, proof.not_checked) == ((), ())
    assert proof.lines()[0] == "sa_1: redacted"

    def run(*more: str):
        return CliRunner().invoke(app, ["redact", str(exported), *more])

    assert run("--prove", "1").exit_code == 0
    shard = CommittedShard(exported, 1)  # another image with the same JPEG doesn't mean that the redaction was killed
    shard.members = [(name, former if name == "sa_5.jpg" else data) for name, data in shard.members]
    shard.write()
    lines = prove_redaction(location, "sa_1").lines()
    assert (lines[0], lines[-1]) == ("sa_1: redacted", "found in 1 place")
    assert [run(*more).exit_code for more in ((), ("--prove", "1", "--regions", "x"), ("--at", "a=b"))] == [2, 2, 2]


def test_of_a_single_file_nothing_beside_it_is_searched(dataset: Path, tmp_path: Path) -> None:
    location, file = location_of(dataset), tmp_path / "credits.csv"
    (tmp_path / "other.csv").write_text("image-1")
    audit_dataset(location, AuditOptions(sample=0, privacy_sample=0, attributions=location_of(file)))
    takedown(location, TakedownRequest(ids=("image-1",)), "asked for")
    assert found(dataset) == [f"{file} mentions it"]
    result = tmp_path / "audit.json"
    words = ["audit", str(dataset), "--integrity-only", "-o", str(result)]
    assert CliRunner().invoke(app, words).exit_code == 0
    result.write_text('{"image": 2}')
    assert {*found(dataset)} == {f"{file} mentions it", f"{result} mentions it"}
    result.unlink()
    file.unlink()
    proof = prove(location, "2")
    gone = f"nothing is at {file}, where segmint audit --attributions wrote"
    also = f"nothing is at {result}, where segmint audit -o wrote"
    assert (proof.found, proof.not_checked) == ((), ())
    assert {line.partition(" (deleted or moved; ")[0] for line in proof.gone} == {gone, also}


def test_a_takedown_without_fingerprints_says_so(dataset: Path) -> None:
    location = location_of(dataset)
    takedown(location, TakedownRequest(ids=("image-1",)), "asked for")
    (file,) = (dataset / "fingerprints").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b'"2"', b'"1"'))
    with pytest.raises(DamagedDatasetError, match="expected the bytes that its field digest covers"):
        prove(location, "2")
    file.unlink()
    no_hashes = ("copies of sa_2 with another name: its fingerprints aren't stored",)
    assert prove(location, "2").not_checked == no_hashes
    file.write_bytes(whole)
    forget(location, "image-1")
    assert prove(location, "2").not_checked == no_hashes


def test_the_command_ends_with_1_if_it_is_found(taken: Path) -> None:
    def run(*more: str):
        return CliRunner().invoke(app, ["takedown", str(taken), "--prove", "image-1", *more])

    assert run().exit_code == 0
    assert json.loads(run("--json").stdout)["found"] == []
    (taken / "notes.txt").write_text("image-1")
    done = run()
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (1, "found in 1 place")
    (taken / "notes.txt").write_bytes(b"Rar!")
    done = run()
    assert (done.exit_code, "not checked: notes.txt: rar files aren't opened" in done.stdout.splitlines()) == (3, True)
    assert [run("--at", text).exit_code for text in ("x", "../nowhere=x")] == [2, 2]
    for option in ("--ids", "--license", "--provider"):
        done = run(option, "x")
        assert (done.exit_code, "--prove doesn't take down any images" in done.stderr) == (2, True)
    assert CliRunner().invoke(app, ["takedown", str(taken), "--at", "a=b", "--reason", "x"]).exit_code == 2


@pytest.mark.s3
def test_an_older_version_in_a_bucket_is_found(
    dataset: Path, s3_server: S3Server, s3_bucket: str, s3_options: dict[str, dict[str, str]]
) -> None:
    s3_server.client().put_bucket_versioning(Bucket=s3_bucket, VersioningConfiguration={"Status": "Enabled"})
    location = Location(Storage(s3_options), f"s3://{s3_bucket}/some/dataset")
    upload(dataset, location)
    export = Location(location.storage, f"s3://{s3_bucket}/exports/hf")
    export_dataset(location, ExportOptions(Format.HF), export)
    takedown(location, TakedownRequest(ids=("image-1",)), "asked for")
    (line,) = prove(location, "2").found
    assert line.startswith(f"{export}/data/train-00000.parquet, 1 row from row 1 on (id, image.bytes, ")
    (export / "data/train-00000.parquet").put(b"another export")
    older = f"{export}/data/train-00000.parquet: a link, a special file, or an older version"
    assert older in prove(location, "2").not_checked
    files = [export / entry.name for entry in export.walk()]
    for file in files:
        file.delete()
    assert sorted(prove(location, "2").not_checked)[0] == f"{files[0]}: a link, a special file, or an older version"
    for file in files:
        file.purge()
    proof = prove(location, "2")
    assert (proof.found, proof.not_checked) == ((), ())
    (gone,) = proof.gone
    assert gone.startswith(f"nothing is at {export}, where segmint export --format hf wrote (deleted or moved; ")
    old = next((dataset / "shards").glob("sa_000000-*"))
    (location / "shards" / old.name).put(old.read_bytes())
    (location / "shards" / old.name).delete()
    (line,) = prove(location, "2").found
    assert line.startswith(f"shards/{old.name}")
