"""A real dataset, whole and then damaged in every way that the audit knows: each found, named, and nothing beside."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from catalogs.commits import CommitLog
from catalogs.findings import Code, Finding
from catalogs.layout import DATA_KINDS, DatasetManifest, data_path, part_path
from catalogs.parquet import table_bytes
from catalogs.schema import NORMALIZED
from infra.errors import UsageError
from infra.storage import Storage
from operators.rows import Row
from pipeline.audit import audit_integrity, sampled
from pipeline.audit_report import AuditReport
from tests.support.builds import digests, small_catalog, write_config
from tests.support.committed_shard import CommittedShard, change_manifest, write_commit
from tests.support.minted import mint

LATER = datetime.now(UTC) + timedelta(days=2)
Damage = Callable[[Path], None]
DAMAGES: list[Any] = []


@pytest.fixture(scope="session")
def minted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight rows in shards of three: images 1, 2, 4 to 7; row 3 refused for its license, row 8 not found."""
    folder = tmp_path_factory.mktemp("minted")
    catalog = small_catalog(folder / "photos")
    masks = {"points_per_side": 2, "crop_n_layers": 0, "pred_iou_thresh": 0.7, "stability_score_thresh": 0.8}
    return Path(mint(write_config(folder / "build.yaml", catalog, folder / "dataset", masks=masks)))


@pytest.fixture
def dataset(minted: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(minted, tmp_path / "dataset")
    return tmp_path / "dataset"


def audit(dataset: Path, sample: int = 100) -> AuditReport:
    return audit_integrity(str(dataset), Storage(), sample, now=LATER)


def damage(code: Code, file: str, *told: str) -> Callable[[Damage], Damage]:
    """Registers a damage with the code and the beginning of the file that must be named, and words of the line."""

    def register(function: Damage) -> Damage:
        DAMAGES.append(pytest.param(function, code, file, told, id=f"{code}-{function.__name__}"))
        return function

    return register


def test_a_whole_dataset_has_no_finding_and_is_not_changed(minted: Path) -> None:
    before = digests(minted)
    report = audit(minted)
    assert list(report.findings) == []
    assert report.findings.total == 0
    checked = report.checked
    assert (checked.commits, checked.catalog_parts, checked.catalog_rows, checked.files) == (3, 1, 8, 12)
    assert (checked.images, checked.rejects, checked.jsons, checked.jpegs, checked.jpegs_decoded) == (6, 2, 6, 6, 6)
    named = [entry for commit in CommitLog(Storage(), str(minted)).read_all() for entry in commit.files]
    assert checked.bytes == sum(entry.size for entry in named)
    masks = sum(pq.read_metadata(path).num_rows for path in (minted / "masks").iterdir())
    assert checked.masks == checked.masks_decoded == masks > 6
    assert (report.not_built, report.young, report.not_compared) == ([], (), [])
    assert digests(minted) == before


# --- what the dataset says of itself ---


@damage(Code.BAD_MANIFEST, "dataset.json", "config_sha256")
def other_config_hash(dataset: Path) -> None:
    change_manifest(dataset, config_sha256="0" * 64)


def rewrite_catalog(dataset: Path, edit: Callable[[list[Row]], list[Row]]) -> None:
    """Another part of the catalog, pinned as if it had always been that."""
    path = dataset / part_path(0)
    rows = edit(pq.read_table(path).to_pylist())
    data = table_bytes(pa.Table.from_pylist(rows, schema=NORMALIZED), NORMALIZED)
    path.write_bytes(data)
    manifest = DatasetManifest.from_json((dataset / "dataset.json").read_bytes())
    part = manifest.catalog[0].model_copy(update={"sha256": hashlib.sha256(data).hexdigest()})
    change_manifest(dataset, catalog=(part,))


@damage(Code.MISSING_CATALOG, "catalog/part-0.parquet", "8 rows", "no such file")
def no_catalog(dataset: Path) -> None:
    (dataset / part_path(0)).unlink()


@damage(Code.CATALOG_DIGEST, "catalog/part-0.parquet", "SHA-256")
def other_catalog(dataset: Path) -> None:
    flip(dataset / part_path(0))


@damage(Code.CATALOG_ROWS, "catalog/part-0.parquet", "ordinals 0 to 7", "found 1 to 7")
def catalog_without_its_first_row(dataset: Path) -> None:
    rewrite_catalog(dataset, lambda rows: rows[1:])


def commit_path(dataset: Path, shard: int) -> Path:
    return dataset / "commits" / f"00000{shard}.g1.json"


def change_commit(dataset: Path, shard: int, **changes: Any) -> None:
    commit = CommitLog(Storage(), str(dataset)).latest(shard)
    assert commit is not None
    write_commit(dataset, replace(commit, **changes))


@damage(Code.BAD_COMMIT, "commits/000001.g1.json", "shard 1", "KeyError")
def empty_commit(dataset: Path) -> None:
    commit_path(dataset, 1).write_text("{}")


@damage(Code.BAD_COMMIT, "commits/000001.g1.json", "a commit's JSON")
def torn_commit(dataset: Path) -> None:
    path = commit_path(dataset, 1)
    path.write_bytes(path.read_bytes()[:100])


@damage(Code.BAD_COMMIT, "commits/000001.g1.json", "no others", "canonical")
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


@damage(Code.REPLACED_GENERATION, "commits/000001.g1.json", "generation 2 alone", "with 0 files")
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


@damage(Code.BAD_COUNTS, "commits/000001.g1.json", "3 rows = images + rejected", "4 images")
def counts_that_do_not_add_up(dataset: Path) -> None:
    change_commit(dataset, 1, counts={**CommittedShard(dataset, 1).commit.counts, "images": 4})


@damage(Code.BAD_COUNTS, "commits/000000.g1.json", "1 rejected in all reasons together")
def reasons_that_do_not_add_up(dataset: Path) -> None:
    change_commit(dataset, 0, counts={**CommittedShard(dataset, 0).commit.counts, "rejected:timed_out": 1})


# --- files ---


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


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
            function.__name__ = kind
            damage(code, f"{kind}/sa_000001-", "shard 1", "expected")(function)


file_damages()


@damage(Code.LEFTOVER_FILE, "masks/sa_000001-000000000000.parquet", "shard 1", "9 bytes")
def of_a_killed_writer(dataset: Path) -> None:
    (dataset / data_path("masks", 1, "0" * 64)).write_bytes(b"left over")


@damage(Code.LEFTOVER_FILE, "shards/.tmp-0123", "9 bytes")
def temporary(dataset: Path) -> None:
    (dataset / "shards/.tmp-0123").write_bytes(b"left over")


@damage(Code.STRAY_FILE, "shards/notes.txt")
def notes(dataset: Path) -> None:
    (dataset / "shards/notes.txt").write_text("mine")


@damage(Code.STRAY_FILE, "catalog/deep/part-0.parquet")
def in_a_folder_of_its_own(dataset: Path) -> None:
    (dataset / "catalog/deep").mkdir()
    (dataset / "catalog/deep/part-0.parquet").write_text("mine")


# --- tables ---


def edit_shard(shard: int, edit: Callable[[CommittedShard], None]) -> Damage:
    """A damage by a writer with a fault: other content, committed with right names, digests and counts."""

    def apply(dataset: Path) -> None:
        taken = CommittedShard(dataset, shard)
        edit(taken)
        taken.write()

    return apply


def edit_row(kind: str, shard: int, index: int, **values: Any) -> Damage:
    """A writer's fault in one row of a table."""
    return edit_shard(shard, lambda taken: taken.rows[kind][index].update(values))


def registered(name: str, function: Damage, code: Code, file: str, *told: str) -> None:
    function.__name__ = name
    damage(code, file, *told)(function)


def no_parquet(taken: CommittedShard) -> None:
    taken.raw["masks"] = b"PAR1 and no more"


def without_a_column(taken: CommittedShard) -> None:
    sink = io.BytesIO()
    pq.write_table(pq.read_table(taken.dataset / taken.commit.file("images").path).drop_columns(["license"]), sink)
    taken.raw["images"] = sink.getvalue()


registered("no_parquet", edit_shard(1, no_parquet), Code.BAD_TABLE, "masks/sa_000001-", "no Parquet")
registered("no_column", edit_shard(1, without_a_column), Code.BAD_TABLE, "images/sa_000001-", "other columns: license")


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
registered("twice", edit_row("rejects", 0, 0, ordinal=1, id=2), IDENTITY, "images/", "ordinal 1", "one in each")
registered("gap", edit_row("rejects", 2, 0, ordinal=8, id=9), IDENTITY, "images/", "ordinal 7")


def swapped_images(taken: CommittedShard) -> None:
    taken.rows["images"][:2] = taken.rows["images"][1::-1]


registered("order", edit_shard(1, swapped_images), IDENTITY, "images/", "row 1", "an ordinal over 4", "found 3")

registered(
    "license", edit_row("images", 1, 0, license="MIT"), Code.OTHER_CATALOG_ROW, "images/sa_000001-", "id 4", "CC0-1.0"
)
registered("uri", edit_row("rejects", 0, 0, uri="x"), Code.OTHER_CATALOG_ROW, "rejects/sa_000000-", "id 3", "photo_002")


@damage(Code.DUPLICATE_IMAGE, "images/sa_000000-", "id 2", "duplicate of ordinal 0", "found accepted")
def accepted_twice(dataset: Path) -> None:
    rewrite_catalog(dataset, lambda rows: [{**r, "duplicate_of": 0 if r["ordinal"] == 1 else None} for r in rows])


registered("mask_count", edit_row("images", 1, 0, masks=99), Code.MASK_COUNT, "images/sa_000001-", "id 4", "masks 99")
registered("bored", edit_row("rejects", 0, 0, reason="bored"), Code.UNKNOWN_REASON, "rejects/sa_000000-", "'bored'")
registered(
    "unexplained",
    edit_row("rejects", 0, 0, detail=None),
    Code.INCOMPLETE_REJECT,
    "rejects/sa_000000-",
    "id 3",
    "detail",
)


# --- tars ---


def no_tar(taken: CommittedShard) -> None:
    taken.raw["shards"] = b"no tar at all" * 100


def torn_tar(taken: CommittedShard) -> None:
    taken.raw["shards"] = taken._tar()[:700]


def swapped_members(taken: CommittedShard) -> None:
    taken.members[:2] = taken.members[1::-1]


def fewer_members(taken: CommittedShard) -> None:
    taken.members.pop()


def more_members(taken: CommittedShard) -> None:
    taken.members.append(("sa_99.jpg", b"x"))


for each in (no_tar, torn_tar):
    registered(each.__name__, edit_shard(1, each), Code.BAD_TAR, "shards/sa_000001-", "a tar of plain files")
for each, words in (
    (swapped_members, ("id 4", "expected sa_4.jpg", "found sa_4.json")),
    (fewer_members, ("expected sa_6.json", "found the end")),
    (more_members, ("expected the end", "found sa_99.jpg")),
):
    registered(each.__name__, edit_shard(1, each), Code.TAR_MEMBERS, "shards/sa_000001-", *words)


def member(index: int, edit: Callable[[bytes], bytes]) -> Damage:
    return edit_shard(1, lambda taken: taken.edit_member(index, edit))


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
registered("tail", member(0, lambda d: d + b"hidden"), METADATA, TAR, "sa_4.jpg", "6 bytes after")


# --- masks ---


def mask(**values: Any) -> Damage:
    """A writer's fault in the first mask of shard 1, in the table and in the JSON alike."""

    def edit(taken: CommittedShard) -> None:
        row = taken.rows["masks"][0]
        row.update({key: value(row[key]) if callable(value) else value for key, value in values.items()})
        taken.write_json()

    return edit_shard(1, edit)


MASKS, MASK = "masks/sa_000001-", "mask 40000"
registered("cut", mask(segmentation=lambda s: {**s, "counts": s["counts"][:-1]}), Code.BAD_RLE, MASKS, MASK, "pixels")
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


@pytest.mark.parametrize(("function", "code", "file", "told"), DAMAGES)
def test_a_damage_is_found_and_named_and_nothing_beside_it(
    dataset: Path, function: Damage, code: Code, file: str, told: tuple[str, ...]
) -> None:
    function(dataset)
    report = audit(dataset)
    found = list(report.findings)
    assert {finding.code for finding in found} == {code}, [finding.line() for finding in found]
    assert all(finding.file.startswith(file) for finding in found)
    lines = [finding.line() for finding in found]
    assert any(all(words in line for words in told) for line in lines), lines
    assert all(any(line in printed for printed in report.lines()) for line in lines)


def test_every_code_has_a_damage() -> None:
    # Two decoders that disagree are no damage: see the test of `operators/audit_masks.py`.
    assert {parameter.values[1] for parameter in DAMAGES} == set(Code) - {Code.MASK_PIXELS}


# --- what is told and is no finding ---


def test_what_is_not_yet_built_is_told(dataset: Path) -> None:
    for entry in CommittedShard(dataset, 1).commit.files:
        (dataset / entry.path).unlink()
    commit_path(dataset, 1).unlink()
    report = audit(dataset)
    assert report.findings.total == 0
    assert list(report.not_built) == [(1, 1)]
    assert "not yet built: 1 of 3 shards (1)" in report.lines()
    assert report.checked.commits == 2


def test_files_of_a_writer_at_work_are_told(dataset: Path) -> None:
    commit_path(dataset, 2).unlink()
    report = audit_integrity(str(dataset), Storage())
    assert report.findings.total == 0
    assert len(report.young) == 4
    assert any("4 files less than a day old" in line for line in report.lines())
    assert audit(dataset).findings.counts == {Code.LEFTOVER_FILE: 4}


def test_what_could_not_be_compared_is_told(dataset: Path) -> None:
    flip(dataset / CommittedShard(dataset, 1).commit.file("masks").path)
    report = audit(dataset)
    assert report.not_compared == [1]
    assert "in shards: 1" in "\n".join(report.lines())
    assert report.checked.images == 3


# --- the sample ---


def test_only_the_sample_is_decoded(dataset: Path) -> None:
    edit_shard(1, lambda taken: taken.edit_member(0, lambda d: d[: len(d) // 2] + d[-2:]))(dataset)
    none = audit(dataset, sample=0)
    assert none.findings.total == 0
    assert (none.checked.jpegs, none.checked.jpegs_decoded, none.checked.masks_decoded) == (6, 0, 0)
    two = audit(dataset, sample=2)
    assert two.checked.jpegs_decoded == 2
    assert two.findings.total == 0
    assert audit(dataset, sample=6).findings.counts == {Code.BAD_JPEG: 1}


@pytest.mark.parametrize(("wanted", "total"), [(0, 10), (1, 10), (3, 10), (10, 10), (100, 7), (100, 0), (7, 1000)])
def test_a_sample_is_spread_evenly_however_shards_cut_it(wanted: int, total: int) -> None:
    whole = sorted(sampled(wanted, total, 0, total))
    assert len(whole) == min(wanted, total)
    cut = []
    for start in range(0, total, 3):
        cut += sorted(start + position for position in sampled(wanted, total, start, min(start + 3, total)))
    assert cut == whole
    gaps = np.diff(whole)
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


# --- stores ---


def test_no_dataset_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no dataset"):
        audit(tmp_path)


@pytest.mark.s3
def test_the_same_on_s3(minted: Path, s3_bucket: str, s3_options: dict[str, dict[str, str]]) -> None:
    storage, uri = Storage(s3_options), f"s3://{s3_bucket}/some/dataset"
    for path in minted.rglob("*"):
        if path.is_file():
            storage.put(f"{uri}/{path.relative_to(minted)}", path.read_bytes())
    report = audit_integrity(uri, storage, now=LATER)
    assert [finding.line() for finding in report.findings] == []
    assert report.checked == audit(minted).checked

    one, other, third = (CommittedShard(minted, shard).commit for shard in range(3))
    storage.delete(f"{uri}/{one.file('shards').path}")
    storage.put(f"{uri}/{other.file('masks').path}", b"x" * other.file("masks").size)
    storage.put(f"{uri}/{third.file('images').path}", b"x")
    storage.put(f"{uri}/shards/notes.txt", b"mine")
    storage.put(f"{uri}/{data_path('images', 0, '0' * 64)}", b"left over")
    found: list[Finding] = list(audit_integrity(uri, storage, now=LATER).findings)
    assert {(finding.code, finding.shard) for finding in found} == {
        (Code.MISSING_FILE, 0),
        (Code.FILE_DIGEST, 1),
        (Code.FILE_SIZE, 2),
        (Code.STRAY_FILE, None),
        (Code.LEFTOVER_FILE, 0),
    }
