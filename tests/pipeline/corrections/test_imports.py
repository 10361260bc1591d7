"""Imports: what becomes of a dataset, beside builds and other corrections, of a tool's round trip, and of bad files."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segmint.catalogs.dataset.commits import Reservation
from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.catalogs.dataset.tombstones import TakedownRequest as TakedownAsked
from segmint.catalogs.dataset.versions import latest_version
from segmint.infra.errors import UsageError
from segmint.infra.ray_session import Cluster
from segmint.operators.shards.revise import read_file
from segmint.pipeline.corrections import imports
from segmint.pipeline.corrections.apply.columns import label
from segmint.pipeline.corrections.correction import revise
from segmint.pipeline.corrections.import_merge import ImportMode
from segmint.pipeline.corrections.import_staging import MatchMode
from segmint.pipeline.corrections.imports import (
    ImportFormat,
    ImportList,
    ImportRequest,
    detect_format,
    import_masks,
    list_import,
)
from segmint.pipeline.corrections.mask_revision import RevisionResult
from segmint.pipeline.corrections.redact import redact
from segmint.pipeline.corrections.repair import repair
from segmint.pipeline.corrections.takedown import takedown
from segmint.pipeline.export.export import ExportOptions, export_dataset
from segmint.pipeline.export.formats import Format
from segmint.pipeline.quality.audit.audit import audit_dataset
from segmint.pipeline.quality.audit.integrity import audit_integrity
from segmint.pipeline.quality.audit.result import result_lines
from segmint.pipeline.quality.report.report import write_report
from segmint.pipeline.quality.statistics.masks import open_tables
from segmint.pipeline.quality.statistics.statistics import compute_statistics
from tests.support import protocol
from tests.support.described_rows import described, rejected_row
from tests.support.history_commands import grow
from tests.support.imported import FIRST, SECOND, coco_of, import_coco, masks_of, write_coco
from tests.support.label_studio import answered, convert, decode, painted
from tests.support.labeled import shades
from tests.support.locations import location_of
from tests.support.protocol import DatasetPath, contents, retry, two_shards, write
from tests.support.reported import QUICK
from tests.support.stepped import SteppedThreads, stepping

CUT = (3, 4, 11, 21)  # a part of SECOND
APART = (22, 5, 28, 30)


@pytest.fixture
def place() -> Iterator[DatasetPath]:
    """Two shards of three rows: images 1, 2, 4 and 5 with two masks each, rows 3 and 6 refused."""
    with two_shards() as place:
        yield place


def findings(place: DatasetPath) -> list[str]:
    return [finding.line() for finding in audit_integrity(place.location).findings]


def sources(place: DatasetPath, ordinal: int) -> list[tuple[int, str, int | None]]:
    return [(mask["annotation_id"], mask["source"], mask["parent"]) for mask in masks_of(place, ordinal)]


def test_the_masks_of_a_file_become_those_of_its_images(place: DatasetPath) -> None:
    before = contents(place)
    path = write_coco(place, {1: [(FIRST, 10_000), (CUT, 10_001), (APART, None)], 4: [(FIRST, 40_000)]})
    done = import_coco(place, path, license="CC0-1.0", annotator="Ada")
    assert (done.listed.images, done.changed_shards) == (2, (0, 1))
    counted = {"same": 2, "corrected": 1, "added": 1, "deleted": 1, "empty": 0, "repeated": 0}
    assert done.listed.masks == counted
    automatic = (10_000, "automatic", None)
    assert sources(place, 0) == [automatic, (10_002, "corrected", 10_001), (10_003, "imported", None)]
    assert sources(place, 3) == [(40_000, "automatic", None)]
    digest = location_of(path).sha256()
    assert masks_of(place, 0)[2]["origin"] == {"sha256": digest, "license": "CC0-1.0"}
    assert findings(place) == []
    after = contents(place)
    assert {path for path in before if path.startswith(("rejects/", "catalog/", "dataset"))} <= after.keys()
    assert not [path for path in after if path.startswith("reservations/")]
    version = latest_version(place.location)
    assert version is not None
    said = f"{path.name}, SHA-256 {digest[:12]}, replace: 1 corrected, 1 added and 1 deleted in 2 images"
    assert (version.command, version.reason) == ("import", said)

    again = import_coco(place, path, license="CC0-1.0", annotator="Ada")
    assert (again.listed.images, again.changed_shards, again.version) == (0, (), done.version)
    assert contents(place) == after
    assert again.lines()[0] == f"nothing to import into {place.uri}"


def test_the_temporary_folder_may_be_named_like_a_partition(
    place: DatasetPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_coco(place, {1: [(FIRST, 10_000), (APART, None)]})
    temporary = tmp_path / "ordinal=7"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    assert import_coco(place, path).listed.masks["added"] == 1


def test_readers_take_masks_without_scores(place: DatasetPath, tmp_path: Path) -> None:
    import_coco(place, write_coco(place, {1: [(FIRST, 10_000), (APART, None)], 2: [(APART, None)], 4: []}))
    samples = {sample.id: sample for sample in open_dataset(place.uri)}
    assert [len(samples[id].masks) for id in (1, 2, 4, 5)] == [2, 1, 0, 2]
    drawn = samples[1].masks[1]
    assert (drawn.id, drawn.predicted_iou, drawn.stability_score, drawn.point_coords) == (10_002, None, None, ())
    assert (drawn.crop_box, drawn.area) == ((0.0, 0.0, 40.0, 30.0), 150)
    assert np.flatnonzero(drawn.mask.any(axis=0)).tolist() == list(range(5, 30))
    assert samples[2].row["statistics"]["mean_predicted_iou"] is None
    with open_tables(place.location) as tables:
        statistics = compute_statistics(tables, sample=10)
    assert statistics.sources == {"automatic": 3, "imported": 2}
    assert statistics.predicted_iou.mean == 0.93
    assert sum(statistics.predicted_iou.counts or ()) == 3
    assert sum(statistics.relative_size.counts or ()) == statistics.masks == 5
    options = ExportOptions(Format.COCO, with_images=False)
    export_dataset(place.location, options, location_of(tmp_path / "coco"))
    exported = json.loads((tmp_path / "coco" / "instances.json").read_text())
    assert [each["predicted_iou"] for each in exported["annotations"] if each["image_id"] == 1] == [0.93, None]


def test_an_export_imported_again_changes_nothing(place: DatasetPath, tmp_path: Path) -> None:
    """Before and after people changed masks; ids are found by the exported numbers."""
    for edited in (False, True):
        if edited:
            import_coco(place, write_coco(place, {1: [(CUT, 10_001), (APART, None)], 5: []}))
        out = tmp_path / str(edited)
        export_dataset(place.location, ExportOptions(Format.COCO, with_images=False), location_of(out))
        before = contents(place)
        done = import_coco(place, out / "instances.json")
        assert (done.listed.images, done.listed.named) == (0, 4)
        assert contents(place) == before


@pytest.mark.parametrize(
    ("format", "kind"),
    [(Format.SA_1B, ImportFormat.FOLDER), (Format.YOLO, ImportFormat.YOLO), (Format.LABEL_MAPS, None)],
)
def test_folders_of_exports_change_nothing_except_label_maps(
    place: DatasetPath, tmp_path: Path, format: Format, kind: ImportFormat | None
) -> None:
    """The polygons of YOLO give the same masks, and without ids, these are the same."""
    out = location_of(tmp_path / "out")
    export_dataset(place.location, ExportOptions(format), out)
    before = contents(place)
    asked = ImportRequest(out, detect_format(out), ImportMode.REPLACE)
    if kind is None:
        with pytest.raises(UsageError, match="belongs to a label map of `segmint export`"):
            import_masks(place.location, asked)
    else:
        assert asked.format is kind
        listed = import_masks(place.location, asked).listed
        assert (listed.named, listed.images, listed.unreadable, listed.masks["same"]) == (4, 0, 0, 8)
    assert contents(place) == before


def test_add_keeps_all_masks_and_says_what_the_user_says(place: DatasetPath) -> None:
    path = write_coco(place, {1: [(FIRST, None), (CUT, None)]}, label="tile")
    done = import_coco(place, path, ImportMode.ADD, source="manual")
    assert sources(place, 0)[2:] == [(10_002, "manual", None)]
    assert [mask["label"] for mask in masks_of(place, 0)] == ["tile", None, "tile"]
    assert done.listed.mode == "add"
    assert import_coco(place, path, ImportMode.ADD).changed_shards == ()
    assert findings(place) == []


def test_what_cannot_be_imported_is_counted_and_named(place: DatasetPath) -> None:
    takedown(place.location, TakedownAsked(ids=("sa_5",)), "asked")
    document = coco_of({1: [(FIRST, 10_000)], 2: [(CUT, 20_001)], 3: [], 5: [(FIRST, None)], 99: [(FIRST, None)]})
    document["annotations"][0]["segmentation"]["counts"] = "zz"  # of image 1
    document["images"].append({"id": "again", "file_name": "upload/sa_2.jpg", "height": 30, "width": 40})
    document["images"].append({"id": "other", "file_name": "sa_4.jpg", "height": 31, "width": 40})
    document["annotations"].append({"id": 5, "image_id": "other", "segmentation": {"size": [31, 40], "counts": [1240]}})
    path = Path(f"{place.uri}.json")
    path.write_text(json.dumps(document))
    listed = list_import(place.location, ImportRequest(location_of(path), ImportFormat.COCO, ImportMode.REPLACE))
    assert (listed.images, listed.named, listed.unknown, listed.superseded) == (1, 5, 1, 1)
    unreadable = "a mask that cannot be read, so nothing is replaced"
    size = "masks of another size than the image"
    assert listed.skipped_images == {unreadable: 1, size: 1, "refused by the build": 1, "taken down": 1}
    assert listed.unreadable == 2
    assert "sa_1.jpg, mask 10000: these RLE counts are damaged" in listed.problems[0]
    assert "sa_4.jpg, mask 5: 40 x 31 pixels, but its image is 40 x 30" in listed.problems[1]
    assert "skipped: 1 image not in the dataset, such as sa_99.jpg" in listed.lines()
    import_coco(place, path)
    assert sources(place, 0) == [(10_000, "automatic", None), (10_001, "automatic", None)]
    assert sources(place, 1) == [(20_002, "corrected", 20_001)]
    assert findings(place) == []
    assert import_coco(place, path).changed_shards == ()


@pytest.mark.parametrize(("mode", "added"), [(ImportMode.REPLACE, 0), (ImportMode.ADD, 1)])
def test_masks_that_contradict_their_boxes_delete_nothing(place: DatasetPath, mode: ImportMode, added: int) -> None:
    document = coco_of({1: [(CUT, None)], 4: [(APART, None)]})
    for annotation in document["annotations"]:
        annotation["bbox"] = [4, 3, 17, 8]  # CUT's
    document["annotations"][0]["segmentation"]["counts"] = [3 * 40 + 4, *[17, 23] * 7, 17, 19 * 40 + 19]  # along rows
    document["annotations"][1]["bbox"] = [5, 22, 25, 6]
    path = Path(f"{place.uri}.json")
    path.write_text(json.dumps(document))
    before = sources(place, 0)
    done = import_coco(place, path, mode)
    assert sources(place, 0) == before
    assert len(sources(place, 3)) == 1 + 2 * added
    assert (done.listed.unreadable, done.listed.images) == (1, 1)
    assert "sa_1.jpg, mask 900: its pixels are in the box [4.0, 0.0, 11.0, 30.0]" in done.listed.problems[0]


@pytest.mark.parametrize(("mode", "changed"), [(ImportMode.REPLACE, 0), (ImportMode.ADD, 1)])
def test_a_mask_without_an_image_may_be_of_any_image_of_the_file(
    place: DatasetPath, mode: ImportMode, changed: int
) -> None:
    document = coco_of({1: [(APART, None)], 4: [(FIRST, 40_000), (SECOND, 40_001)]})
    document["annotations"][1]["image_id"] = 99
    path = Path(f"{place.uri}.json")
    path.write_text(json.dumps(document))
    listed = list_import(place.location, ImportRequest(location_of(path), ImportFormat.COCO, mode))
    assert (listed.images, listed.unreadable, sum(listed.skipped_images.values())) == (changed, 1, 2 - 2 * changed)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "it has no list `images`: expected COCO's JSON"),
        ("{", "is not JSON"),
        (json.dumps(coco_of({77: []})), "no image of .* is in .*the first is sa_77.jpg.*--match"),
        (None, "does not exist"),
    ],
)
def test_a_file_that_names_nothing_is_refused(place: DatasetPath, text: str | None, message: str) -> None:
    path = Path(f"{place.uri}.json")
    if text is not None:
        path.write_text(text)
    before = contents(place)
    with pytest.raises(UsageError, match=message):
        import_coco(place, path)
    assert contents(place) == before


@pytest.mark.parametrize(
    ("match", "name"), [(MatchMode.IMAGE_ID, "masks/image-3.png"), (MatchMode.URI, "file:///a/photo_3.jpg")]
)
def test_images_are_found_by_their_names_in_the_catalog(place: DatasetPath, match: MatchMode, name: str) -> None:
    document = coco_of({1: [(APART, None)], 2: []})
    document["images"][0]["file_name"] = name
    document["images"][1]["file_name"] = "nobody.jpg"
    path = Path(f"{place.uri}.json")
    path.write_text(json.dumps(document))
    done = import_coco(place, path, ImportMode.ADD, match=match)
    assert (done.listed.named, done.listed.unknown, done.changed_shards) == (1, 1, (1,))
    assert sources(place, 3)[2:] == [(40_002, "imported", None)]


def test_names_with_the_marks_of_a_query_or_a_fragment_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = protocol.catalog_rows
    named = lambda *span: [{**row, "uri": f"photos/IMG #{row['id']}?.jpg"} for row in rows(*span)]  # noqa: E731
    monkeypatch.setattr(protocol, "catalog_rows", named)
    with two_shards() as place:
        document = coco_of({1: [(APART, None)]})
        document["images"][0]["file_name"] = "IMG #4?.jpg"
        path = Path(f"{place.uri}.json")
        path.write_text(json.dumps(document))
        assert import_coco(place, path, ImportMode.ADD, match=MatchMode.URI).changed_shards == (1,)


def test_corrections_after_an_import(place: DatasetPath, tmp_path: Path) -> None:
    path = write_coco(place, {1: [(FIRST, 10_000), (APART, None)], 2: [(APART, None)], 4: [], 5: [(CUT, 50_001)]})
    import_coco(place, path, annotator="Ada")
    assert retry(place, 0) == "committed"  # its third row is an image now
    assert sources(place, 0) == [(10_000, "automatic", None), (10_002, "imported", None)]
    assert [source for _, source, _ in sources(place, 2)] == ["automatic"] * 2
    regions = tmp_path / "regions.jsonl"
    regions.write_text('{"id": 1, "kind": "other", "x": 0, "y": 0, "w": 20, "h": 30}\n')
    redact(place.location, location_of(regions))
    share, iou = ([mask[name] for mask in masks_of(place, 0)] for name in ("redacted_share", "redaction_iou"))
    assert share == [1.0, 0.6]
    assert iou[1] == 90 / (600 + 150 - 90)
    takedown(place.location, TakedownAsked(ids=("sa_2",)), "asked")
    grow(place)
    write(place, 2)
    assert findings(place) == []
    assert import_coco(place, path, annotator="Ada").changed_shards == ()


def test_nothing_is_asked_or_recorded_after_growth_if_nothing_changes(place: DatasetPath) -> None:
    path = write_coco(place, {1: [(APART, None)], 7: []})
    import_coco(place, path)
    recorded = latest_version(place.location)
    grow(place)
    reservation = Reservation(2, 1, ("shards/sa_000002-0123456789ab.tar",))  # of a build at work
    reservation.location(place.location).put(reservation.to_json())
    asked = ImportRequest(location_of(path), ImportFormat.COCO, ImportMode.REPLACE)

    def no(_: Any) -> None:
        raise AssertionError("asked")

    for built in (False, True):
        if built:
            reservation.location(place.location).delete()
            write(place, 2, rows=described([rejected_row(n) for n in (6, 7, 8)]))
        done = import_masks(place.location, asked, confirm=no)
        assert (done.listed.images, done.changed_shards) == (0, ())
    assert latest_version(place.location) == recorded


def test_a_redaction_that_came_first_is_measured(place: DatasetPath, tmp_path: Path) -> None:
    regions = tmp_path / "regions.jsonl"
    regions.write_text('{"id": 1, "kind": "other", "x": 0, "y": 0, "w": 20, "h": 30}\n')
    redact(place.location, location_of(regions))
    import_coco(place, write_coco(place, {1: [(APART, None)]}), ImportMode.ADD)
    assert masks_of(place, 0)[2]["redacted_share"] == 0.6
    assert findings(place) == []


def test_lost_files_after_an_import(place: DatasetPath) -> None:
    """All but what people said is in another file, too."""
    import_coco(place, write_coco(place, {1: [(FIRST, 10_000), (APART, None)], 2: []}))
    names = [path for path in contents(place) if path.startswith("masks/")]
    for name in names:
        place.storage.delete(f"{place.uri}/{name}")
    left = repair(place.location).not_repaired
    assert list(left) == [0]
    assert "the annotations of the masks of 1 image" in left[0]


def test_a_table_of_masks_of_which_people_only_deleted_some_is_restored(place: DatasetPath) -> None:
    import_coco(place, write_coco(place, {1: [(SECOND, 10_001)], 2: [], 4: [(FIRST, 40_000)]}), annotator="Ada")
    before = contents(place)
    names = [path for path in before if path.startswith("masks/")]
    for name in names:
        place.storage.delete(f"{place.uri}/{name}")
    done = repair(place.location)
    assert (done.not_repaired, sorted(done.repaired)) == ({}, sorted(names))
    assert contents(place) == before
    assert sources(place, 0) == [(10_001, "automatic", None)]


def test_two_imports_at_once_are_both_done(place: DatasetPath) -> None:
    one = write_coco(place, {1: [(FIRST, None), (SECOND, None), (APART, None)]})
    other = write_coco(place, {2: [(FIRST, None)], 4: []})
    with stepping():
        late = SteppedThreads(lambda: import_coco(place, one))
        while not late.next_call.startswith("create commits"):
            late.step()
        import_coco(place, other)
        late.finish()
    assert late.error is None
    assert [len(masks_of(place, n)) for n in (0, 1, 3)] == [3, 1, 0]
    assert findings(place) == []


def test_an_image_that_is_taken_down_meanwhile_does_not_come_back(place: DatasetPath) -> None:
    path = write_coco(place, {1: [(APART, None)], 2: [(APART, None)]})
    with stepping():
        late = SteppedThreads(lambda: import_coco(place, path))
        while not late.next_call.startswith("create commits"):
            late.step()
        takedown(place.location, TakedownAsked(ids=("sa_1",)), "asked")
        late.finish()
    assert late.error is None
    assert [sample.id for sample in open_dataset(place.uri)] == [2, 4, 5]
    assert sources(place, 1) == [(20_002, "imported", None)]
    assert findings(place) == []


def test_masks_of_a_million_are_held_a_shard_at_a_time(place: DatasetPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the file's order, a shard's change reads its own masks alone."""
    images: dict[int, Any] = {5: [(FIRST, None)], 1: [((0, 0, 2 + n, 3), None) for n in range(25)]}
    path = write_coco(place, images)
    from segmint.pipeline.corrections import import_staging as staging

    monkeypatch.setattr(staging, "BATCH", 4)
    done = import_coco(place, path, ImportMode.ADD)
    assert done.listed.masks["added"] == 25
    assert [mask["area"] for mask in masks_of(place, 0)[2:]] == [3 * (2 + n) for n in range(25)]


@pytest.mark.ray
def test_ray_imports_into_the_shards_of_a_large_dataset(
    place: DatasetPath, local_ray: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segmint.pipeline.corrections.mask_revision.revise", partial(revise, ray_from=2))
    path = write_coco(place, {1: [(APART, None)], 4: [(APART, None)]})
    assert import_coco(place, path, ImportMode.ADD).changed_shards == (0, 1)
    assert sources(place, 0)[2:] == [(10_002, "imported", None)]
    assert findings(place) == []


def test_label_studio_s_answers_come_back(place: DatasetPath, tmp_path: Path) -> None:
    """Taken over as they are, nothing changes; then one mask is painted and one deleted."""
    out = tmp_path / "out"
    export_dataset(place.location, ExportOptions(Format.LABEL_STUDIO, with_images=False), location_of(out))
    tasks = json.loads((out / "tasks.json").read_text())

    def import_tasks(tasks: list[dict[str, Any]]) -> RevisionResult[ImportList]:
        (tmp_path / "answers.json").write_text(json.dumps(tasks))
        file = location_of(tmp_path / "answers.json")
        return import_masks(
            place.location, ImportRequest(file, ImportFormat.LABEL_STUDIO, ImportMode.REPLACE, annotator=None)
        )

    assert import_tasks(answered(tasks)).changed_shards == ()

    def edit(image: int, region: dict[str, Any]) -> dict[str, Any] | None:
        if region["id"] == "10000":
            mask = decode(region)
            mask[:, :6] = False
            return painted(region, mask)
        return None if region["id"] == "50001" else region

    done = import_tasks(answered(tasks, edit))
    assert (done.listed.masks["corrected"], done.listed.masks["deleted"]) == (1, 1)
    assert sources(place, 0) == [(10_001, "automatic", None), (10_002, "corrected", 10_000)]
    assert done.listed.sha256 == location_of(tmp_path / "answers.json").sha256()
    assert findings(place) == []
    with pytest.raises(UsageError, match="can't be read as Label Studio tasks"):
        import_tasks({"images": []})  # type: ignore[arg-type]


def test_prompts_of_label_studio_are_counted_and_a_damaged_stroke_protects_its_image(
    place: DatasetPath, tmp_path: Path
) -> None:
    options = ExportOptions(Format.LABEL_STUDIO, with_images=False)
    export_dataset(place.location, options, location_of(tmp_path / "studio"))
    tasks = answered(json.loads((tmp_path / "studio" / "tasks.json").read_text()))
    for task in tasks[:2]:
        result = task["annotations"][0]["result"]
        del result[1]
        result.append({"id": "k", "type": "keypointlabels", "value": {"x": 1, "y": 1, "keypointlabels": ["cup"]}})
    tasks[1]["annotations"][0]["result"][0]["value"]["rle"] = [1, 2]
    (tmp_path / "answers.json").write_text(json.dumps(tasks))
    file = location_of(tmp_path / "answers.json")
    done = import_masks(place.location, ImportRequest(file, ImportFormat.LABEL_STUDIO, ImportMode.REPLACE))
    assert (done.listed.prompts, done.listed.images, done.listed.masks["deleted"]) == (1, 1, 1)
    assert "ignored: 1 prompt beside masks, such as keypoints" in done.listed.lines()
    assert sum(done.listed.skipped_images.values()) == 1


def test_json_min_s_latest_answer_counts(place: DatasetPath, tmp_path: Path) -> None:
    """JSON_MIN has a record for each answer, in any order."""
    out = tmp_path / "out"
    export_dataset(place.location, ExportOptions(Format.LABEL_STUDIO, with_images=False), location_of(out))
    tasks = answered(json.loads((out / "tasks.json").read_text())[:1])
    (record,) = json.loads((convert(tasks, tmp_path / "min", "JSON_MIN") / "result.json").read_text())
    emptied = {**record, "annotation_id": 1, "updated_at": "2026-03-01T09:00:00Z", "tag": []}
    (tmp_path / "answers.json").write_text(json.dumps([emptied, record, emptied]))
    asked = ImportRequest(location_of(tmp_path / "answers.json"), ImportFormat.LABEL_STUDIO, ImportMode.REPLACE)
    listed = list_import(place.location, asked)
    assert (listed.named, listed.superseded, listed.masks["same"], listed.masks["deleted"]) == (1, 2, 2, 0)


def test_an_id_of_another_image_counts_for_its_own_image_alone(place: DatasetPath) -> None:
    """A tool numbers a new mask one over the highest; other images' ids stay the dataset's."""
    images = {1: [(APART, 10_000), (SECOND, 50_002)], 5: [(APART, 50_000), (SECOND, 50_001)]}
    import_coco(place, write_coco(place, images))
    assert sources(place, 0) == [(10_001, "automatic", None), (10_002, "imported", None)]
    assert sources(place, 4) == [(50_001, "automatic", None), (50_002, "corrected", 50_000)]


def test_each_table_is_read_once_for_the_sizes_of_images(place: DatasetPath, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(dataset: Any, entry: Any) -> bytes:
        read.append(entry.path)
        return read_file(dataset, entry)

    monkeypatch.setattr("segmint.operators.shards.revise.read_file", counted)
    size_of = imports.sizes_of(place.location, load_manifest(place.location), MatchMode.NUMBER)
    assert [size_of(f"sa_{n}.jpg") for n in (4, 1, 5, 2, 3, 6, 7, 0)] == [(30, 40)] * 4 + [None] * 4
    assert len(read) == 2


def test_the_audit_the_report_and_the_card_tell_people_s_masks_apart(place: DatasetPath, tmp_path: Path) -> None:
    import_coco(place, write_coco(place, {1: [(APART, None)], 2: [(CUT, 20_001)]}, label="<cup>"), license="a|b")
    label(place.location, shades())
    write_report(place.location, location_of(tmp_path), options=QUICK)
    card = (tmp_path / "README.md").read_text()
    assert "People made or changed the masks of the table below; all others were generated automatically" in card
    assert "| corrected | a\\|b | 1 | 1 |" in card
    assert "| imported | a\\|b | 1 | 1 |" in card
    assert "People looked at the masks of 2 images; those that they deleted are gone." in card
    assert "not corrected by people" not in card
    assert "6 masks with a label, 4 of them from a model, 2 imported; all others are class-agnostic." in card
    assert "- machine-generated\n- other\n" in card
    assert "- sa-1b\n- webdataset\n" in card  # not class-agnostic
    assert "not a benchmark" not in card
    assert "Masks by source: 4 automatic, 1 corrected and 1 imported." in (tmp_path / "index.html").read_text()
    text = "\n".join(result_lines(audit_dataset(place.location, QUICK)))
    assert "by source: automatic 4, corrected 1, imported 1" in text
    assert json.loads((tmp_path / "statistics.json").read_text())["sources"]["imported"] == 1


def test_nothing_is_changed_without_consent(place: DatasetPath) -> None:
    before = contents(place)
    asked = ImportRequest(location_of(write_coco(place, {1: []})), ImportFormat.COCO, ImportMode.REPLACE)

    def no(listed: Any) -> None:
        assert listed.rows == 1
        raise UsageError("not confirmed")

    with pytest.raises(UsageError, match="not confirmed"):
        import_masks(place.location, asked, confirm=no)
    assert contents(place) == before
    expected = "expected one of assisted, corrected, manual, imported"
    with pytest.raises(UsageError, match=f"--mask-source 'robot': {expected}"):
        list_import(place.location, replace(asked, source="robot"))
    with pytest.raises(UsageError, match="--annotator is empty"):
        list_import(place.location, replace(asked, annotator=" "))
    with pytest.raises(UsageError, match=r"can't be used: .* control character"):
        list_import(place.location, replace(asked, annotator="Ada\x1b[2J"))
