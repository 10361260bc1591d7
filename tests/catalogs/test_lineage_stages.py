"""Columns of custom stages: what the manifest may say, and what keeps the columns of a dataset that has some."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from segmint.catalogs.dataset.manifest import DatasetManifest, load_manifest
from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.catalogs.dataset.submissions import put_submission
from segmint.catalogs.dataset.tombstones import TakedownRequest
from segmint.catalogs.findings import Code
from segmint.catalogs.lineage import StageColumn
from segmint.infra.errors import UsageError
from segmint.operators.rows import DESCRIBED, DESCRIBED_MASK, SCHEMAS, shard_schemas, to_table, with_fields
from segmint.operators.shards.revise import read_file, read_table
from segmint.pipeline.corrections.amend import amend
from segmint.pipeline.corrections.merge import merge_submissions
from segmint.pipeline.corrections.redact import redact
from segmint.pipeline.corrections.repair import repair
from segmint.pipeline.corrections.takedown import takedown
from segmint.pipeline.quality.audit.integrity import audit_integrity
from segmint.pipeline.quality.report.croissant import record_set
from segmint.pipeline.quality.statistics.masks import open_tables
from tests.support.described_rows import accepted_row, rejected_row
from tests.support.locations import location_of
from tests.support.protocol import ROWS, SHARDS, DatasetPath, begin, quick_folder, write
from tests.support.submissions import answer_to, new_mask

TILE = {"name": "tile", "type": "struct", "fields": [{"name": "x", "type": "int8"}, {"name": "tag", "type": "string"}]}
BLUR = {
    "name": "blur",
    "table": "images",
    "fields": [{"name": "variance", "type": "double"}, {"name": "tiles", "type": "list", "fields": [TILE]}],
}
DEPTH = {"name": "depth", "table": "masks", "fields": [{"name": "rank", "type": "uint16"}]}
STAGES = tuple(StageColumn.model_validate(stage) for stage in (BLUR, DEPTH))


def blur(ordinal: int) -> dict[str, Any]:
    """The value of an image."""
    return {"variance": ordinal / 4, "tiles": [{"x": ordinal, "tag": "é"}, {"x": None, "tag": None}]}


def described(shard: int) -> pa.Table:
    """Rows of a shard as stages will leave them: two images, the second one with a mask that has no value."""
    rows = [accepted_row(shard * ROWS + index) for index in range(ROWS - 1)]
    for row in rows:
        row["stage_blur"] = blur(row["ordinal"])
        for place, mask in enumerate(row["masks"]):
            mask["stage_depth"] = {"rank": 7 * row["id"] + place}
    rows[1]["masks"][1]["stage_depth"] = None
    masks = pa.list_(pa.struct([*DESCRIBED_MASK, STAGES[1].arrow_field]))
    whole = DESCRIBED.set(DESCRIBED.get_field_index("masks"), pa.field("masks", masks))
    schema = with_fields(whole, [STAGES[0].arrow_field])
    return to_table([*rows, rejected_row(shard * ROWS + ROWS - 1)], schema)


@pytest.fixture
def place() -> Iterator[DatasetPath]:
    """Two shards of three rows: images 1, 2, 4 and 5 with two masks each, rows 3 and 6 refused."""
    with quick_folder() as folder:
        place = DatasetPath(str(folder / "dataset"), stages=STAGES)
        begin(place)
        for shard in range(SHARDS):
            assert write(place, shard, rows=described(shard)).status == "committed"
        yield place


def values(place: DatasetPath) -> tuple[dict[int, Any], dict[int, Any]]:
    """The value of each image and of each mask, by id."""
    found = []
    for kind, key in (("images", "id"), ("masks", "annotation_id")):
        tables = [read_table(read_file(place.location, commit.file(kind)), kind) for commit in place.log.read_all()]
        column = "stage_blur" if kind == "images" else "stage_depth"
        found.append({row[key]: row[column] for table in tables for row in table.to_pylist()})
    return found[0], found[1]


def findings(place: DatasetPath) -> list[str]:
    return [finding.line() for finding in audit_integrity(place.location).findings]


def rank(mask: int) -> dict[str, int]:
    image, index = divmod(mask, 10_000)
    return {"rank": 7 * image + index}


BUILT = (
    {image: blur(image - 1) for image in (1, 2, 4, 5)},
    {
        **{mask: rank(mask) for mask in (10_000, 10_001, 20_000, 40_000, 40_001, 50_000)},
        **dict.fromkeys((20_001, 50_001)),
    },
)


def test_a_dataset_has_the_columns_and_no_finding(place: DatasetPath) -> None:
    assert values(place) == BUILT
    assert findings(place) == []
    manifest = load_manifest(place.location)
    assert (manifest.stages, manifest.published) == (STAGES, True)
    assert DatasetManifest.from_json(manifest.to_json()) == manifest
    (commit, _) = place.log.read_all()
    schemas = shard_schemas(STAGES)
    for kind, schema in SCHEMAS.items():
        stored = pq.read_schema(io.BytesIO(read_file(place.location, commit.file(kind))))
        assert stored == schemas[kind]
        assert stored.names[: len(schema)] == schema.names


def test_readers_give_the_columns(place: DatasetPath) -> None:
    assert {sample.id: sample.row["stage_blur"] for sample in open_dataset(place.uri)} == BUILT[0]
    with open_tables(place.location) as tables:
        found = tables.query("SELECT annotation_id, stage_depth.rank AS rank FROM masks ORDER BY 1").to_pylist()
    assert {row["annotation_id"]: row["rank"] and {"rank": row["rank"]} for row in found} == BUILT[1]
    fields = json.dumps(record_set("images", shard_schemas(STAGES)["images"]))
    assert '"images/stage_blur/tiles/tag"' in fields


def test_corrections_keep_the_columns(place: DatasetPath, tmp_path: Path) -> None:
    images, masks = dict(BUILT[0]), dict(BUILT[1])
    takedown(place.location, TakedownRequest(ids=("sa_1",)), "asked")
    del images[1], masks[10_000], masks[10_001]
    assert values(place) == (images, masks)

    (tmp_path / "regions.jsonl").write_text(json.dumps({"id": 2, "kind": "face", "x": 1, "y": 2, "w": 9, "h": 9}))
    redact(place.location, location_of(tmp_path / "regions.jsonl"))
    row = {"image_id": "image-3", "uri": "photo_3.jpg", "license": None, "attribution": "Zoë"}
    (tmp_path / "catalog.jsonl").write_text(json.dumps(row))
    amend(place.location, location_of(tmp_path / "catalog.jsonl"))
    assert values(place) == (images, masks)

    put_submission(place.location, answer_to(place.location, 4, [new_mask((3, 4, 11, 21), 40_001)]))
    merge_submissions(place.location)
    del masks[40_001]
    assert values(place) == (images, masks | {40_002: None})
    assert [commit.generation for commit in place.log.read_all()] == [3, 3]

    commit = place.log.location(1, 3)
    commit.put(commit.read().replace(b'"masks":', b'"masks_":'))
    assert repair(place.location).repaired == ["commits/000001.g3.json"]
    assert values(place) == (images, masks | {40_002: None})
    assert findings(place) == []


@pytest.mark.parametrize(
    "stages",
    [
        (),
        STAGES[:1],
        (*STAGES, STAGES[1].model_copy(update={"name": "more"})),
        (StageColumn.model_validate({**BLUR, "fields": BLUR["fields"][:1]}), STAGES[1]),
        (STAGES[0], StageColumn.model_validate({**DEPTH, "fields": [{"name": "rank", "type": "int32"}]})),
    ],
)
def test_other_columns_than_those_of_the_manifest_are_found_and_never_rewritten(
    place: DatasetPath, stages: tuple[StageColumn, ...], tmp_path: Path
) -> None:
    manifest = load_manifest(place.location).model_copy(update={"stages": stages})
    (place.location / "dataset.json").put(manifest.to_json())
    assert {finding.code for finding in audit_integrity(place.location).findings} == {Code.BAD_TABLE}
    (tmp_path / "regions.jsonl").write_text(json.dumps({"id": 2, "kind": "face", "x": 1, "y": 2, "w": 9, "h": 9}))
    with pytest.raises(Exception, match="other columns"):
        redact(place.location, location_of(tmp_path / "regions.jsonl"))
    assert values(place) == BUILT


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "Blur"}, "name: String should match"),
        ({"name": "b/../c"}, "name: String should match"),
        ({"table": "rejects"}, "table: Input should be 'images' or 'masks'"),
        ({"type": "double"}, "type: Input should be 'struct'"),
        ({"fields": []}, "blur: a struct can't have 0 fields"),
        ({"fields": [{"name": "x", "type": "decimal"}]}, "fields.0.type: Input should be"),
        ({"fields": [{"name": "x", "type": "list"}]}, "x: a list can't have 0 fields"),
        ({"fields": [{"name": "x", "type": "bool", "fields": [TILE]}]}, "x: a bool can't have 1 fields"),
        ({"fields": [{"name": "x", "type": "bool"}] * 2}, "blur: two fields have the same name"),
        ({"default": 0}, "default: Extra inputs are not permitted"),
    ],
)
def test_an_invalid_column_is_refused_by_name(place: DatasetPath, changes: dict[str, Any], told: str) -> None:
    value = json.loads((place.location / "dataset.json").read())
    value["stages"][0] |= changes
    with pytest.raises(UsageError, match=r"is not a dataset's manifest: stages\.0\.?") as caught:
        DatasetManifest.from_json(json.dumps(value).encode())
    assert told in str(caught.value)


def test_two_stages_have_two_names(place: DatasetPath) -> None:
    value = json.loads((place.location / "dataset.json").read())
    value["stages"].append({**DEPTH, "name": "blur"})
    with pytest.raises(UsageError, match="two stages have the same name"):
        DatasetManifest.from_json(json.dumps(value).encode())
    with pytest.raises(ValidationError):
        StageColumn.model_validate({**BLUR, "name": "x" * 64})
