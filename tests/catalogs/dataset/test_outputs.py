"""What commands write about a dataset goes outside of it, or where a takedown finds it."""

import errno
import shutil
from pathlib import Path

import pytest

from segmint.catalogs.dataset.inventory import unknown_files
from segmint.catalogs.dataset.outputs import line_of, note_output, read_notes, refuse_inside, shown_outputs
from segmint.catalogs.layout import DamagedDatasetError
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from tests.support.committed import write_dataset
from tests.support.locations import location_of


def test_a_target_in_the_dataset_is_refused_but_for_the_report(dataset: str, tmp_path: Path) -> None:
    location = location_of(dataset)
    (tmp_path / "link").symlink_to(dataset)
    for target in (f"{dataset}/pages", f"{tmp_path}/link/a.csv", f"{dataset}/report/../a.csv", dataset):
        with pytest.raises(UsageError, match=r"-o: .* is inside the dataset .*, where a takedown would not find it"):
            refuse_inside(location, location_of(target), "-o")
    for target in (f"{dataset}/report", f"{dataset}/report/deep/a.csv", f"{dataset}-pages", str(tmp_path / "a.csv")):
        refuse_inside(location, location_of(target), "-o")


def test_data_that_segmint_did_not_write_has_no_takedowns(tmp_path: Path) -> None:
    refuse_inside(location_of(tmp_path), location_of(tmp_path / "pages"), "-o")


def test_an_output_is_noted_once_by_its_way_from_the_dataset_or_by_its_name(dataset: str, tmp_path: Path) -> None:
    location = location_of(dataset)
    for folder, place in (
        (tmp_path / "exports" / "a", "../exports/a"),
        (tmp_path.parent / "b", "../../b"),
        (Path(dataset).parent, ".."),
        (tmp_path.parent.parent / "other" / "c", "c"),
    ):
        for _ in range(2):
            note_output(location, "export", location_of(folder), {"x.json": "ab" * 32})
        (note,) = (note for note in read_notes(location) if note.place == place)
        assert (note.command, note.files) == ("export", {"x.json": "ab" * 32})
        there = note.location(location)
        assert (None if there is None else there.uri) == (None if place == "c" else str(folder))
    assert len(read_notes(location)) == 4
    note_output(location, "report", location_of(f"{dataset}/report"), {})
    assert len(read_notes(location)) == 4
    assert not unknown_files(location)


def test_people_see_paths_that_exist(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a copied dataset, or after an output was moved, only the output's name is shown."""
    location, folder = location_of(dataset), tmp_path / "exports" / "coco"
    folder.mkdir(parents=True)
    note_output(location, "export", location_of(folder), {"x.json": "ab" * 32})
    lines = [line_of(note) for note in read_notes(location)]
    assert shown_outputs(dataset, lines, "create it again") == [
        f"created from this dataset, create it again: {folder} (segmint export: x.json)"
    ]
    monkeypatch.chdir(Path(dataset).parent)
    assert " exports/coco (segmint export" in shown_outputs(Path(dataset).name, lines, "delete it")[0]
    assert shown_outputs("s3://bucket/some/dataset", lines, "delete it") == [
        "created from this dataset, delete it: s3://bucket/some/exports/coco (segmint export: x.json)"
    ]
    copy = tmp_path / "elsewhere" / "deep" / "dataset"
    shutil.copytree(dataset, copy)
    assert shown_outputs(str(copy), lines, "delete it") == [
        "created from this dataset, delete it: coco (segmint export: x.json), in another place"
    ]
    folder.rmdir()
    assert "/" not in shown_outputs(dataset, lines, "delete it")[0]
    assert "in another place" in shown_outputs(dataset, [f"../{'x' * 300} (segmint export)"], "delete it")[0]


@pytest.mark.s3
def test_an_output_in_the_same_bucket_is_near(s3_bucket: str, s3_options: dict[str, dict[str, str]]) -> None:
    storage = Storage(s3_options)
    location = Location(storage, f"s3://{s3_bucket}/some/dataset")
    write_dataset(location, shards=1)
    note_output(location, "export", Location(storage, f"s3://{s3_bucket}/exports/a"), {})
    note_output(location, "export", Location(storage, "s3://another-bucket/exports/b"), {})
    assert {note.place: getattr(note.location(location), "uri", None) for note in read_notes(location)} == {
        "../../exports/a": f"s3://{s3_bucket}/exports/a",
        "b": None,
    }


def test_a_dataset_that_cannot_be_written_to_is_not_noted_in(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("segmint.infra.storage.stores.os.link", read_only)
    note_output(location_of(dataset), "export", location_of(tmp_path / "a"), {})
    assert "a takedown will not list it" in capsys.readouterr().err
    assert not read_notes(location_of(dataset))


def test_another_file_among_the_notes_is_named(dataset: str) -> None:
    (location_of(dataset) / "outputs" / "0123456789ab.json").put(b"{}")
    with pytest.raises(DamagedDatasetError, match=r"outputs/0123456789ab\.json is not the note of an output"):
        read_notes(location_of(dataset))
