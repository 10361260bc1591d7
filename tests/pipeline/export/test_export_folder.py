"""An export's folder has nothing of a run before, and nothing of images that were taken down meanwhile."""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from segmint.catalogs.dataset.outputs import read_notes
from segmint.catalogs.dataset.reader import Dataset, Sample
from segmint.catalogs.dataset.tombstones import TakedownRequest
from segmint.infra.errors import UnfinishedError, UsageError
from segmint.infra.storage.location import Location
from segmint.operators.shards.revise import revise_shard
from segmint.pipeline.corrections.takedown import takedown
from segmint.pipeline.export import export
from segmint.pipeline.export.export import ExportOptions, export_dataset
from segmint.pipeline.export.formats import Format
from tests.support.killed_writes import KilledProcessError, dying_after
from tests.support.locations import handle_of, location_of
from tests.support.protocol import two_shards

YOLO, COCO = ExportOptions(Format.YOLO), ExportOptions(Format.COCO)


@pytest.fixture
def dataset() -> Iterator[Location]:
    """Two shards with the images 1, 2, 4 and 5."""
    with two_shards() as place:
        yield place.location


def take_down(dataset: Location) -> tuple[str, ...]:
    """Take the first image down; return what else is made of the dataset."""
    first = next(iter(Dataset.open(dataset))).row["image_id"]
    return takedown(dataset, TakedownRequest(ids=(first,)), "asked for").outputs


def test_a_killed_export_is_named_by_a_takedown_and_not_completed_with_its_picture(
    dataset: Location, tmp_path: Path
) -> None:
    output = location_of(tmp_path / "out")
    with dying_after(5), pytest.raises(KilledProcessError):
        export_dataset(dataset, YOLO, output)
    assert (tmp_path / "out/images/sa_1.jpg").exists()
    with pytest.raises(UsageError, match="or with other options"):  # the pictures would stay
        export_dataset(dataset, ExportOptions(Format.YOLO, with_images=False), output)
    assert take_down(dataset) == ("out (segmint export --format yolo)",)
    with pytest.raises(UsageError, match=r"contains an export of another dataset, of another version, .* Delete"):
        export_dataset(dataset, YOLO, output)
    assert not (tmp_path / "out/data.yaml").exists()
    shutil.rmtree(tmp_path / "out")
    assert export_dataset(dataset, YOLO, output).images == 3
    assert [sorted(note.files) for note in read_notes(dataset)] == [["data.yaml"]]


def test_an_export_during_a_takedown_is_not_completed(
    dataset: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_images = export.read_images
    named: list[tuple[str, ...]] = []

    def reading(*arguments: object) -> Iterator[Sample]:
        for sample in read_images(*arguments):  # type: ignore[arg-type]
            yield sample
            if not named:
                named.append(take_down(dataset))

    monkeypatch.setattr(export, "read_images", reading)
    with pytest.raises(UnfinishedError, match=r"corrected during the export \(shards: 0\)"):
        export_dataset(dataset, COCO, location_of(tmp_path / "out"))
    assert named == [("out (segmint export --format coco)",)]
    assert not (tmp_path / "out/instances.json").exists()


def test_an_export_lacks_no_label_that_is_set_after_the_labels_were_counted(
    dataset: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count_labels = export.count_labels

    def counting(counted: Dataset) -> Counter[str]:
        counts = count_labels(counted)
        revise_shard(handle_of(dataset), 1, lambda _, rows: [{**row, "label": "cup"} for row in rows], only="masks")
        return counts

    monkeypatch.setattr(export, "count_labels", counting)
    with pytest.raises(UnfinishedError, match=r"corrected during the export \(shards: 1\)"):
        export_dataset(dataset, COCO, location_of(tmp_path / "out"))


def test_files_that_tools_would_read_as_this_export_are_refused_and_others_stay(
    dataset: Location, tmp_path: Path
) -> None:
    output = location_of(tmp_path / "out")
    for name in ("images/sa_9.jpg", "notes.txt", "of-a-person/sa_9.jpg"):
        (output / name).put(b"of another run")
    with pytest.raises(UsageError, match=r"that aren't part of this export.* dataset: images/sa_9\.jpg\. Delete them"):
        export_dataset(dataset, YOLO, output)
    assert len(list(output.walk())) == 3
    assert not read_notes(dataset)
    (tmp_path / "out/images/sa_9.jpg").unlink()
    with dying_after(5), pytest.raises(KilledProcessError):
        export_dataset(dataset, YOLO, output)
    with pytest.raises(UsageError, match=r"aren't part of this export.* dataset: images/sa_1\.jpg.*\. Delete them"):
        export_dataset(dataset, ExportOptions(Format.YOLO, shards=(1, 2)), output)
    assert not (tmp_path / "out/data.yaml").exists()


def test_an_export_into_which_another_one_writes_is_not_completed(
    dataset: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = location_of(tmp_path / "out")
    read_images = export.read_images
    exported = []

    def reading(*arguments: object) -> Iterator[Sample]:
        yield from read_images(*arguments)  # type: ignore[arg-type]
        if not exported:
            exported.append(None)
            with dying_after(8), pytest.raises(KilledProcessError):  # after its pictures and three of its labels
                export_dataset(dataset, YOLO, output)

    monkeypatch.setattr(export, "read_images", reading)
    part = ExportOptions(Format.YOLO, shards=(0, 1))
    with pytest.raises(UnfinishedError, match=r"7 files in its folders, but this export wrote 4\. Another run"):
        export_dataset(dataset, part, output)
    assert not (tmp_path / "out/data.yaml").exists()


def test_the_main_file_may_be_in_a_folder_of_its_own(dataset: Location, tmp_path: Path) -> None:
    for _ in range(2):
        with dying_after(5), pytest.raises(KilledProcessError):
            export_dataset(dataset, ExportOptions(Format.CVAT), location_of(tmp_path / "out"))
    assert export_dataset(dataset, ExportOptions(Format.CVAT), location_of(tmp_path / "out")).pictures == 4
