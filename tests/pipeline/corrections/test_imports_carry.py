"""Masks of people in one dataset for another one: what is carried, what is not and why."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from segmint.catalogs.dataset.mask_labels import MASK_LABEL
from segmint.catalogs.dataset.tombstones import TakedownRequest as TakedownAsked
from segmint.infra.errors import UsageError
from segmint.operators.rows import DESCRIBED, to_table
from segmint.operators.shards.revise import read_committed_rows
from segmint.pipeline.corrections.import_merge import ImportMode
from segmint.pipeline.corrections.imports import ImportFormat, ImportRequest, import_masks, list_import
from segmint.pipeline.corrections.redact import redact
from segmint.pipeline.corrections.takedown import takedown
from segmint.pipeline.quality.audit.integrity import audit_integrity
from tests.support.described_rows import accepted_row, described, rejected_row
from tests.support.imported import import_coco, masks_of, write_coco
from tests.support.locations import location_of
from tests.support.protocol import DatasetPath, contents, two_shards, write

NEAR = (2, 3, 12, 18)  # IoU 0.88 with the first mask of an image
APART = (22, 5, 28, 30)


@pytest.fixture
def places() -> Iterator[tuple[DatasetPath, DatasetPath]]:
    """Two datasets of the same photographs; in the first one people changed masks of images 1, 2, 4 and 5."""
    with ExitStack() as stack:
        first, second = (stack.enter_context(two_shards()) for _ in range(2))
        images = {1: [(NEAR, 10_000), (APART, None)], 2: [(APART, None)], 4: [], 5: [(APART, None)]}
        import_coco(first, write_coco(first, images), annotator="Ada", license="CC0-1.0")
        yield first, second


def carry(first: DatasetPath, second: DatasetPath, mode: ImportMode = ImportMode.CARRY) -> ImportRequest:
    return ImportRequest(location_of(first.uri), ImportFormat.DATASET, mode)


def test_masks_of_people_are_carried_with_what_is_said_of_them(places: tuple[DatasetPath, DatasetPath]) -> None:
    first, second = places
    before = masks_of(first, 0)
    listed = list_import(second.location, carry(first, second))
    assert (listed.images, listed.masks["corrected"], listed.masks["added"], listed.skipped_masks) == (3, 1, 3, {})
    done = import_masks(second.location, carry(first, second))
    assert done.changed_shards == (0, 1)
    _, near, apart = masks_of(second, 0)
    assert (near["source"], near["parent"], near["annotator"]) == ("corrected", 10_000, "Ada")
    assert (apart["source"], apart["parent"], apart["origin"]) == ("imported", None, before[1]["origin"])
    assert [mask["segmentation"] for mask in (near, apart)] == [mask["segmentation"] for mask in before]
    assert near["model"] == "0" * 64  # the weights of the first dataset: here, nothing would mean these
    assert len(masks_of(second, 3)) == 2  # what was only deleted there stays: another model made it
    assert audit_integrity(second.location).findings.total == 0
    after = contents(second)
    assert import_masks(second.location, carry(first, second)).changed_shards == ()
    assert contents(second) == after


def test_a_label_that_a_person_removed_is_not_inherited_from_a_model(places: tuple[DatasetPath, DatasetPath]) -> None:
    first, second = places
    for place, columns in ((first, (None, None, "person")), (second, ("cup", 0.5, f"model:{'a' * 64}"))):
        commit = place.log.latest(0)
        assert commit is not None
        rows = read_committed_rows(place.location, commit)
        rows[0]["masks"][0] |= dict(zip(MASK_LABEL, columns, strict=True))
        write(place, 0, generation=commit.generation + 1, rows=to_table(rows, DESCRIBED))
    import_masks(second.location, carry(first, second))
    near = masks_of(second, 0)[1]
    assert (near["parent"], *(near[name] for name in MASK_LABEL)) == (10_000, None, None, "person")
    assert audit_integrity(second.location).findings.total == 0
    assert import_masks(second.location, carry(first, second)).changed_shards == ()


def test_a_stage_of_annotation_is_that_of_the_image(places: tuple[DatasetPath, DatasetPath]) -> None:
    first, second = places
    commit = first.log.latest(0)
    assert commit is not None
    rows = read_committed_rows(first.location, commit)
    rows[0]["annotation_stage"] = "semi"
    write(first, 0, generation=commit.generation + 1, rows=to_table(rows, DESCRIBED))
    import_masks(second.location, carry(first, second))
    commit = second.log.latest(0)
    assert commit is not None
    row = read_committed_rows(second.location, commit)[0]
    assert (row["annotation_stage"], row["stage"], row["annotator"]) == ("semi", None, "Ada")


def test_with_add_no_mask_gives_way(places: tuple[DatasetPath, DatasetPath]) -> None:
    first, second = places
    import_masks(second.location, carry(first, second, ImportMode.ADD))
    assert [mask["source"] for mask in masks_of(second, 0)] == ["automatic", "automatic", "corrected", "imported"]
    assert [mask["parent"] for mask in masks_of(second, 0)] == [None] * 4


def test_what_is_not_carried_is_counted_with_the_reason(
    places: tuple[DatasetPath, DatasetPath], tmp_path: Path
) -> None:
    first, second = places
    takedown(second.location, TakedownAsked(ids=("sa_5",)), "asked")
    regions = tmp_path / "regions.jsonl"
    regions.write_text('{"id": 1, "kind": "other", "x": 0, "y": 0, "w": 20, "h": 30}\n')
    redact(second.location, location_of(regions))
    small = accepted_row(1) | {"width": 39}
    commit = second.log.latest(0)
    assert commit is not None
    row, *_ = read_committed_rows(second.location, commit)
    write(second, 0, generation=commit.generation + 1, rows=described([row, small, rejected_row(2)]))
    listed = list_import(second.location, carry(first, second))
    assert listed.skipped_masks == {
        "other redactions": 2,
        "released in another size": 1,
        "no image of the same source": 1,
    }
    assert "not carried over: 2 masks: other redactions" in listed.lines()
    before = contents(second)
    assert import_masks(second.location, carry(first, second)).changed_shards == ()
    assert contents(second) == before
    redact(first.location, location_of(regions))
    listed = list_import(second.location, carry(first, second))
    assert listed.skipped_masks == {"released in another size": 1, "no image of the same source": 1}


def test_a_dataset_cannot_be_carried_into_itself(places: tuple[DatasetPath, DatasetPath]) -> None:
    first, _ = places
    with pytest.raises(UsageError, match="is the dataset itself"):
        list_import(first.location, carry(first, first))
    with pytest.raises(UsageError, match="is not a segmint dataset"):
        list_import(first.location, ImportRequest(location_of("/nowhere"), ImportFormat.DATASET, ImportMode.ADD))


def test_a_source_that_is_there_twice_gets_its_masks_twice(places: tuple[DatasetPath, DatasetPath]) -> None:
    first, second = places
    twin = accepted_row(1) | {"source_sha256": f"{0:064x}"}
    write(second, 0, generation=2, rows=described([accepted_row(0), twin, rejected_row(2)]))
    import_masks(second.location, carry(first, second, ImportMode.ADD))
    assert [len(masks_of(second, n)) for n in (0, 1)] == [4, 4]
    assert masks_of(second, 1)[0]["segmentation"] == masks_of(second, 0)[0]["segmentation"]
