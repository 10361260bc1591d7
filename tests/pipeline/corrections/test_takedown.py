"""Images taken down: only the tombstone names them, the rest stays, and a crash on the way loses nothing."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.digest import current_digest
from segmint.catalogs.dataset.manifest import load_latest_manifest
from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.catalogs.dataset.submissions import purge_of_images
from segmint.catalogs.dataset.tombstones import TakedownRequest, put_tombstone, read_tombstones
from segmint.catalogs.dataset.versions import name_now, put_version, read_version
from segmint.catalogs.layout import DamagedDatasetError, fingerprint
from segmint.infra.errors import UsageError
from segmint.infra.ray_session import Cluster
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.operators.describe import describe_table
from segmint.operators.prepare.prepare import Prepare
from segmint.operators.rows import Row
from segmint.operators.segment.segment import Segment
from segmint.operators.shards.write import write_shard
from segmint.pipeline.building.dataset import open_or_create
from segmint.pipeline.building.execution.stages import lay_out
from segmint.pipeline.config.config import load_config
from segmint.pipeline.corrections.takedown import TakedownResult, list_takedown, read_request, takedown
from segmint.pipeline.quality.audit.integrity import audit_integrity
from segmint.pipeline.quality.verify import verify_dataset
from tests.support.builds import digests
from tests.support.committed_shard import CommittedShard
from tests.support.everything import download, download_versions, jpegs, mentions, upload
from tests.support.killed_writes import KilledProcessError, dying_after
from tests.support.locations import location_of
from tests.support.planting import edit_catalog, rewrite_catalog
from tests.support.s3_server import S3Server
from tests.support.traces import files_with_traces, scan_data, telling_windows

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
ONE = TakedownRequest(ids=("image-1",))
REASON = "the photographer asked for it"


def names_of(small_dataset: Path, ids: list[int]) -> list[str]:
    """What identifies images in the dataset: image_id, URI, SHA-256 of the source."""
    rows = [sample.row for sample in open_dataset(str(small_dataset)) if sample.id in ids]
    assert len(rows) == len(ids)
    return [row[name] for row in rows for name in ("image_id", "uri", "source_sha256")]


def take(dataset: Path, request: TakedownRequest = ONE) -> TakedownResult:
    return takedown(location_of(dataset), request, REASON, NOW)


def test_the_image_is_gone_and_the_rest_stays(small_dataset: Path, dataset: Path) -> None:
    words, before = names_of(small_dataset, [2]), jpegs(small_dataset)
    assert mentions(dataset, words)
    commits = list(CommitLog(location_of(dataset)).read_all())
    done = take(dataset)
    assert (done.rows, done.images, done.changed_shards, done.taken_down) == (1, 1, (0,), 1)

    assert mentions(dataset, words) == []
    (row,) = (sample.row for sample in open_dataset(str(small_dataset)) if sample.id == 2)
    assert mentions(dataset, [row["release_sha256"], row["pixels_sha256"]]) == ["fingerprints/000000.g1.json"]
    assert files_with_traces(telling_windows(scan_data(before["sa_2.jpg"])), [dataset]) == []
    assert jpegs(dataset) == {name: data for name, data in before.items() if name != "sa_2.jpg"}
    old, new = ({sample.id: sample for sample in open_dataset(str(each))} for each in (small_dataset, dataset))
    assert new.keys() == old.keys() - {2}
    assert all(new[id].row == old[id].row and new[id].masks == old[id].masks for id in new)

    held = list(CommitLog(location_of(dataset)).read_all())
    assert [(commit.generation, commit.numerics) for commit in held] == [
        (generation, commits[0].numerics) for generation in (2, 1, 1)
    ]
    assert held[1:] == commits[1:]
    counts = held[0].counts
    assert counts["rows"] == counts["images"] + counts["rejected"] == 3
    assert (counts["rejected"], counts["rejected:taken_down"]) == (2, 1)
    report = audit_integrity(location_of(dataset))
    assert [finding.line() for finding in report.findings] == []
    assert report.checked.images == 5


def test_the_tombstone_says_what_and_why_and_when(dataset: Path, small_dataset: Path) -> None:
    before = current_digest(location_of(dataset))
    take(dataset)
    (path,) = (dataset / "tombstones").iterdir()
    image_id, uri, digest = names_of(small_dataset, [2])
    value = json.loads(path.read_bytes())
    assert value.pop("digest") == fingerprint(value)
    assert value == {
        "schema_version": 1,
        "request": {
            "ids": ["image-1"],
            "license": None,
            "provider": None,
            "with_copies": False,
            "with_similar": False,
            "fingerprints": True,
        },
        "reason": REASON,
        "when": "2026-03-04T05:06:07Z",
        "version_before": before,
        "images": [{"ordinal": 1, "id": 2, "image_id": image_id, "uri": uri, "sha256": digest, "shared": False}],
    }


def test_a_version_is_recorded_that_lists_the_tombstone(dataset: Path) -> None:
    """The version does not repeat the reason: it may name what was taken down."""
    location = location_of(dataset)
    before = put_version(location, "build", now=NOW)
    done = take(dataset)
    version = read_version(location, 2)
    assert (version.command, version.reason, version.before) == ("takedown", None, before.digest)
    assert done.version == version.name == name_now(location)
    assert set(version.files) - set(read_version(location, 1).files) == {
        f"tombstones/{done.tombstones[0]}", "dataset.g2.json", load_latest_manifest(location).manifest.catalog[0].path,
        "fingerprints/000000.g1.json",
    }  # fmt: skip
    assert take(dataset).version == version.name, "the same request again changes nothing"


def test_the_catalog_is_blank_there_and_the_manifest_s_next_generation_names_it(
    dataset: Path, small_dataset: Path
) -> None:
    take(dataset)
    before, after = load_latest_manifest(location_of(small_dataset)), load_latest_manifest(location_of(dataset))
    assert after.generation == before.generation + 1
    (old,), (new,) = before.manifest.catalog, after.manifest.catalog
    assert (new.rows, new.source_sha256, new.first_shard) == (old.rows, old.source_sha256, old.first_shard)
    assert [path.name for path in (dataset / "catalog").iterdir()] == [Path(new.path).name]
    rows, source = (pq.read_table(at / part.path).to_pylist() for at, part in ((dataset, new), (small_dataset, old)))
    assert {name: value for name, value in rows[1].items() if value not in (None, "")} == {"ordinal": 1, "id": 2}
    assert [row for row in rows if row["ordinal"] != 1] == [row for row in source if row["ordinal"] != 1]
    assert before.manifest.licenses == {"CC-BY-NC-4.0": 1, "CC0-1.0": 7}
    assert after.manifest.licenses == {"CC-BY-NC-4.0": 1, "CC0-1.0": 6, "taken_down": 1}


def test_a_whole_license_and_rows_that_were_refused(dataset: Path, small_dataset: Path) -> None:
    done = take(dataset, TakedownRequest(license="CC-BY-NC-4.0"))
    assert (done.rows, done.images, done.changed_shards) == (1, 0, (0,))
    assert mentions(dataset, ["image-2", "photo_002.jpg", "CC-BY-NC-4.0"]) == ["dataset.json"]  # the count of rows
    done = take(dataset, TakedownRequest(license="CC0-1.0"))
    assert (done.rows, done.images, done.changed_shards, done.taken_down) == (7, 6, (0, 1, 2), 8)
    assert list(open_dataset(str(dataset))) == []
    assert audit_integrity(location_of(dataset)).findings.total == 0
    assert files_with_traces(telling_windows(b"".join(map(scan_data, jpegs(small_dataset).values()))), [dataset]) == []


def test_an_image_of_a_scheme_without_a_store_is_read_and_taken_down(dataset: Path) -> None:
    edit_catalog(dataset, 1, uri="hdfs://namenode:8020/photo@2x.jpg")
    before = [sample.id for sample in open_dataset(str(dataset))]
    assert (take(dataset).rows, mentions(dataset, ["hdfs"])) == (1, [])
    assert [sample.id for sample in open_dataset(str(dataset))] == [each for each in before if each != 2]


def providers(dataset: Path, **claims: str) -> None:
    """Row 3, which was refused, and row 4 are by E, the others by G; row 3 claims this of another row."""
    by = ["G", "G", "E", "E", "G", "G", "G", "G"]
    rewrite_catalog(dataset, lambda rows: [{**row, "provider": by[row["ordinal"]]} for row in rows])
    edit_catalog(dataset, 2, **claims)


@pytest.mark.parametrize("claim", ["image_id", "uri", "sha256"])
def test_a_provider_s_takedown_does_not_spread_by_what_nobody_checked(
    dataset: Path, small_dataset: Path, claim: str
) -> None:
    names = dict(zip(("image_id", "uri", "sha256"), names_of(small_dataset, [2]), strict=True))
    providers(dataset, **{claim: names[claim]})
    done = take(dataset, TakedownRequest(provider="E"))
    assert (done.rows, done.kept) == (2, ())
    only = "only tombstones/ still names the images (1 also named by rows that remain), and "
    shared = claim != "sha256"  # a tombstone doesn't contain a hash that nobody checked
    assert (done.shared, any(only in line for line in done.lines())) == (shared, shared)
    assert [sample.id for sample in open_dataset(str(dataset))] == [1, 2, 5, 6, 7]
    assert take(dataset, TakedownRequest(ids=("image-6",))).rows == 1
    assert [sample.id for sample in open_dataset(str(dataset))] == [1, 2, 5, 6]
    assert [each.line() for each in audit_integrity(location_of(dataset)).findings if each.code == "still_there"] == []


def test_an_id_does_not_spread_by_a_hash_that_nobody_checked(dataset: Path, small_dataset: Path) -> None:
    providers(dataset, sha256=names_of(small_dataset, [2])[2])
    assert take(dataset, TakedownRequest(ids=("sa_3",))).rows == 1
    assert take(dataset, TakedownRequest(ids=("sa_7",))).rows == 1
    assert [sample.id for sample in open_dataset(str(dataset))] == [1, 2, 4, 5, 6]


@pytest.mark.parametrize("other", ["photo_000.jpg", "photo_006.jpg"])
def test_an_image_is_not_lost_to_a_row_that_states_its_uri_and_a_hash_that_nobody_checked(
    dataset: Path, small_dataset: Path, other: str
) -> None:
    """The row is taken down, but its URI would also exclude the image, in its own shard even without being listed."""
    providers(dataset, sha256=names_of(small_dataset, [2])[2], uri=other)
    done = take(dataset)
    assert (done.rows, done.images, done.shared) == (2, 1, 1)
    assert take(dataset, TakedownRequest(ids=("image-5",))).rows == 1
    assert [sample.id for sample in open_dataset(str(dataset))] == [1, 4, 5, 7]
    assert [each.line() for each in audit_integrity(location_of(dataset)).findings if each.code == "still_there"] == []


def test_a_row_of_a_takedown_that_was_killed_does_not_remain(dataset: Path, small_dataset: Path) -> None:
    """Its tombstone is there, but the catalog still has its names; it must not keep another image's names allowed."""
    providers(dataset, uri=names_of(small_dataset, [7])[1])
    location = location_of(dataset)
    manifest = load_latest_manifest(location).manifest
    for each in list_takedown(location, manifest, TakedownRequest(provider="E"), REASON).tombstones:
        put_tombstone(location, each)
    assert take(dataset, TakedownRequest(ids=("image-6",))).rows == 1
    images = [image for each in read_tombstones(location) for image in each.images]
    assert {image.id: image.shared for image in images} == {3: True, 4: False, 7: False}


@pytest.mark.parametrize("measure", ["source_sha256", "pixels_sha256"])
def test_the_same_bytes_of_another_provider_are_listed_and_removed_only_if_asked(dataset: Path, measure: str) -> None:
    providers(dataset)
    shard = CommittedShard(dataset, 1)
    shard.rows["images"][1][measure] = shard.rows["images"][0][measure]
    shard.write()
    asked = read_request(None, None, "E")
    same = "sa_5 image-4 (provider 'G', CC0-1.0)"
    listed = list_takedown(location_of(dataset), load_latest_manifest(location_of(dataset)).manifest, asked, REASON)
    assert (listed.rows, listed.kept) == (2, (same,))
    done = take(dataset, asked)
    assert (done.rows, done.images) == (2, 1)
    assert f"same bytes or pixels, not removed (pass --with-copies): {same}" in done.lines()
    assert f"same bytes or pixels, not removed (pass --with-copies): {same}" in listed.lines()
    assert [sample.id for sample in open_dataset(str(dataset))] == [1, 2, 5, 6, 7]
    assert take(dataset, TakedownRequest(ids=("sa_7",))).rows == 1
    assert [each.line() for each in audit_integrity(location_of(dataset)).findings if each.code == "still_there"] == []
    done = take(dataset, read_request(None, None, "E", with_copies=True))
    assert (done.rows, done.kept) == (1, ())
    assert [sample.id for sample in open_dataset(str(dataset))] == [1, 2, 6]
    with pytest.raises(UsageError, match="--with-copies needs --license or --provider"):
        read_request(location_of(dataset), None, None, with_copies=True)


@pytest.mark.parametrize("name", ["2", "sa_2", "image-1"])
def test_an_image_is_named_by_its_number_or_by_the_catalog_s_name(dataset: Path, name: str) -> None:
    take(dataset, TakedownRequest(ids=(name,)))
    assert [sample.id for sample in open_dataset(str(dataset))] == [1, 4, 5, 6, 7]


@pytest.mark.parametrize(("first", "second"), [('"7"', "image-6"), ("image-6", '"7"')])
def test_a_name_of_two_images_stays_ambiguous_when_one_is_gone(dataset: Path, first: str, second: str) -> None:
    """Lists of ids are used again, after the dataset has grown to as many images, too."""
    edit_catalog(dataset, 1, image_id="7")
    assert take(dataset, TakedownRequest(ids=(first,))).rows == 1
    before = digests(dataset)
    told = r"'7' is both an image_id and the number of .* write \"7\", with the quotes\. .* image_id, \"image-6\""
    with pytest.raises(UsageError, match=told):
        take(dataset, TakedownRequest(ids=("7",)))
    assert digests(dataset) == before
    assert take(dataset, TakedownRequest(ids=(first,))).rows == 0
    assert take(dataset, TakedownRequest(ids=(second,))).images == 1


def test_bytes_that_came_back_are_taken_down_by_the_same_command(dataset: Path) -> None:
    """A build that looked before the takedown has put them under another row."""
    take(dataset)
    (earlier,) = read_tombstones(location_of(dataset))
    shard = CommittedShard(dataset, 1)
    row = shard.rows["images"][1]
    row["source_sha256"] = earlier.images[0].sha256
    shard.write()
    findings = [finding for finding in audit_integrity(location_of(dataset)).findings if finding.code == "still_there"]
    assert [finding.image for finding in findings] == [row["id"]]

    done = take(dataset)
    assert (done.rows, done.images, done.changed_shards, done.taken_down) == (1, 1, (1,), 2)
    assert mentions(dataset, [row["image_id"], row["uri"]]) == []
    assert [(t.request, t.reason) for t in read_tombstones(location_of(dataset))] == [(ONE, REASON)] * 2
    assert audit_integrity(location_of(dataset)).findings.total == 0
    once = digests(dataset)
    assert take(dataset).rows == 0
    assert digests(dataset) == once


def test_a_tombstone_without_a_hash_finds_by_name_alone(dataset: Path) -> None:
    """As one of an image that was not built when it was taken down."""
    take(dataset)
    (path,) = (dataset / "tombstones").iterdir()
    (taken,) = read_tombstones(location_of(dataset))
    path.unlink()
    nameless = tuple(image.model_copy(update={"sha256": None}) for image in taken.images)
    put_tombstone(location_of(dataset), taken.model_copy(update={"images": nameless}))
    shutil.rmtree(dataset / "versions")  # else the tombstone is another one than was recorded
    assert take(dataset).rows == 0
    assert audit_integrity(location_of(dataset)).findings.total == 0


def refuse_row(dataset: Path, uri: str) -> Row:
    """Row 5 with this URI, refused as a build refuses a row for the bytes of an image that was taken down."""
    shard = CommittedShard(dataset, 1)
    refused = shard.rows["images"].pop(1) | {"uri": uri}
    named = [row for row in shard.members if str(refused["id"]) not in row[0]]
    shard.members = named
    shard.rows["masks"] = [row for row in shard.rows["masks"] if row["id"] != refused["id"]]
    verdict = {"stage": "catalog", "reason": "taken_down", "detail": "its bytes"}
    shard.rows["rejects"].append({**{n: refused[n] for n in ("ordinal", "id", "image_id", "uri")}, **verdict})
    shard.write()
    shutil.rmtree(dataset / "versions")  # as if the build had written the shard so
    applied = [path.name for path in (dataset / "tombstones").iterdir()]
    put_version(location_of(dataset), "takedown", applied=applied)
    return refused


def test_a_row_without_its_tombstone_is_a_finding(dataset: Path) -> None:
    done = take(dataset)
    assert audit_integrity(location_of(dataset)).findings.total == 0
    shutil.rmtree(dataset / "tombstones")
    shutil.rmtree(dataset / "versions")
    findings = [each for each in audit_integrity(location_of(dataset)).findings if each.code == "bad_tombstone"]
    assert [finding.expected for finding in findings] == ["a tombstone of this row"] * done.rows


def test_an_old_tar_that_was_put_back_is_a_finding_at_once(dataset: Path) -> None:
    before = {path: path.read_bytes() for path in (dataset / "shards").iterdir()}
    take(dataset)
    (gone,) = (path for path in before if not path.exists())
    gone.write_bytes(before[gone])
    name = gone.relative_to(dataset).as_posix()
    findings = audit_integrity(location_of(dataset)).findings
    assert [(finding.code, finding.file) for finding in findings] == [("leftover_file", name)]
    assert name in verify_dataset(location_of(dataset)).problems[0]


def test_a_row_that_a_build_refused_for_its_bytes_is_blanked_by_the_next_takedown(dataset: Path) -> None:
    take(dataset)
    refused = refuse_row(dataset, "photo_004.jpg")
    assert audit_integrity(location_of(dataset)).findings.total == 0
    done = take(dataset, TakedownRequest(ids=("image-6",)))
    assert (done.rows, done.taken_down) == (2, 3)
    assert mentions(dataset, [refused["image_id"], refused["uri"]]) == []


def test_an_image_is_not_lost_to_a_refused_row_with_its_uri(dataset: Path) -> None:
    """A build refuses rows for a hash that only the catalog states, so such a row proves nothing about its URI."""
    edit_catalog(dataset, 4, uri="photo_006.jpg")
    take(dataset)
    refuse_row(dataset, "photo_006.jpg")
    assert take(dataset, TakedownRequest(ids=("image-5",))).rows == 2
    assert [sample.id for sample in open_dataset(str(dataset))] == [1, 4, 7]
    assert [each.line() for each in audit_integrity(location_of(dataset)).findings if each.code == "still_there"] == []


def test_again_changes_nothing_and_there_is_one_tombstone(dataset: Path) -> None:
    take(dataset)
    once = digests(dataset)
    again = takedown(location_of(dataset), ONE, REASON)
    assert (again.rows, again.images, again.changed_shards, again.taken_down) == (0, 0, (), 1)
    with pytest.raises(UsageError, match="'\"2\"' isn't an image_id or id of this dataset"):
        take(dataset, TakedownRequest(ids=('"2"',)))  # an image_id, unlike the number 2, which was taken down
    assert digests(dataset) == once
    take(dataset, TakedownRequest(ids=("image-1", "image-4")))
    assert sorted(image.id for t in read_tombstones(location_of(dataset)) for image in t.images) == [2, 5]
    assert [sample.id for sample in open_dataset(str(dataset))] == [1, 4, 6, 7]


@pytest.mark.parametrize("step", [10, pytest.param(1, marks=pytest.mark.long)])
def test_killed_after_any_write_and_run_again_it_ends_in_the_same_bytes(
    small_dataset: Path, tmp_path: Path, step: int
) -> None:
    request = TakedownRequest(ids=("image-1", "image-4"))
    whole = tmp_path / "whole"
    shutil.copytree(small_dataset, whole)
    with dying_after(None) as counted:
        take(whole, request)
    expected = digests(whole)
    assert counted.spent > 20
    for writes in range(step // 2, counted.spent, step):
        dataset = tmp_path / f"killed-{writes}"
        shutil.copytree(small_dataset, dataset)
        with dying_after(writes), pytest.raises(KilledProcessError):
            take(dataset, request)
        left = {sample.id for sample in open_dataset(str(dataset))}  # one whole generation of each shard
        assert {1, 4, 6, 7} <= left <= {1, 2, 4, 5, 6, 7}
        take(dataset, request)
        assert digests(dataset) == expected
        shutil.rmtree(dataset)


def test_any_later_takedown_finishes_one_that_was_killed(small_dataset: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    shutil.copytree(small_dataset, dataset)
    with dying_after(3), pytest.raises(KilledProcessError):
        take(dataset)
    assert len(list((dataset / "tombstones").iterdir())) == 1
    assert mentions(dataset, ["image-1"])
    take(dataset, TakedownRequest(ids=("image-4",)))
    assert mentions(dataset, ["image-1", "image-4"]) == []
    assert audit_integrity(location_of(dataset)).findings.total == 0


def test_a_copy_that_a_build_commits_while_an_interrupted_takedown_is_completed_is_taken_down(dataset: Path) -> None:
    """The interrupted one wrote its tombstone, but no fingerprints, by which the build would have refused the copy."""
    location = location_of(dataset)
    (tombstone,) = list_takedown(location, load_latest_manifest(location).manifest, ONE, REASON).tombstones
    put_tombstone(location, tombstone)
    shard = CommittedShard(dataset, 1)
    row = shard.rows["images"][1]
    row["pixels_sha256"] = next(each for each in CommittedShard(dataset, 0).rows["images"] if each["id"] == 2)[
        "pixels_sha256"
    ]
    takedown(location, ONE, REASON, NOW, confirm=lambda _: shard.write())
    assert mentions(dataset, [row["image_id"], row["uri"]]) == []
    assert audit_integrity(location).findings.total == 0


@pytest.mark.parametrize("before", ["list", "catalog"])
def test_a_row_that_a_growing_build_adds_during_a_takedown_is_taken_down(
    small_dataset: Path, dataset: Path, tmp_path: Path, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The build compared the catalogs before the tombstone was there, and adds another row with the image's URI."""
    catalog = tmp_path / "catalog.jsonl"
    again = {"uri": "photo_001.jpg", "license": "CC0-1.0", "image_id": "again"}
    catalog.write_text((small_dataset.parent / "photos/catalog.jsonl").read_text() + json.dumps(again))
    options = [f"catalog={catalog}", f"output={dataset}"]
    config = load_config(str(small_dataset.parent / "build.yaml"), options)

    def grow(*_: object) -> None:
        with monkeypatch.context() as earlier:
            earlier.setattr("segmint.pipeline.building.dataset.read_tombstones", lambda _: ())
            open_or_create(config, Storage(), grow=True)

    def purge(*arguments: Any) -> int:
        if before == "catalog" and len(load_latest_manifest(location_of(dataset)).manifest.catalog) == 1:
            grow()
        return purge_of_images(*arguments)

    monkeypatch.setattr("segmint.pipeline.corrections.takedown.purge_of_images", purge)
    done = takedown(location_of(dataset), ONE, REASON, NOW, confirm=grow if before == "list" else None)
    assert (done.rows, done.images) == (2, 1)
    assert mentions(dataset, ["again", "photo_001.jpg"]) == []
    assert audit_integrity(location_of(dataset)).findings.total == 0


def test_a_build_afterwards_takes_the_catalog_and_does_not_bring_the_image_back(
    small_dataset: Path, embedded_once: None, tmp_path: Path
) -> None:
    """The shards are taken down before they are built, or after: they come out the same."""
    folder = tmp_path / "copy"
    shutil.copytree(small_dataset.parent, folder)
    dataset = folder / "dataset"
    text = (folder / "build.yaml").read_text().replace(str(small_dataset.parent), str(folder))
    (folder / "build.yaml").write_text(text)
    config = load_config(str(folder / "build.yaml"))
    storage = Storage()
    for commit in CommitLog(Location(storage, str(dataset))).read_all():
        if commit.shard == 0:  # as if it had not been built yet
            for path in (*(entry.path for entry in commit.files), "commits/000000.g1.json"):
                (dataset / path).unlink()
    take(dataset)
    opened = open_or_create(config, storage)
    catalog = folder / "photos" / "catalog.jsonl"
    catalog.write_bytes(catalog.read_bytes() + b"\n")  # other bytes, the same rows
    assert open_or_create(config, storage) == opened
    catalog.write_text("".join(line for line in catalog.open() if '"image-1"' not in line))  # taken out there, too
    assert open_or_create(config, storage) == opened

    stages = lay_out(config, opened, Cluster(local=True, cpus=8, gpus=0, nodes=1, cores=1))
    prepare = Prepare(*stages.prepare_arguments)
    try:
        segmented = Segment(stages.segment)(prepare(opened.read_runs([(0, opened.span(0).stop)])))
        rows = describe_table(segmented)
    finally:
        prepare.close()
    write_shard(opened.shard_task(config, opened.span(0)), [(0, rows.num_rows)], rows)
    built_before = tmp_path / "before"
    shutil.copytree(small_dataset, built_before)
    take(built_before)
    one, other = (
        {path: digest for path, digest in digests(at).items() if "000000" in path} for at in (dataset, built_before)
    )
    assert one.keys() - other.keys() == {"commits/000000.g1.json"}
    assert other.keys() - one.keys() == {"commits/000000.g2.json"}
    recognized = "fingerprints/000000.g1.json"  # with hashes only if an image was released before
    assert one[recognized] != other[recognized]
    assert len(one) == 6
    assert audit_integrity(Location(storage, str(dataset))).findings.total == 0


@pytest.mark.parametrize(
    ("unknown", "told"),
    [
        (TakedownRequest(ids=("image-1", "image-77")), "'image-77' isn't an image_id or id of this dataset"),
        (TakedownRequest(ids=("9",)), "'9' isn't an image_id or id"),
        (
            TakedownRequest(ids=("https://h/view?imgtoken=abc",)),
            r"'https://h/view\?imgtoken=\[redacted\]': a dataset doesn't store credentials, so it can't tell which",
        ),
        (TakedownRequest(license="CC-BY-4.0"), "no row of the catalog has the license 'CC-BY-4.0'"),
        (TakedownRequest(provider="Acme"), "no row of the catalog has the provider 'Acme'"),
    ],
)
def test_what_the_dataset_does_not_have_changes_nothing(dataset: Path, unknown: TakedownRequest, told: str) -> None:
    before = digests(dataset)
    with pytest.raises(UsageError, match=told):
        take(dataset, unknown)
    with pytest.raises(UsageError, match="--reason is empty"):
        takedown(location_of(dataset), ONE, " ")
    assert digests(dataset) == before


def test_a_damaged_shard_is_reported_before_anything_is_changed(dataset: Path) -> None:
    (path,) = (dataset / "masks").glob("sa_000000-*")
    path.write_bytes(path.read_bytes()[:-1])
    before = digests(dataset)
    with pytest.raises(DamagedDatasetError, match=r"masks/sa_000000-.*: expected .* bytes"):
        take(dataset)
    assert digests(dataset) == before


def test_a_report_that_is_a_link_is_unlinked_and_what_it_leads_to_stays(dataset: Path, tmp_path: Path) -> None:
    """A report may lie on a web server's disk; what else is there is not the dataset's."""
    (tmp_path / "pages" / "deep").mkdir(parents=True)
    (tmp_path / "pages" / "deep" / "thesis.tex").write_text("ten years")
    (dataset / "report").symlink_to(tmp_path / "pages")
    done = take(dataset)
    assert done.removed_links == (f"report -> {tmp_path / 'pages'}",)
    assert f"check its target: report -> {tmp_path / 'pages'}" in done.lines()[-2]
    assert not (dataset / "report").is_symlink()
    assert (tmp_path / "pages" / "deep" / "thesis.tex").read_text() == "ten years"


def test_links_in_a_report_are_unlinked(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "thesis.tex").write_text("ten years")
    (dataset / "report" / "deep").mkdir(parents=True)
    (dataset / "report" / "figures").mkdir()
    (dataset / "report" / "index.html").write_text("image-1")
    (dataset / "report" / "deep" / "folder").symlink_to(tmp_path / "pages")
    (dataset / "report" / "file").symlink_to(tmp_path / "pages" / "thesis.tex")
    (dataset / "report" / "nothing").symlink_to(tmp_path / "absent")
    assert [link.partition(" ")[0] for link in take(dataset).removed_links] == [
        "report/deep/folder",
        "report/file",
        "report/nothing",
    ]
    assert [path.name for path in (dataset / "report").rglob("*")] == ["deep"]
    assert (tmp_path / "pages" / "thesis.tex").exists()


def test_a_folder_of_the_dataset_that_is_a_link_is_refused_before_anything_is_changed(
    dataset: Path, tmp_path: Path
) -> None:
    (dataset / "masks").rename(tmp_path / "masks")
    (dataset / "masks").symlink_to(tmp_path / "masks")
    before = digests(dataset)
    with pytest.raises(UsageError, match=r"masks is a link to .*: nothing is removed through a link"):
        take(dataset)
    assert digests(dataset) == before
    (tmp_path / "linked").symlink_to(dataset)  # the dataset itself may be reached by one
    (dataset / "masks").unlink()
    (tmp_path / "masks").rename(dataset / "masks")
    assert take(tmp_path / "linked").images == 1


def test_files_that_are_not_segmint_s_are_named(dataset: Path, tmp_path: Path) -> None:
    """They may show or name the image, and are not ours to open or to delete."""
    assert take(dataset, TakedownRequest(ids=("image-4",))).unknown_files == ()
    (dataset / "pages").mkdir()
    (dataset / "pages" / "index.html").write_text("image-1")
    (dataset / "shards" / "notes.txt").write_text("image-1")
    (dataset / "more").symlink_to(tmp_path)
    (dataset / ".tmp-1").write_text("image-1")  # of a writer that died
    done = take(dataset)
    assert done.unknown_files == (".tmp-1", "more", "pages/index.html", "shards/notes.txt")
    assert done.lines()[1].startswith("of the dataset's committed files, including older versions, only tombstones/")
    assert done.lines()[-2] == "not a committed file, check what it shows and names: shards/notes.txt"


def test_exactly_one_thing_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("image-1\n\n image-4 \nimage-1\n")
    assert read_request(location_of(tmp_path / "ids.txt"), None, None) == TakedownRequest(ids=("image-1", "image-4"))
    assert read_request(None, "CC0-1.0", None) == TakedownRequest(license="CC0-1.0")
    for wrong in ((None, None, None), (None, "CC0-1.0", "Acme"), (None, " ", None)):
        with pytest.raises(UsageError, match="exactly one of --ids FILE, --license L, and --provider P"):
            read_request(*wrong)


@pytest.mark.s3
def test_no_older_version_of_the_image_is_left_on_s3(
    small_dataset: Path, tmp_path: Path, s3_server: S3Server, s3_bucket: str, s3_options: dict[str, dict[str, str]]
) -> None:
    versioning = {"Status": "Enabled"}
    s3_server.client().put_bucket_versioning(Bucket=s3_bucket, VersioningConfiguration=versioning)
    storage, uri = Storage(s3_options), f"s3://{s3_bucket}/some/dataset"
    location = Location(storage, uri)
    upload(small_dataset, Location(storage, uri))
    upload(small_dataset, Location(storage, uri))  # each object has two versions now
    words, windows = names_of(small_dataset, [2]), telling_windows(scan_data(jpegs(small_dataset)["sa_2.jpg"]))
    takedown(location, ONE, REASON, NOW)

    versions = download_versions(s3_server, s3_bucket, tmp_path / "versions")
    assert files_with_traces(windows, [versions]) == []
    tombstone = read_tombstones(location)[0].name
    assert [path for path in mentions(versions, words) if not path.endswith(tombstone)] == []
    copy = download(Location(storage, uri), tmp_path / "copy")
    shutil.copytree(small_dataset, tmp_path / "local")
    take(tmp_path / "local")
    assert digests(copy) == digests(tmp_path / "local")
    assert audit_integrity(Location(storage, uri)).findings.total == 0
