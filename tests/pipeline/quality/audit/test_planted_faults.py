"""A real dataset damaged in every way that the audit knows: each fault found and named once, and nothing beside it.

Faults in what a shard holds are planted twice: on disk alone, where size or hash betrays the file, and committed with
right hashes and counts, where only the content does.
"""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.dataset.ratings import Rating, put_rating
from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.catalogs.dataset.submissions import put_submission
from segmint.catalogs.dataset.tombstones import RemovedImage, TakedownRequest, Tombstone, put_tombstone
from segmint.catalogs.dataset.versions import put_version
from segmint.catalogs.findings import INTEGRITY, Code
from segmint.catalogs.layout import DATA_KINDS, data_path, json_sha256
from segmint.catalogs.parquet import NORMALIZED, table_bytes
from segmint.operators.prepare.release import ReleaseConfig, release
from segmint.pipeline.corrections.merge import merge_submissions
from segmint.pipeline.corrections.takedown import takedown
from segmint.pipeline.quality.audit.audit import AuditOptions, audit_dataset
from segmint.pipeline.quality.audit.integrity import audit_integrity
from segmint.pipeline.quality.audit.result import AuditReport, result_lines
from tests.support.bombs import hostile_tar
from tests.support.builds import photograph
from tests.support.committed_shard import CommittedShard, change_manifest, write_commit
from tests.support.locations import location_of
from tests.support.named_image import image_of
from tests.support.planting import (
    LATER,
    ShardEdit,
    change_commit,
    commit_path,
    edit_catalog,
    edit_row,
    first_part,
    flip,
    rewrite_catalog,
)
from tests.support.rated import counts_by_mask, rating_of
from tests.support.submissions import answer_to

Damage = Callable[[Path], None]
DAMAGES: list[Any] = []


def audit(dataset: Path, privacy_sample: int | None = 0) -> AuditReport:
    return audit_dataset(location_of(dataset), AuditOptions(privacy_sample=privacy_sample, now=LATER))


def damage(code: Code, file: str, *told: str) -> Callable[[Damage], Damage]:
    """Registers a damage with the code and the beginning of the file that must be named, and words of the line."""

    def register(function: Damage) -> Damage:
        registered(function.__name__, function, code, file, *told)
        return function

    return register


def registered(name: str, function: Damage, code: Code, file: str, *told: str) -> None:
    """The same, for a function without a name."""
    DAMAGES.append(pytest.param(function, code, file, told, id=f"{code}-{name}"))


# --- what the dataset says of itself ---


@damage(Code.BAD_MANIFEST, "dataset.json", "config_sha256")
def other_config_hash(dataset: Path) -> None:
    change_manifest(dataset, config_sha256="0" * 64)


@damage(Code.MISSING_CATALOG, "catalog/part-0-", "8 rows", "no such file")
def no_catalog(dataset: Path) -> None:
    (dataset / first_part(dataset).path).unlink()


@damage(Code.CATALOG_DIGEST, "catalog/part-0-", "SHA-256")
def other_catalog(dataset: Path) -> None:
    flip(dataset / first_part(dataset).path)


@damage(Code.CATALOG_ROWS, "catalog/part-0-", "ordinals 0 to 7", "found 1 to 7")
def catalog_without_its_first_row(dataset: Path) -> None:
    rewrite_catalog(dataset, lambda rows: rows[1:])


@damage(Code.BAD_COMMIT, "commits/000001.g1.json", "shard 1", "files: Field required")
def empty_commit(dataset: Path) -> None:
    commit_path(dataset, 1).write_text("{}")


@damage(Code.BAD_COMMIT, "commits/000001.g1.json", "a commit's JSON")
def torn_commit(dataset: Path) -> None:
    path = commit_path(dataset, 1)
    path.write_bytes(path.read_bytes()[:100])


@damage(Code.BAD_COMMIT, "commits/000001.g1.json", "expected exactly the fields", "canonical")
def commit_with_a_host(dataset: Path) -> None:
    path = commit_path(dataset, 1)
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "host": "a"}))


@damage(Code.BAD_COMMIT, "commits/000001.g1.json", "shard 1", "found shard 0")
def commit_of_another_shard(dataset: Path) -> None:
    shutil.copy(commit_path(dataset, 0), commit_path(dataset, 1))


@damage(Code.BAD_COMMIT, "commits/000001.g1.json", "found files in images, masks, rejects")
def commit_without_a_tar(dataset: Path) -> None:
    files = CommittedShard(dataset, 1).commit.files
    change_commit(dataset, 1, files=tuple(entry for entry in files if not entry.path.startswith("shards/")))


@damage(Code.BAD_COMMIT, "commits/000001.g1.json", "the path images/sa_000001-", "found images/sa_000009-")
def commit_that_names_a_foreign_file(dataset: Path) -> None:
    files = CommittedShard(dataset, 1).commit.files
    foreign = [replace(entry, path=entry.path.replace("images/sa_000001", "images/sa_000009")) for entry in files]
    change_commit(dataset, 1, files=tuple(foreign))


@damage(Code.UNKNOWN_SHARD, "commits/000007.g1.json", "shard 7", "one of 3 shards")
def commit_of_no_shard(dataset: Path) -> None:
    commit = CommittedShard(dataset, 1).commit
    moved = [replace(f, path=data_path(f.path.partition("/")[0], 7, f.sha256)) for f in commit.files]
    write_commit(dataset, replace(commit, shard=7, files=tuple(moved)))


@damage(Code.WRONG_ORDINALS, "commits/000001.g1.json", "[3, 6]", "found [3, 7]")
def commit_of_other_rows(dataset: Path) -> None:
    change_commit(dataset, 1, ordinals=(3, 7))


@damage(Code.REPLACED_GENERATION, "commits/000001.g1.json", "only generation 2", "with 0 files")
def two_generations_of_the_same_files(dataset: Path) -> None:
    commit = CommittedShard(dataset, 1).commit
    write_commit(dataset, replace(commit, generation=2))


@damage(Code.REPLACED_GENERATION, "commits/000001.g1.json", "with 1 files", "rejects/sa_000001-000000000000.parquet")
def a_file_of_a_replaced_generation(dataset: Path) -> None:
    commit = CommittedShard(dataset, 1).commit
    write_commit(dataset, replace(commit, generation=2))
    old = replace(commit.file("rejects"), path=data_path("rejects", 1, "0" * 64), sha256="0" * 64)
    others = [entry for entry in commit.files if not entry.path.startswith("rejects/")]
    write_commit(dataset, replace(commit, files=(*others, old)))
    (dataset / old.path).write_bytes(b"x")


@damage(Code.OTHER_NUMERICS, "commits/000001.g1.json", "found 0123456789ab")
def computed_elsewhere(dataset: Path) -> None:
    change_commit(dataset, 1, numerics="0123456789ab")


@damage(Code.OTHER_BUILD, "commits/000001.g1.json", "found ababab")
def built_with_other_settings(dataset: Path) -> None:
    change_commit(dataset, 1, build_sha256="ab" * 32)


@damage(Code.BAD_COUNTS, "commits/000001.g1.json", "3 rows = images + rejected", "4 images")
def counts_that_do_not_add_up(dataset: Path) -> None:
    change_commit(dataset, 1, counts={**CommittedShard(dataset, 1).commit.counts, "images": 4})


@damage(Code.BAD_COUNTS, "commits/000000.g1.json", "1 rejected rows, summed over all reasons")
def reasons_that_do_not_add_up(dataset: Path) -> None:
    change_commit(dataset, 0, counts={**CommittedShard(dataset, 0).commit.counts, "rejected:timed_out": 1})


# --- files ---


def file_damages() -> None:
    """Every file of a commit: gone, longer, with one bit turned."""
    for kind in DATA_KINDS:

        def path_of(dataset: Path, kind: str = kind) -> Path:
            return dataset / CommittedShard(dataset, 1).commit.file(kind).path

        def gone(dataset: Path, path_of: Callable[[Path], Path] = path_of) -> None:
            path_of(dataset).unlink()

        def longer(dataset: Path, path_of: Callable[[Path], Path] = path_of) -> None:
            path = path_of(dataset)
            path.write_bytes(path.read_bytes() + b"x")

        def turned(dataset: Path, path_of: Callable[[Path], Path] = path_of) -> None:
            flip(path_of(dataset))

        for code, function in ((Code.MISSING_FILE, gone), (Code.FILE_SIZE, longer), (Code.FILE_DIGEST, turned)):
            registered(kind, function, code, f"{kind}/sa_000001-", "shard 1", "expected")


file_damages()


@damage(Code.LEFTOVER_FILE, "masks/sa_000001-000000000000.parquet", "shard 1", "9 bytes")
def of_a_killed_writer(dataset: Path) -> None:
    (dataset / data_path("masks", 1, "0" * 64)).write_bytes(b"left over")


@damage(Code.LEFTOVER_FILE, f"shards/.tmp-sa_000000-{0:012}.tar-{0:032}", "9 bytes")
def temporary(dataset: Path) -> None:
    (dataset / f"shards/.tmp-sa_000000-{0:012}.tar-{0:032}").write_bytes(b"left over")


@damage(Code.STRAY_FILE, "images/sa_000003-000000000000.parquet", "9 bytes")
def of_no_shard(dataset: Path) -> None:
    (dataset / data_path("images", 3, "0" * 64)).write_bytes(b"left over")


@damage(Code.STRAY_FILE, "shards/notes.txt")
def notes(dataset: Path) -> None:
    (dataset / "shards/notes.txt").write_text("mine")


@damage(Code.STRAY_FILE, "catalog/deep/part-0.parquet")
def in_a_folder_of_its_own(dataset: Path) -> None:
    (dataset / "catalog/deep").mkdir()
    (dataset / "catalog/deep/part-0.parquet").write_text("mine")


# --- tables ---


def no_parquet(taken: CommittedShard) -> None:
    taken.raw["masks"] = b"PAR1 and no more"


def without_a_column(taken: CommittedShard) -> None:
    sink = io.BytesIO()
    pq.write_table(pq.read_table(taken.dataset / taken.commit.file("images").path).drop_columns(["license"]), sink)
    taken.raw["images"] = sink.getvalue()


registered("no_parquet", ShardEdit(1, no_parquet), Code.BAD_TABLE, "masks/sa_000001-", "not readable as Parquet")


registered("no_column", ShardEdit(1, without_a_column), Code.BAD_TABLE, "images/sa_000001-", "other columns: license")
for each in ("width", "height"):
    registered(f"no_{each}", edit_row("images", 1, 0, **{each: None}), Code.BAD_TABLE, "images/", f"without {each}")


@damage(Code.TABLE_COUNTS, "masks/sa_000001-", "as in the commit")
def fewer_masks_than_counted(dataset: Path) -> None:
    counts = CommittedShard(dataset, 1).commit.counts
    change_commit(dataset, 1, counts={**counts, "masks": counts["masks"] + 1})


@damage(Code.TABLE_COUNTS, "rejects/sa_000000-", "timed_out", "found {'rejected:license_not_allowed': 1}")
def another_reason_counted(dataset: Path) -> None:
    counts = {k: v for k, v in CommittedShard(dataset, 0).commit.counts.items() if not k.startswith("rejected:")}
    change_commit(dataset, 0, counts={**counts, "rejected:timed_out": 1})


IDENTITY = Code.ROW_IDENTITY
registered("mask_id", edit_row("masks", 1, 0, annotation_id=7), IDENTITY, "masks/", "annotation_id 40000", "found 7")
registered("mask_owner", edit_row("masks", 1, 0, image_id="other"), IDENTITY, "masks/", "image_id 'image-3'")
registered("mask_image", edit_row("masks", 1, 0, id=9), IDENTITY, "masks/", "id 4", "found 9")
registered("image_number", edit_row("images", 1, 1, id=9), IDENTITY, "images/", "ordinal 4", "id 5", "found 9")
registered("duplicate", edit_row("images", 1, 1, id=4), IDENTITY, "images/", "ordinal 4", "id 5", "found 4")
registered("twice", edit_row("rejects", 0, 0, ordinal=1, id=2), IDENTITY, "images/", "ordinal 1", "one in each")
registered("gap", edit_row("rejects", 2, 0, ordinal=8, id=9), IDENTITY, "images/", "ordinal 7")


def swapped_images(taken: CommittedShard) -> None:
    taken.rows["images"][:2] = taken.rows["images"][1::-1]


registered("order", ShardEdit(1, swapped_images), IDENTITY, "images/", "row 1", "an ordinal over 4", "found 3")

registered(
    "license", edit_row("images", 1, 0, license="MIT"), Code.OTHER_CATALOG_ROW, "images/sa_000001-", "id 4", "CC0-1.0"
)
registered("uri", edit_row("rejects", 0, 0, uri="x"), Code.OTHER_CATALOG_ROW, "rejects/sa_000000-", "id 3", "photo_002")


@damage(Code.DUPLICATE_IMAGE, "images/sa_000000-", "id 2", "duplicate of ordinal 0", "found accepted")
def accepted_twice(dataset: Path) -> None:
    rewrite_catalog(dataset, lambda rows: [{**r, "duplicate_of": 0 if r["ordinal"] == 1 else None} for r in rows])


registered("mask_count", edit_row("images", 1, 0, masks=99), Code.MASK_COUNT, "images/sa_000001-", "id 4", "masks 99")
registered("next", edit_row("images", 1, 0, next_mask=99), Code.MASK_COUNT, "images/sa_000001-", "id 4", "next_mask 99")
registered("bored", edit_row("rejects", 0, 0, reason="bored"), Code.UNKNOWN_REASON, "rejects/sa_000000-", "'bored'")
registered(
    "unexplained",
    edit_row("rejects", 0, 0, detail=None),
    Code.INCOMPLETE_REJECT,
    "rejects/sa_000000-",
    "id 3",
    "detail",
)


def tombstone(ordinal: int, source_of: int | None = None) -> Damage:
    """A takedown that was asked for and never done; `source_of` is the id of an image with the same bytes."""

    def damage(dataset: Path) -> None:
        digests = {sample.id: sample.row["source_sha256"] for sample in open_dataset(str(dataset))}
        sha256 = None if source_of is None else digests[source_of]
        image = RemovedImage(ordinal=ordinal, id=ordinal + 1, image_id="x", uri="x.jpg", sha256=sha256)
        asked = Tombstone(
            request=TakedownRequest(ids=("x",)), reason="test", when="2026-01-01T00:00:00Z", images=(image,)
        )
        put_tombstone(location_of(dataset), asked)

    return damage


registered("accepted", tombstone(0), Code.STILL_THERE, "images/sa_000000-", "id 1", "an image")
registered("bytes", tombstone(99, source_of=5), Code.STILL_THERE, "images/sa_000001-", "id 5", "of the same bytes")
registered("refused", tombstone(2), Code.STILL_THERE, "rejects/sa_000000-", "id 3", "license_not_allowed")


@damage(Code.BAD_TOMBSTONE, "tombstones", "is not a tombstone")
def no_tombstone(dataset: Path) -> None:
    (dataset / "tombstones").mkdir()
    (dataset / "tombstones" / "0123456789ab.json").write_text("{}")


@damage(Code.STRAY_FILE, "outputs/0123456789ab.json", "is not the note of an output")
def no_note(dataset: Path) -> None:
    (dataset / "outputs").mkdir(exist_ok=True)
    (dataset / "outputs" / "0123456789ab.json").write_text("{}")


# --- what people said ---


@damage(Code.STILL_THERE, "annotations/4/0.1.json", "an image that was taken down")
def answer_that_outlived_its_image(dataset: Path) -> None:
    assert put_submission(location_of(dataset), answer_to(location_of(dataset), 5))
    takedown(location_of(dataset), TakedownRequest(ids=("sa_5",)), "asked")
    (dataset / "annotations/4").mkdir(exist_ok=True)
    (dataset / "annotations/4/0.1.json").write_text("{}")


@damage(Code.BAD_SUBMISSION, "annotations/0/0.1.json", "a submission", "format")
def no_answer(dataset: Path) -> None:
    (dataset / "annotations/0").mkdir(parents=True)
    (dataset / "annotations/0/0.1.json").write_text('{"format": "other"}')


@damage(Code.BAD_SUBMISSION, "annotations/99/1.1.json", "an image of the dataset", "found sa_100")
def answer_for_no_image(dataset: Path) -> None:
    given = answer_to(location_of(dataset), 1).model_copy(update={"image": 100, "assignment": 1})
    assert put_submission(location_of(dataset), given)


@damage(Code.BAD_SUBMISSION, "annotations/0/0.1.json", "submissions 1 to 2 of assignment 0", "1 missing")
def answer_without_the_one_before(dataset: Path) -> None:
    assert put_submission(location_of(dataset), answer_to(location_of(dataset), 1, n=2))


def merged(damage: Damage) -> Damage:
    """The damage of a dataset into which an answer for image 1 was merged."""

    def after(dataset: Path) -> None:
        assert put_submission(location_of(dataset), answer_to(location_of(dataset), 1))
        merge_submissions(location_of(dataset))
        damage(dataset)

    return after


def another_submission(dataset: Path) -> None:
    (dataset / "annotations/0/0.1.json").unlink()
    assert put_submission(location_of(dataset), answer_to(location_of(dataset), 1, seconds=5.0))


ANSWER = Code.OTHER_SUBMISSION
registered(
    "gone", merged(lambda dataset: shutil.rmtree(dataset / "annotations")), ANSWER, "images/sa_000000-", "is gone"
)
registered("other", merged(another_submission), ANSWER, "images/sa_000000-", "what annotations/0/0.1.json says", "id 1")


# --- ratings ---


def rated(dataset: Path, mask: int, counts: str | None = None) -> Rating:
    location = location_of(dataset)
    rating = rating_of(mask, counts or counts_by_mask(location).get(mask, ""), "Ada", 7)
    assert put_rating(location, rating)
    return rating


@damage(Code.BAD_RATING, "annotations/ratings/0/10000.", "a rating", "score: Input should be less than or equal to 10")
def rating_over_the_scale(dataset: Path) -> None:
    path = dataset / rated(dataset, 10_000).name.path
    path.write_bytes(path.read_bytes().replace(b'"score":7', b'"score":11'))


@damage(Code.BAD_RATING, "annotations/ratings/0/10000.", "a rating of mask 10000 as it is", "other run lengths")
def rating_of_another_dataset(dataset: Path) -> None:
    rated(dataset, 10_000, "other")


@damage(Code.BAD_RATING, "annotations/ratings/0/10999.", "a mask of the dataset", "mask 10999")
def rating_of_no_mask(dataset: Path) -> None:
    rated(dataset, 10_999)


@damage(Code.BAD_RATING, "annotations/ratings/98/990000.", "an image of the dataset", "id 99")
def rating_of_no_image(dataset: Path) -> None:
    rated(dataset, 990_000)


@damage(Code.STILL_THERE, "annotations/ratings/4/50000.", "an image that was taken down")
def rating_that_outlived_its_image(dataset: Path) -> None:
    rating = rated(dataset, 50_000)
    takedown(location_of(dataset), TakedownRequest(ids=("sa_5",)), "asked")
    path = dataset / rating.name.path
    assert not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(rating.to_json())


# --- recorded versions and the index ---


@damage(Code.BAD_VERSION, "versions/1.json", "is not a version of a dataset")
def no_version(dataset: Path) -> None:
    (dataset / "versions").mkdir()
    (dataset / "versions" / "1.json").write_text("{}")


@damage(Code.UNLIKE_VERSION, "dataset.g2.json", "no such file")
def a_manifest_that_is_gone(dataset: Path) -> None:
    (dataset / "dataset.g2.json").write_bytes((dataset / "dataset.json").read_bytes())
    put_version(location_of(dataset), "build")
    (dataset / "dataset.g2.json").unlink()


@damage(Code.BAD_INDEX, "shards.json", "not an index of tars")
def no_index(dataset: Path) -> None:
    (dataset / "shards.json").write_text("{}")


# --- tars ---


def no_tar(taken: CommittedShard) -> None:
    taken.raw["shards"] = b"no tar at all" * 100


def torn_tar(taken: CommittedShard) -> None:
    taken.raw["shards"] = taken.tar()[:700]


def swapped_members(taken: CommittedShard) -> None:
    taken.members[:2] = taken.members[1::-1]


def fewer_members(taken: CommittedShard) -> None:
    taken.members.pop()


def more_members(taken: CommittedShard) -> None:
    taken.members.append(("sa_99.jpg", b"x"))


def a_link(taken: CommittedShard) -> None:
    taken.raw["shards"] = hostile_tar("sa_4.jpg", b"2")


def a_hole_of_gigabytes(taken: CommittedShard) -> None:
    taken.raw["shards"] = hostile_tar("sa_4.jpg", b"S")


def a_gigabyte(taken: CommittedShard) -> None:
    taken.raw["shards"] = hostile_tar("sa_4.jpg", b"0")


for each in (no_tar, torn_tar):
    registered(each.__name__, ShardEdit(1, each), Code.BAD_TAR, "shards/sa_000001-", "a tar of plain files")
for each, words in (
    (swapped_members, ("id 4", "expected sa_4.jpg", "found sa_4.json")),
    (fewer_members, ("expected sa_6.json", "found the end")),
    (more_members, ("expected the end", "found sa_99.jpg")),
    (a_link, ("expected sa_4.jpg", "found sa_4.jpg, no plain file")),
    (a_gigabyte, ("expected sa_4.jpg", "of 1,073,741,824 bytes; at most 268,435,456 are read")),
    (a_hole_of_gigabytes, ("expected sa_4.jpg", "found sa_4.jpg, no plain file")),
):
    registered(each.__name__, ShardEdit(1, each), Code.TAR_MEMBERS, "shards/sa_000001-", *words)


def member(index: int, edit: Callable[[bytes], bytes]) -> Damage:
    return ShardEdit(1, lambda taken: taken.edit_member(index, edit))


def edit_json(**values: Any) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        document = json.loads(data)
        document["annotations"][0].update(values)
        return json.dumps(document, separators=(",", ":")).encode()

    return edit


TAR = "shards/sa_000001-"
registered("value", member(1, edit_json(area=3)), Code.OTHER_JSON, TAR, "sa_4.json: annotations[0].area", "found 3")
registered("key", member(1, edit_json(more=3)), Code.OTHER_JSON, TAR, "sa_4.json: annotations[0]", "more")
registered("spaces", member(1, lambda data: data + b" "), Code.OTHER_JSON, TAR, "sa_4.json", "canonical")
registered("no_json", member(1, lambda data: data[:-1]), Code.OTHER_JSON, TAR, "sa_4.json", "expected JSON")


def reencoded(size: tuple[int, int] | None = None, **options: Any) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        with Image.open(io.BytesIO(data)) as image:
            sink = io.BytesIO()
            (image if size is None else image.resize(size)).save(sink, "JPEG", **options)
        return sink.getvalue()

    return edit


def exif() -> bytes:
    tags = Image.Exif()
    tags[271] = "maker"
    return tags.tobytes()


registered("torn", member(0, lambda data: data[:-50]), Code.BAD_JPEG, TAR, "sa_4.jpg", "ends before the picture does")
registered("half", member(0, lambda d: d[: len(d) // 2] + d[-2:]), Code.BAD_JPEG, TAR, "sa_4.jpg", "decodes to its end")
registered("text", member(0, lambda _: b"a text"), Code.BAD_JPEG, TAR, "sa_4.jpg", "begin")
registered("smaller", member(0, reencoded((120, 90))), Code.JPEG_SIZE, TAR, "240 x 180", "found 120 x 90")
METADATA = Code.JPEG_METADATA
registered("exif", member(0, reencoded(exif=exif())), METADATA, TAR, "sa_4.jpg", "EXIF")
registered("xmp", member(0, reencoded(xmp=b"<x/>")), METADATA, TAR, "sa_4.jpg", "XMP")
registered("icc", member(0, reencoded(icc_profile=b"profile")), METADATA, TAR, "sa_4.jpg", "an ICC profile")
registered("comment", member(0, reencoded(comment=b"me")), METADATA, TAR, "sa_4.jpg", "a comment")
registered("fill", member(0, lambda d: d[:2] + b"\xff" * 9 + d[2:]), METADATA, TAR, "sa_4.jpg", "bytes before byte")
registered("tail", member(0, lambda d: d + b"hidden"), METADATA, TAR, "sa_4.jpg", "6 bytes after")
registered("no_release", edit_row("images", 1, 0, release_sha256=None), Code.OTHER_RELEASE, TAR, "sa_4.jpg", "None")
registered("release", edit_row("images", 1, 1, release_sha256="0" * 64), Code.OTHER_RELEASE, TAR, "sa_5.jpg", "000000")


# --- masks ---


def mask(**values: Any) -> Damage:
    """A writer's fault in the first mask of shard 1, in the table and in the JSON alike."""

    def edit(taken: CommittedShard) -> None:
        row = taken.rows["masks"][0]
        row.update({key: value(row[key]) if callable(value) else value for key, value in values.items()})
        taken.write_json()

    return ShardEdit(1, edit)


MASKS, MASK = "masks/sa_000001-", "mask 40000"
registered("cut", mask(segmentation=lambda s: {**s, "counts": s["counts"][:-1]}), Code.BAD_RLE, MASKS, MASK, "pixels")
registered("no_counts", mask(segmentation=lambda s: {**s, "counts": None}), Code.BAD_RLE, MASKS, MASK, "pixels")
registered("odd", mask(segmentation=lambda s: {**s, "counts": "é"}), Code.BAD_RLE, MASKS, MASK, "pixels")
registered(
    "turned", mask(segmentation=lambda s: {**s, "size": s["size"][::-1]}), Code.RLE_SIZE, MASKS, MASK, "[240, 180]"
)
registered("one_more", mask(area=lambda a: a + 1), Code.MASK_AREA, MASKS, MASK)
registered("narrower", mask(bbox=lambda b: [b[0], b[1], b[2] - 1, b[3]]), Code.MASK_BOX, MASKS, MASK)
registered("no_box", mask(bbox=None), Code.MASK_BOX, MASKS, MASK, "found None")
registered("left_of_it", mask(bbox=lambda b: [-1.0, *b[1:]]), Code.BOX_OUTSIDE, MASKS, MASK, "240 x 180 pixels")
registered("below_it", mask(bbox=lambda b: [*b[:3], 180.0 - b[1]]), Code.BOX_OUTSIDE, MASKS, MASK)
registered("wide_crop", mask(crop_box=[0.0, 0.0, 241.0, 180.0]), Code.CROP_OUTSIDE, MASKS, MASK, "241.0")
registered("no_crop", mask(crop_box=[0.0, 0.0, 0.0, 180.0]), Code.CROP_OUTSIDE, MASKS, MASK)
registered("point", mask(point_coords=[[240.5, 3.0]]), Code.POINT_OUTSIDE, MASKS, MASK, "240.5")
registered("no_point", mask(point_coords=[]), Code.POINT_OUTSIDE, MASKS, MASK)
registered("stability", mask(stability_score=1.5), Code.SCORE_RANGE, MASKS, MASK, "1.5")
registered("no_number", edit_row("masks", 1, 0, predicted_iou=float("inf")), Code.SCORE_RANGE, MASKS, MASK, "inf")
registered("low_iou", mask(predicted_iou=0.69), Code.UNDER_THRESHOLD, MASKS, MASK, "over 0.7")
registered("unstable", mask(stability_score=0.79), Code.UNDER_THRESHOLD, MASKS, MASK, "at least 0.8", "0.79")
registered("robot", mask(source="robot"), Code.UNKNOWN_SOURCE, MASKS, MASK, "manual", "found 'robot'")
registered("no_earlier", mask(parent=50_000), Code.UNKNOWN_PARENT, MASKS, MASK, "image's first mask", "found 50000")
for name, values in {
    "no_source": {"label": "dog"},
    "no_label": {"label_source": "import"},
    "stranger": {"label": "dog", "label_source": "somebody"},
    "short_hash": {"label": "dog", "label_source": "model:ab"},
    "scored": {"label": "dog", "label_source": "person", "label_score": 0.5},
    "no_score": {"label": "dog", "label_source": f"model:{'ab' * 32}", "label_score": float("nan")},
    "output": {"output": 3},
    "before_all": {"output": -1},
}.items():
    registered(name, mask(**values), Code.BAD_LABEL, MASKS, MASK)
for name, number in {"in_itself": 40_000, "in_another_image": 50_000, "in_none": 49_999}.items():
    registered(name, mask(container=number), Code.BAD_CONTAINER, MASKS, MASK, "larger mask of its image")
registered("not_a_number", edit_row("masks", 1, 0, seconds=float("nan")), Code.BAD_SECONDS, MASKS, MASK, "found nan")
registered("backwards", edit_row("images", 1, 0, seconds=-1.0), Code.BAD_SECONDS, "images/sa_000001-", "id 4", "-1.0")
registered("no_hash", mask(model="vit_b"), Code.BAD_HASH, MASKS, MASK, "model of 64", "found 'vit_b'")
registered("share", mask(redacted_share=0.5), Code.REDACTED_SHARE, MASKS, MASK, "redacted_share 0 ", "found 0.5 and 0")


# --- swapped and repeated ---


def other_json(taken: CommittedShard) -> None:
    taken.members[1] = taken.members[1][0], taken.members[3][1]


def tar_of_the_first_shard(taken: CommittedShard) -> None:
    taken.raw["shards"] = (taken.dataset / CommittedShard(taken.dataset, 0).commit.file("shards").path).read_bytes()


def repeated_image(taken: CommittedShard) -> None:
    taken.members[4] = taken.members[4][0], reencoded(quality=95)(taken.members[0][1])


registered("of_another_image", ShardEdit(1, other_json), Code.OTHER_JSON, TAR, "sa_4.json", "as in the tables")
registered(
    "of_another_shard", ShardEdit(1, tar_of_the_first_shard), Code.TAR_MEMBERS, TAR, "sa_4.jpg", "found sa_1.jpg"
)
registered("score", edit_row("masks", 1, 0, predicted_iou=0.99), Code.OTHER_JSON, TAR, "predicted_iou", "0.99")
registered("again", ShardEdit(1, repeated_image), Code.SIMILAR_IMAGE, TAR, "sa_6.jpg", "id 4")


@damage(Code.REPEATED_SOURCE, "images/sa_000002-", "shard 2", "id 7", "the bytes of id 1")
def same_bytes(dataset: Path) -> None:
    edit_row("images", 2, 0, source_sha256=CommittedShard(dataset, 0).rows["images"][0]["source_sha256"])(dataset)


# --- licenses ---


def licensed(**values: Any) -> Damage:
    """A build that was mistaken about a license: image 4 has this one in the catalog and in the dataset."""

    def damage(dataset: Path) -> None:
        edit_row("images", 1, 0, **values)(dataset)
        edit_catalog(dataset, 3, **values)

    return damage


def valid_until(day: date) -> Damage:
    return lambda dataset: edit_catalog(dataset, 3, valid_until=day)


YESTERDAY = (LATER - timedelta(days=1)).date()
ROW = ("images/sa_000001-", "id 4")
registered(
    "noncommercial", licensed(license="CC-BY-NC-4.0", attribution="Zoë"), Code.LICENSE_NOT_ALLOWED, *ROW, "CC-BY-NC-4.0"
)
registered("no_license", licensed(license=None), Code.LICENSE_NOT_ALLOWED, *ROW, "names no license")
registered("before", valid_until(date(2020, 1, 1)), Code.LICENSE_EXPIRED, *ROW, "2020-01-01", "before the build")
registered("since", valid_until(YESTERDAY), Code.LICENSE_EXPIRED, *ROW, f"{YESTERDAY}", "since the build")
registered("nobody", licensed(license="CC-BY-4.0"), Code.MISSING_ATTRIBUTION, *ROW, "CC-BY-4.0")
registered("blank", licensed(license="CC-BY-4.0", attribution=" "), Code.MISSING_ATTRIBUTION, *ROW)


@damage(Code.NOT_REDISTRIBUTABLE, "images/sa_000001-", "id 4", "denied")
def kept_for_itself(dataset: Path) -> None:
    config = load_manifest(location_of(dataset)).config
    config = {**config, "license": {**config["license"], "require_redistributable": True}}
    change_manifest(dataset, config=config, config_sha256=json_sha256(config))
    rewrite_catalog(dataset, lambda rows: [{**row, "redistributable": row["ordinal"] != 3} for row in rows])


@damage(Code.OPTED_OUT, "images/sa_000001-", "id 4", "opted this image out")
def opted_out(dataset: Path) -> None:
    config = load_manifest(location_of(dataset)).config
    config = {**config, "license": {**config["license"], "respect_opt_out": True}}
    change_manifest(dataset, config=config, config_sha256=json_sha256(config))
    edit_catalog(dataset, 3, opt_out=True)


# --- all of them ---


def or_long(parameters: list[Any], key: Callable[[Any], object] = lambda _: None) -> list[Any]:
    """The parameters, of which those after the first of a key are for `make test-long`."""
    seen: set[object] = set()
    marked = []
    for each in parameters:
        marks = [pytest.mark.long] if key(each) in seen else []
        marked.append(pytest.param(*each.values, id=each.id, marks=marks))
        seen.add(key(each))
    return marked


def is_of_integrity(parameter: Any) -> bool:
    """Whether the audit of integrity alone finds a fault."""
    _, code, file, _ = parameter.values
    return Code(code).area == INTEGRITY and not file.startswith("annotations/ratings")


def check_finding(report: AuditReport, code: Code, file: str, told: tuple[str, ...]) -> None:
    """Check that a report has one finding, which names this."""
    (finding,) = report.findings
    assert (finding.code, report.findings.total) == (code, 1)
    assert finding.file.startswith(file)
    line = finding.line()
    assert all(words in line for words in told), line
    assert finding.image == image_of(finding.where) or (image_of(finding.where) is None and "row" in finding.where)
    assert finding.mask == (int(finding.where.split()[1]) if finding.where.startswith("mask ") else None)
    assert f"  {line}" in result_lines(report)


@pytest.mark.parametrize(("function", "code", "file", "told"), filter(is_of_integrity, DAMAGES))
def test_a_fault_is_found_and_named_once_and_nothing_beside_it(
    dataset: Path, function: Damage, code: Code, file: str, told: tuple[str, ...]
) -> None:
    function(dataset)
    check_finding(audit_integrity(location_of(dataset), now=LATER), code, file, told)


@pytest.mark.parametrize(
    ("function", "code", "file", "told"),
    or_long(DAMAGES, lambda each: each.values[2].partition("/")[0] if is_of_integrity(each) else each.id),
)
def test_an_audit_of_all_finds_it_and_nothing_beside_it(
    dataset: Path, function: Damage, code: Code, file: str, told: tuple[str, ...]
) -> None:
    function(dataset)
    report = audit(dataset)
    check_finding(report, code, file, told)
    verdict = result_lines(report)[0]
    assert verdict.startswith("verdict: no image was searched for faces and plates (")
    assert verdict.endswith(f"; 1 finding (1 in {Code(code).area}) otherwise")


RAW = [
    pytest.param(edit, file.partition("/")[0], id=parameter.id)
    for parameter in DAMAGES
    for edit, _, file, _ in [parameter.values]
    if isinstance(edit, ShardEdit)
]


@pytest.mark.parametrize(("edit", "folder"), or_long(RAW, lambda each: each.values[1]))
def test_the_same_on_disk_alone_is_betrayed_by_size_or_hash(dataset: Path, edit: ShardEdit, folder: str) -> None:
    path = edit.raw(dataset, folder)
    (finding,) = audit_integrity(location_of(dataset), now=LATER).findings
    assert finding.code in (Code.FILE_SIZE, Code.FILE_DIGEST)
    assert (finding.file, finding.shard) == (path, edit.shard)


LICENSES = [
    pytest.param({"license": "CC-BY-NC-4.0", "attribution": "Zoë"}, id="noncommercial"),
    pytest.param({"license": None}, id="no_license"),
    pytest.param({"license": "CC-BY-4.0"}, id="nobody"),
    pytest.param({"license": "CC-BY-4.0", "attribution": " "}, id="blank"),
]
IN_THE_CATALOG = [
    *LICENSES,
    pytest.param({"valid_until": date(2020, 1, 1)}, id="before"),
    pytest.param({"valid_until": YESTERDAY}, id="since"),
    pytest.param({"redistributable": False}, id="kept_for_itself"),
    pytest.param({"duplicate_of": 0}, id="duplicate"),
]


@pytest.mark.parametrize("values", or_long(IN_THE_CATALOG))
def test_an_edited_catalog_on_disk_alone_is_betrayed_by_its_hash(dataset: Path, values: dict[str, Any]) -> None:
    path = first_part(dataset).path
    rows = pq.read_table(dataset / path).to_pylist()
    rows[3] |= values
    (dataset / path).write_bytes(table_bytes(pa.Table.from_pylist(rows, schema=NORMALIZED), NORMALIZED))
    report = audit(dataset)
    (finding,) = report.findings
    assert (finding.code, finding.file) == (Code.CATALOG_DIGEST, path)
    assert f"not checked: rows and license terms against {path}, which is missing or damaged" in result_lines(report)


@pytest.mark.parametrize("values", or_long(LICENSES))
def test_an_edited_license_on_disk_alone_is_betrayed_by_size_or_hash(dataset: Path, values: dict[str, Any]) -> None:
    path = edit_row("images", 1, 0, **values).raw(dataset, "images")
    (finding,) = audit(dataset).findings
    assert finding.code in (Code.FILE_SIZE, Code.FILE_DIGEST)
    assert (finding.file, finding.shard) == (path, 1)


# --- privacy ---


def with_a_face(taken: CommittedShard, pixels: np.ndarray) -> None:
    """The first image of a shard as a build without a detector would have released these pixels."""
    taken.members[0] = taken.members[0][0], release(pixels, ReleaseConfig()).jpeg


def a_face_without_a_region(taken: CommittedShard) -> None:
    with_a_face(taken, np.fliplr(photograph("astronaut", (240, 180))))


def a_face_whose_region_was_not_obliterated(taken: CommittedShard) -> None:
    assert taken.rows["images"][0]["faces"] == 1, "the build found it"
    with_a_face(taken, photograph("astronaut", (240, 180)))


FACES = [
    pytest.param(ShardEdit(1, a_face_without_a_region), "sa_4.jpg", id="without_a_region"),
    pytest.param(
        ShardEdit(0, a_face_whose_region_was_not_obliterated), "sa_1.jpg", id="its_region_was_not_obliterated"
    ),
]


@pytest.mark.parametrize(("edit", "name"), FACES)
def test_a_face_that_is_left_is_found_and_named_once(dataset: Path, edit: ShardEdit, name: str) -> None:
    edit(dataset)
    report = audit(dataset, privacy_sample=None)
    (finding,) = report.findings
    assert (finding.code, report.findings.total) == (Code.STILL_DETECTED, 1)
    assert (finding.file.partition("-")[0], finding.shard) == (f"shards/sa_00000{edit.shard}", edit.shard)
    assert name in finding.where
    assert "a face by mtcnn at score" in finding.found


@pytest.mark.parametrize(("edit", "name"), or_long(FACES))
def test_the_same_face_on_disk_alone_is_betrayed_by_size_or_hash(dataset: Path, edit: ShardEdit, name: str) -> None:
    path = edit.raw(dataset, "shards")
    (finding,) = audit(dataset, privacy_sample=None).findings
    assert finding.code in (Code.FILE_SIZE, Code.FILE_DIGEST)
    assert finding.file == path


FOREIGN = (  # of data that segmint did not write
    *(Code.MISSING_PAIR, Code.BAD_JSON, Code.GPS_POSITION, Code.OTHER_THUMBNAIL, Code.SPLIT_LEAK),
)


def test_every_code_has_a_fault() -> None:
    # Two decoders that disagree are no damage: see the test of `operators/audit/masks.py`. A mask that traces a region,
    # and agrees with its image's row in all else, is in that of `operators/audit/submissions.py`.
    planted = {parameter.values[1] for parameter in DAMAGES}
    asked_for = Code.NOT_COMMITTED  # by `--complete`: see the test of the command
    elsewhere = {Code.MASK_PIXELS, Code.REDACTION_ARTIFACT, Code.STILL_DETECTED, asked_for, *FOREIGN}
    missing = set(Code) - elsewhere - planted
    assert not missing, (
        f"no test plants {', '.join(sorted(missing))}: add a function with @damage(Code.…) above, in this file; for a "
        "fault of other layouts, add the code to FOREIGN and a test to test_foreign.py"
    )
    assert not planted & elsewhere
