"""The engine of `apply`: the rows that it reads, and runs with Ray, in which images kill their workers."""

from collections.abc import Iterator

import pyarrow as pa
import pytest

from segmint.catalogs.lineage import StageColumn
from segmint.infra.errors import UsageError
from segmint.operators.rows import DESCRIBED, PREPARED
from segmint.pipeline.config.config import LOCAL, SegmenterPoolConfig
from segmint.pipeline.corrections.apply import engine
from segmint.pipeline.corrections.apply.engine import (
    FAILED,
    ChosenImages,
    described_schema,
    read_blocks,
    read_chosen,
    to_block,
)
from segmint.pipeline.corrections.apply.masks import ApplyList, MasksMode, apply_masks
from segmint.pipeline.corrections.mask_revision import RevisionResult
from segmint.pipeline.quality.audit.integrity import audit_integrity
from tests.support.applied import segmenter
from tests.support.imported import masks_of
from tests.support.protocol import DatasetPath, broken_promises, contents, two_shards


@pytest.fixture
def place() -> Iterator[DatasetPath]:
    with two_shards() as place:
        yield place


def test_a_window_contains_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "WINDOW_IMAGES", 5)
    one, two, three = (ChosenImages(shard, tuple(range(rows))) for shard, rows in ((0, 2), (1, 3), (2, 9)))
    assert engine.first_window([one, two, three]) == [one, two]
    assert engine.first_window([three, one]) == [three]


def test_the_reader_yields_exactly_the_chosen_rows_as_a_stage_gets_them(
    place: DatasetPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "ROWS_PER_BLOCK", 1)
    prepared = list(read_blocks(to_block(ChosenImages(1, (3, 4))), dataset=place.handle, schema=PREPARED))
    assert [table.schema for table in prepared] == [PREPARED, PREPARED]
    rows = pa.concat_tables(prepared).to_pylist()
    assert [(row["ordinal"], row["fault"], row["original"]) for row in rows] == [(3, None, None), (4, None, None)]
    assert all(row["release"].startswith(b"\xff\xd8") for row in rows)
    (described,) = read_chosen(place.handle, described_schema([]), ChosenImages(0, (1,)))
    assert described.schema == DESCRIBED
    assert len(described.to_pylist()[0]["masks"]) == 2


def test_the_column_of_an_earlier_run_is_not_read() -> None:
    fields = [{"name": "gray", "type": "double"}]
    stages = [
        StageColumn.model_validate({"name": name, "table": table, "fields": fields})
        for name, table in (("mean", "images"), ("rank", "masks"))
    ]
    both, one = described_schema(stages), described_schema(stages, "stage_mean")
    assert [name for name in both.names if name.startswith("stage_")] == ["stage_mean"]
    assert "stage_mean" not in one.names
    assert "stage_rank" in [field.name for field in one.field("masks").type.value_type]


def applied_by_ray(place: DatasetPath, how: dict[str, str]) -> RevisionResult[ApplyList]:
    """Apply a segmenter with Ray. Of the images in `how`, it fails in the given ways."""
    resources = SegmenterPoolConfig(num_cpus=1, timeout_s=20)
    faulty = segmenter("Faulty", how=how).model_copy(update={"resources": resources})
    return apply_masks(place.location, faulty, MasksMode.REPLACE, resources=LOCAL)


@pytest.mark.usefixtures("processes")
def test_ray_runs_the_segmenter_and_an_image_that_fails_stops_no_other(place: DatasetPath) -> None:
    done = applied_by_ray(place, {"2": "raise"})
    assert (done.listed.images, done.changed_shards, done.listed.masks) == (3, (0, 1), {"new": 3, "replaced": 6})
    assert done.listed.not_checked == [f"1 image: {FAILED}"]
    assert "ValueError: no masks for image 2" in done.listed.examples[0]
    assert [len(masks_of(place, ordinal)) for ordinal in (0, 1, 3, 4)] == [1, 2, 1, 1]
    assert [finding.line() for finding in audit_integrity(place.location).findings] + broken_promises(place) == []


@pytest.mark.long
def test_images_that_kill_or_block_their_worker_stop_no_other(place: DatasetPath) -> None:
    done = applied_by_ray(place, {"1": "die", "5": "hang"})
    assert (done.listed.images, done.changed_shards) == (2, (0, 1))
    assert [line.split(": ")[3] for line in done.listed.examples] == ["killed_worker", "timed_out"]
    assert [finding.line() for finding in audit_integrity(place.location).findings] + broken_promises(place) == []


@pytest.mark.long
def test_a_segmenter_that_kills_its_worker_on_the_control_image_changes_nothing(place: DatasetPath) -> None:
    before = contents(place)
    with pytest.raises(UsageError, match="failed on a control image of 256 x 192 pixels: it ended its worker"):
        applied_by_ray(place, {"control": "die"})
    assert contents(place) == before
