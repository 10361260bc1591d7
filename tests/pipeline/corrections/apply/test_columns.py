"""Columns of stages that are added to a finished dataset, filled in, and removed."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from segmint.catalogs.dataset.manifest import load_latest_manifest, load_manifest
from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.catalogs.dataset.tombstones import TakedownRequest
from segmint.catalogs.dataset.versions import latest_version
from segmint.catalogs.findings import Code, Reason
from segmint.infra.errors import UsageError
from segmint.operators.rows import shard_schemas
from segmint.operators.shards.revise import read_tables, revise_shard, take_down
from segmint.pipeline.building.dataset import open_or_create
from segmint.pipeline.config.config import load_config
from segmint.pipeline.corrections.apply import columns
from segmint.pipeline.corrections.apply.columns import list_column, list_removal, remove_column
from segmint.pipeline.corrections.apply.engine import FAILED, AppliedShard, ChosenImages, run_here
from segmint.pipeline.corrections.proof import prove
from segmint.pipeline.corrections.redact import redact
from segmint.pipeline.corrections.repair import repair
from segmint.pipeline.corrections.takedown import takedown
from segmint.pipeline.quality.audit.integrity import audit_integrity
from segmint.pipeline.quality.report.croissant import record_set
from segmint.pipeline.quality.statistics.masks import open_tables
from tests.support.applied_columns import apply_column, halves, means, nearest
from tests.support.builds import small_catalog, write_catalog, write_config, write_photographs
from tests.support.crashing_store import CallCounter, gated
from tests.support.locations import location_of
from tests.support.protocol import DatasetPath, broken_promises, contents, two_shards, write
from tests.support.small_dataset import build_dataset
from tests.support.two_masks import TwoMaskSegment


@pytest.fixture
def place() -> Iterator[DatasetPath]:
    """Images 1, 2, 4, and 5 with two masks each, in two shards."""
    with two_shards() as place:
        yield place


def findings(place: DatasetPath) -> list[str]:
    return [finding.line() for finding in audit_integrity(place.location).findings]


def values(place: DatasetPath, kind: str = "images", name: str = "stage_means") -> dict[int, Any]:
    """The value of each image or mask, by number."""
    key = "id" if kind == "images" else "annotation_id"
    found = {}
    for commit in place.log.read_all():
        table = read_tables(place.location, commit, [kind])[kind]
        found |= {row[key]: row.get(name) for row in table.to_pylist()}
    return found


def put(place: DatasetPath) -> None:
    """List the column of `Means` in the manifest, as `apply_column` does before the first shard."""
    column = columns.column_of(means().load())
    columns.change_manifest(place.handle, lambda manifest: columns.with_column(manifest, column))


def data_files(place: DatasetPath) -> dict[str, str]:
    kept = ("shards/", "images/", "masks/", "rejects/")
    return {name: digest for name, digest in contents(place).items() if name.startswith(kept)}


def test_only_the_tables_of_images_are_written_and_every_reader_sees_the_column(place: DatasetPath) -> None:
    before, calls = contents(place), CallCounter()
    listed = list_column(place.location, means())
    assert (listed.images, listed.shards, listed.column) == (4, (0, 1), "stage_means")
    assert listed.bytes == sum(commit.file("images").size for commit in place.log.read_all())
    assert contents(place) == before
    with gated(calls):
        done = apply_column(place.location, means())
    assert (done.listed, done.changed_shards, done.listed.skipped_images) == (listed, (0, 1), {})
    puts = [call.split("-")[0] for call in calls.calls if call.startswith("put ")]
    assert puts == ["put images/sa_000000", "put images/sa_000001"]
    assert findings(place) == []
    assert broken_promises(place) == []
    (column,) = load_manifest(place.location).applied_columns
    found = values(place)
    assert {each["stage_sha256"] for each in found.values()} == {column.sha256}
    assert {image: each["masks"] for image, each in found.items()} == {1: 2, 2: 2, 4: 2, 5: 2}
    assert {sample.id: sample.row["stage_means"] for sample in open_dataset(place.uri)} == found
    chosen = open_dataset(place.uri, select=f"stage_means.colors[1] > {found[4]['colors'][0]} - 1e-9")
    assert {sample.id for sample in chosen} >= {4}
    schemas = shard_schemas(load_manifest(place.location).columns)
    assert '"images/stage_means/colors"' in json.dumps(record_set("images", schemas["images"]))
    version = latest_version(place.location)
    assert version is not None
    assert (version.command, version.reason) == ("apply", f"stage_means: {column.stage}, version 1")


def test_the_same_stage_again_changes_nothing_and_another_is_refused(place: DatasetPath) -> None:
    apply_column(place.location, means())
    before = contents(place)
    again = apply_column(place.location, means())
    assert (again.changed_shards, again.lines()[0]) == ((), f"no image of {place.location} needs this run")
    assert contents(place) == before
    with pytest.raises(UsageError, match=r"added by another version of .*--remove`, then this command"):
        apply_column(place.location, means(of=2))
    assert contents(place) == before
    remove_column(place.location, means().stage)
    first = values_of_tables(place)
    assert first == [None, None]
    done = apply_column(place.location, means(of=2))
    assert (done.listed.images, findings(place), broken_promises(place)) == (4, [], [])
    assert [column.removed for column in load_manifest(place.location).applied_columns] == [True, False]


def values_of_tables(place: DatasetPath) -> list[Any]:
    """Whether the images table of each shard contains the column, and its first value."""
    tables = [read_tables(place.location, commit, ["images"])["images"] for commit in place.log.read_all()]
    return [table.column("stage_means")[0].as_py() if "stage_means" in table.column_names else None for table in tables]


def test_a_removed_column_leaves_the_bytes_that_were_there_before(place: DatasetPath) -> None:
    before = data_files(place)
    apply_column(place.location, means())
    apply_column(place.location, halves())
    assert len(data_files(place).keys() - before.keys()) == 4
    listed = list_removal(place.location, means().stage)
    assert (listed.images, listed.shards, listed.version) == (4, (0, 1), "removed")
    assert remove_column(place.location, means().stage).changed_shards == (0, 1)
    assert findings(place) == []
    assert remove_column(place.location, halves().stage).changed_shards == (0, 1)
    assert data_files(place) == before
    again = remove_column(place.location, halves().stage)
    assert (again.changed_shards, again.lines()[0]) == ((), f"no shard of {place.location} has the column")
    with pytest.raises(UsageError, match=r"added no column of the stage other\.Stage"):
        remove_column(place.location, "other.Stage")
    assert (findings(place), broken_promises(place)) == ([], [])


def test_values_of_masks(place: DatasetPath) -> None:
    assert apply_column(place.location, halves()).listed.images == 4
    (column,) = load_manifest(place.location).applied_columns
    found = values(place, "masks", "stage_halves")
    with open_tables(place.location) as tables:
        areas = tables.query("SELECT annotation_id, area FROM masks").to_pylist()
    assert found == {row["annotation_id"]: {"area": row["area"] / 2, "stage_sha256": column.sha256} for row in areas}
    assert (findings(place), broken_promises(place)) == ([], [])


def test_an_image_without_a_value_stays_and_is_tried_again(place: DatasetPath) -> None:
    done = apply_column(place.location, means(refused=2, failing=5))
    assert (done.listed.images, done.changed_shards, done.listed.skipped_images) == (2, (0, 1), {FAILED: 2})
    refused, failed = done.listed.examples
    assert refused == "image 2: skipped: stage_means: too_plain: it has one color"
    assert failed.startswith("image 5: skipped: stage_means: ValueError: no color (applied_columns.py, line")
    assert {image for image, value in values(place).items() if value is None} == {2, 5}
    assert findings(place) == []
    again = apply_column(place.location, means(refused=2, failing=5))
    assert (again.listed.images, again.listed.skipped_images, again.changed_shards) == (0, {FAILED: 2}, ())
    assert again.lines()[0] == "0 images changed in 0 shards"


def test_shards_may_lack_the_column(place: DatasetPath, tmp_path: Path) -> None:
    """A run ended after the first shard, a takedown began before it, and a build adds a shard afterward."""
    handle, spec = place.handle, means().load()
    put(place)
    assert findings(place) == []
    task = partial(columns.write_column, handle, columns.column_of(spec))
    stage = columns.custom_stage(means(), spec)
    assert [each.images for each in run_here(handle, stage, task, [ChosenImages(0, (0, 1))])] == [2]
    assert findings(place) == []
    found = values(place)
    assert [image for image, value in found.items() if value is not None] == [1, 2]
    with open_tables(place.location) as tables:
        sql = "SELECT id FROM images WHERE stage_means IS NULL ORDER BY id"
        assert tables.query(sql).column("id").to_pylist() == [4, 5]
        assert tables.query_shard(1, "images", sql).num_rows == 2
    takedown(place.location, TakedownRequest(ids=("image-0", "image-3")), "asked")
    assert values(place) == {2: found[2], 5: None}
    (tmp_path / "regions.jsonl").write_text(json.dumps({"id": 2, "kind": "face", "x": 1, "y": 2, "w": 9, "h": 9}))
    redact(place.location, location_of(tmp_path / "regions.jsonl"))
    assert values(place) == {2: None, 5: None}
    assert findings(place) == []
    done = apply_column(place.location, means())
    assert (done.listed.images, done.changed_shards) == (2, (0, 1))
    assert values(place)[2]["colors"] != found[2]["colors"]
    assert (findings(place), broken_promises(place)) == ([], [])


def test_a_correction_that_began_before_keeps_the_column(place: DatasetPath) -> None:
    handle = place.handle
    apply_column(place.location, means())
    apply_column(place.location, halves())
    images, masks = values(place), values(place, "masks", "stage_halves")
    revised = revise_shard(handle, 0, lambda _, rows: [take_down(rows[0]), *rows[1:]])
    assert revised is not None
    assert values(place) == {image: value for image, value in images.items() if image != 1}
    assert values(place, "masks", "stage_halves") == {mask: each for mask, each in masks.items() if mask // 10_000 != 1}


def test_values_are_only_set_for_the_pixels_that_the_stage_saw(place: DatasetPath, tmp_path: Path) -> None:
    handle, spec = place.handle, means().load()
    put(place)
    task = partial(columns.write_column, handle, columns.column_of(spec))
    (tmp_path / "regions.jsonl").write_text(json.dumps({"id": 2, "kind": "face", "x": 1, "y": 2, "w": 9, "h": 9}))

    def later(chosen: ChosenImages, results: Any) -> AppliedShard:
        redact(place.location, location_of(tmp_path / "regions.jsonl"))
        return task(chosen, results)

    list(run_here(handle, columns.custom_stage(means(), spec), later, [ChosenImages(0, (0, 1))]))
    assert [image for image, value in values(place).items() if value is not None] == [1]
    assert apply_column(place.location, means()).listed.images == 3


def test_values_of_an_unfinished_removal_are_replaced_unless_they_have_other_fields(place: DatasetPath) -> None:
    apply_column(place.location, means())
    column = columns.applied_by(load_manifest(place.location), means().stage)
    columns.change_manifest(place.handle, lambda manifest: columns.without_column(manifest, column))
    assert findings(place) == []
    other = column.model_copy(update={"fields": column.fields[1:]})
    table = read_tables(place.location, next(place.log.read_all()), ["images"])["images"]
    with pytest.raises(UsageError, match="stage_means wasn't removed from all shards"):
        columns.unjudged(table, other)
    assert apply_column(place.location, means(of=2)).listed.images == 4
    sha256 = columns.column_of(means(of=2).load()).sha256
    assert {value["stage_sha256"] for value in values(place).values()} == {sha256}
    assert findings(place) == []


def test_a_removal_during_a_run_wins(place: DatasetPath) -> None:
    handle, column = place.handle, columns.column_of(means().load())
    put(place)
    remove_column(place.location, means().stage)
    stage = columns.custom_stage(means(), means().load())
    with pytest.raises(UsageError, match="stage_means was removed in the meantime"):
        list(run_here(handle, stage, partial(columns.write_column, handle, column), [ChosenImages(0, (0, 1))]))
    assert (values_of_tables(place), findings(place)) == ([None, None], [])


def test_damage_beside_the_columns_is_repaired(place: DatasetPath) -> None:
    apply_column(place.location, means())
    apply_column(place.location, halves())
    before = data_files(place)
    commit = place.log.location(1, 3)
    commit.put(commit.read().replace(b'"masks":', b'"masks_":'))
    tar = place.location / next(place.log.read_all(only=[0])).file("shards").path
    tar.put(tar.read()[:-512])
    assert repair(place.location).not_repaired == {}
    assert (data_files(place), findings(place)) == (before, [])
    images = place.location / next(place.log.read_all(only=[0])).file("images").path
    images.delete()
    assert "what `segmint label` and `segmint apply` set" in repair(place.location).not_repaired[0]


def test_the_audit_finds_a_changed_list_of_columns(place: DatasetPath) -> None:
    apply_column(place.location, means())
    manifest, generation = load_latest_manifest(place.location)
    other = manifest.model_copy(
        update={"applied_columns": (manifest.applied_columns[0].model_copy(update={"version": "3"}),)}
    )
    (place.location / f"dataset.g{generation + 1}.json").put(other.to_json())
    assert {finding.code for finding in audit_integrity(place.location).findings} == {Code.BAD_MANIFEST}


def test_a_name_of_the_build_and_an_earlier_format_are_refused(place: DatasetPath) -> None:
    column = columns.column_of(means().load())
    manifest = load_manifest(place.location)
    with pytest.raises(UsageError, match="a dataset of format 3 can't get columns"):
        columns.check_column(manifest.model_copy(update={"schema_version": 3}), column)
    (built,) = (each for each in [means().load().column] if each is not None)
    with pytest.raises(UsageError, match="stage_means is a column of the dataset's build"):
        columns.check_column(manifest.model_copy(update={"stages": (built,)}), column)
    labels = replace(means().load(), column=None, labels=True)
    with pytest.raises(UsageError, match="has no column to add"):
        columns.column_of(labels)
    assert write(place, 0).status == "committed"


def test_a_removed_image_that_a_column_names_is_found(place: DatasetPath) -> None:
    """Image 4 names image 1, as a stage that looks for similar images may."""
    apply_column(place.location, nearest())
    takedown(place.location, TakedownRequest(ids=("image-0",)), "asked")
    proof = prove(place.location, "image-0")
    (shard,) = place.log.read_all(only=[1])
    assert proof.found == (f"{shard.file('images').path}, ordinal 3, stage_nearest",)
    remove_column(place.location, nearest().stage)
    assert (prove(place.location, "image-0").found, findings(place)) == ((), [])


@pytest.mark.long
def test_a_build_goes_on_beside_a_column(tmp_path: Path, weights: None) -> None:
    """It writes its other shards, grows, and retries rows, which lack values until the stage is applied again."""
    catalog = small_catalog(tmp_path / "photos")
    config = write_config(tmp_path / "build.yaml", catalog, tmp_path / "dataset")
    dataset = location_of(tmp_path / "dataset")
    build_dataset(config, only=[0], segment_class=TwoMaskSegment)
    assert apply_column(dataset, means()).listed.images == 2
    build_dataset(config, segment_class=TwoMaskSegment)
    row = {"uri": write_photographs(tmp_path / "photos", 8)[7], "license": "CC0-1.0", "image_id": "new"}
    write_catalog(catalog, [*map(json.loads, catalog.read_text().splitlines()), row])
    open_or_create(load_config(str(config)), dataset.storage, grow=True)
    build_dataset(config, retry=[Reason.NOT_FOUND], segment_class=TwoMaskSegment)
    assert audit_integrity(dataset).findings.total == 0
    found = [sample.id for sample in open_dataset(dataset.uri) if sample.row.get("stage_means") is not None]
    assert found == [1, 2]
    assert apply_column(dataset, means()).listed.images == 5
    assert audit_integrity(dataset).findings.total == 0
    assert all(sample.row["stage_means"]["colors"] for sample in open_dataset(dataset.uri))
