"""Exports as a whole: what stands where, what a killed one leaves, and that nothing is written over."""

import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path

import pytest
from pycocotools.coco import COCO

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.digest import current_digest
from segmint.catalogs.dataset.outputs import FILES_LIST, read_notes
from segmint.catalogs.dataset.reader import Dataset, Sample
from segmint.catalogs.dataset.versions import VersionName
from segmint.catalogs.layout import ShardPart
from segmint.infra.errors import SegmintError, UnfinishedError, UsageError
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.pipeline.export.export import ExportOptions, OutputFolder, export_dataset, make_writer, write_samples
from segmint.pipeline.export.formats import MAIN_FILES, Format
from tests.support.builds import digests
from tests.support.committed import masks, write_dataset
from tests.support.killed_writes import KilledProcessError, dying_after
from tests.support.locations import location_of

ALL = [1, 2, 4, 5, 7, 8]
VERSION = VersionName("0" * 64, 1)


@pytest.fixture
def small(tmp_path: Path) -> str:
    """Three shards of two images with two masks each, and a refused row."""
    uri = str(tmp_path / "small")
    write_dataset(location_of(uri), shards=3)
    return uri


def exported_ids(uri: str, output: Path, **options) -> list[int]:
    export_dataset(location_of(uri), ExportOptions(Format.COCO, with_images=False, **options), location_of(output))
    return [image["id"] for image in json.loads((output / "instances.json").read_text())["images"]]


def test_the_folder_of_each_format(small: str, tmp_path: Path) -> None:
    files = {
        Format.COCO: {"instances.json"},
        Format.LVIS: {"lvis.json"},
        Format.CVAT: {"annotations/instances_default.json"},
        Format.LABEL_STUDIO: {"tasks.json", "label_config.xml"},
        Format.FIFTYONE: {"metadata.json", "samples.json"}
        | {f"fields/masks.detections/sa_{n}/{n * 10_000 + index}.png" for n in ALL for index in (0, 1)},
        Format.YOLO: {"data.yaml", "left_out.csv", "attributions.csv"} | {f"labels/sa_{n}.txt" for n in ALL},
        Format.GEOJSON: {"index.json"} | {f"masks/sa_{n}.geojson" for n in ALL},
        Format.HF: {"README.md", "data/train-00000.parquet"},
        Format.SA_1B: {"index.json", "file_list.txt"} | {f"images/sa_{n}.json" for n in ALL},
        Format.LABEL_MAPS: {"index.json"} | {f"masks/sa_{n}.{ending}" for n in ALL for ending in ("png", "json")},
        Format.PNG_MASKS: {"index.json"}
        | {f"masks/sa_{n}.json" for n in ALL}
        | {f"masks/sa_{n}/{n * 10_000 + index}.png" for n in ALL for index in (0, 1)},
    }
    assert files.keys() == set(Format)
    for format, own in files.items():
        output = tmp_path / "out" / format
        done = export_dataset(location_of(small), ExportOptions(format), location_of(output))
        pictures = set() if format is Format.HF else {f"images/sa_{number}.jpg" for number in ALL}
        assert {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()} == own | pictures | {
            FILES_LIST
        }
        assert (done.images, done.masks, done.pictures) == (6, 12, 6)
        assert done.file == str(output / MAIN_FILES[format])
        for sample in Dataset.open(location_of(small)) if pictures else ():
            assert (output / f"images/sa_{sample.id}.jpg").read_bytes() == sample.jpeg


def test_a_format_without_a_writer_is_not_written_as_another_one(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class More(StrEnum):
        NEW = "new"

    monkeypatch.setitem(MAIN_FILES, More.NEW, "new.json")
    with pytest.raises(KeyError, match="new"):
        make_writer(More.NEW, tmp_path, Dataset.open(location_of(small)).manifest, VERSION, str(tmp_path / "out"))


def test_a_file_that_another_export_put_meanwhile_stays(small: str, tmp_path: Path) -> None:
    output = tmp_path / "out"

    def samples() -> Iterator[Sample]:
        yield from Dataset.open(location_of(small))
        location_of(output / "instances.json").put(b"{}")

    writer = make_writer(Format.COCO, tmp_path, Dataset.open(location_of(small)).manifest, VERSION, str(output))
    folder = OutputFolder(location_of(small), "export", location_of(output), VERSION, tmp_path)
    with pytest.raises(UsageError, match=r"instances\.json already exists"):
        write_samples(samples(), [writer], folder, location_of(output / "instances.json"), VERSION)
    assert (output / "instances.json").read_bytes() == b"{}"


def test_a_picture_of_another_run_stays(small: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    location_of(output / "images/sa_2.jpg").put(b"of another run")
    with pytest.raises(UsageError, match=r"files that aren't part of this export, .*: images/sa_2\.jpg\."):
        export_dataset(location_of(small), ExportOptions(Format.COCO), location_of(output))
    assert [path.name for path in output.rglob("*.*")] == ["sa_2.jpg"]
    begun = tmp_path / "begun"
    with pytest.raises(KilledProcessError), dying_after(3):
        export_dataset(location_of(small), ExportOptions(Format.COCO), location_of(begun))
    location_of(begun / "images/sa_2.jpg").put(b"of another run")
    with pytest.raises(UsageError, match=r"images/sa_2\.jpg already exists with other content"):
        export_dataset(location_of(small), ExportOptions(Format.COCO), location_of(begun))
    assert (begun / "images/sa_2.jpg").read_bytes() == b"of another run"


def test_all_files_in_the_way_are_named_before_any_is_put(small: str, tmp_path: Path) -> None:
    class StubWriter:
        def add(self, sample: Sample) -> None: ...

        def finish(self) -> dict[str, Path]:
            paths = {name: tmp_path / name for name in ("a", "b", "same", "new", "main")}
            for name, path in paths.items():
                path.write_text(name)
            return paths

    output = tmp_path / "out"
    for name, text in (("a", "older"), ("b", "older"), ("same", "same")):
        location_of(output / name).put(text.encode())

    def export() -> None:
        samples = iter(Dataset.open(location_of(small)))
        folder = OutputFolder(location_of(small), "export", location_of(output), VERSION, tmp_path)
        write_samples(samples, [StubWriter()], folder, location_of(output / "main"), VERSION)

    with pytest.raises(UsageError, match=r"out/a and .*out/b already exist\. .* delete them\.$"):
        export()
    assert {path.name for path in output.iterdir()} == {"a", "b", "same", "images", FILES_LIST}
    (output / "a").unlink()
    (output / "b").unlink()
    export()
    assert (output / "main").read_text() == "main"


def test_the_list_has_the_hash_of_every_file(small: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    export_dataset(location_of(small), ExportOptions(Format.YOLO), location_of(output))
    head, *rows = map(json.loads, (output / FILES_LIST).read_text().splitlines())
    assert head["command"] == "export --format yolo"
    assert head["dataset_digest"] == f"sha256:{current_digest(location_of(small))}"
    files = {str(path.relative_to(output)): path for path in output.rglob("*.*") if path.name != FILES_LIST}
    assert {row["path"]: (row["bytes"], row["sha256"]) for row in rows} == {
        name: (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()) for name, path in files.items()
    }
    (note,) = read_notes(location_of(small))
    assert (note.listed, note.count) == (location_of(output / FILES_LIST).sha256(), len(files))


@pytest.mark.parametrize("killed", [False, True])
def test_a_folder_of_another_version_or_format_is_refused_before_anything_is_written(
    small: str, tmp_path: Path, killed: bool
) -> None:
    def export(format: Format) -> None:
        export_dataset(location_of(small), ExportOptions(format), location_of(tmp_path / "out"))

    with dying_after(4 if killed else None), pytest.raises(KilledProcessError) if killed else nullcontext():
        export(Format.COCO)
    before = digests(tmp_path)
    with pytest.raises(UsageError, match=r"contains an export of another dataset, of another version, or with other"):
        export(Format.YOLO)
    Path(small, "commits/000001.g1.json").unlink()
    (tmp_path / "out/instances.json").unlink(missing_ok=True)
    with pytest.raises(UsageError, match=r"contains an export of another dataset, of another version, or with other"):
        export(Format.COCO)
    gone = {"out/instances.json", "small/commits/000001.g1.json"}
    assert digests(tmp_path) == {name: value for name, value in before.items() if name not in gone}


def test_without_images(small: str, tmp_path: Path) -> None:
    assert exported_ids(small, tmp_path / "out") == ALL
    assert not (tmp_path / "out" / "images").exists()


def test_a_dataset_of_annotations_has_no_pictures_to_give(tmp_path: Path) -> None:
    uri, output = str(tmp_path / "bare"), tmp_path / "out"
    write_dataset(location_of(uri), shards=1, with_images=False)
    done = export_dataset(location_of(uri), ExportOptions(Format.COCO), location_of(output))
    assert (done.images, done.pictures) == (2, 0)


def test_some_shards(small: str, tmp_path: Path) -> None:
    assert exported_ids(small, tmp_path / "middle", shards=(1, 2)) == [4, 5]
    assert exported_ids(small, tmp_path / "part", shards=ShardPart(1, 2)) == [4, 5, 7, 8]
    with pytest.raises(UsageError, match="names no shard"):
        exported_ids(small, tmp_path / "none", shards=(3, 4))


def test_a_sample_is_the_same_again_and_another_by_another_seed(small: str, tmp_path: Path) -> None:
    drawn = [exported_ids(small, tmp_path / f"out-{index}", sample=3, seed=seed) for index, seed in enumerate("0012")]
    assert drawn[0] == drawn[1]
    assert len({tuple(ids) for ids in drawn}) > 1
    assert all(len(set(ids)) == 3 and set(ids) <= set(ALL) for ids in drawn)
    assert exported_ids(small, tmp_path / "all", sample=99) == ALL


def test_only_what_is_committed_is_exported(small: str, tmp_path: Path) -> None:
    Path(small, "commits/000001.g1.json").unlink()
    assert exported_ids(small, tmp_path / "out") == [1, 2, 7, 8]


@pytest.mark.parametrize("format", Format)
def test_killed_anywhere_it_leaves_nothing_that_looks_whole(format: Format, small: str, tmp_path: Path) -> None:
    def export(output: Path) -> None:
        export_dataset(location_of(small), ExportOptions(format), location_of(output))

    with dying_after(None) as budget:
        export(tmp_path / "whole")
    files = {path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file()}
    assert budget.spent == len(files) + 3  # notes and lists: before the first file and the last
    # All formats are written by the same lines: one is killed before each write, the others before some.
    step = 1 if format is Format.COCO else max(1, budget.spent // 4)
    for writes in sorted({*range(0, budget.spent, step), budget.spent - 1}):
        output = tmp_path / f"killed-{writes}"
        with pytest.raises(KilledProcessError), dying_after(writes):
            export(output)
        assert not (output / MAIN_FILES[format]).exists()
        if writes == budget.spent - 1:
            export(output)
            for name in files:
                assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_damage_ends_it_without_a_whole_file(small: str, tmp_path: Path) -> None:
    commit = CommitLog(location_of(small)).latest(2)
    assert commit is not None
    Path(small, commit.file("shards").path).write_bytes(b"x" * 2048)
    with pytest.raises(SegmintError, match="is not a readable shard"):
        exported_ids(small, tmp_path / "out")
    assert not (tmp_path / "out" / "instances.json").exists()


def test_an_export_is_not_written_over_and_not_put_into_the_dataset(small: str, tmp_path: Path) -> None:
    exported_ids(small, tmp_path / "out")
    with pytest.raises(UsageError, match="already exists"):
        exported_ids(small, tmp_path / "out")
    for inside in (Path(small), Path(small, "deep/er")):
        with pytest.raises(UsageError, match="is inside the dataset"):
            exported_ids(small, inside)


def test_a_full_temporary_folder_is_named(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    output = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # no file gets longer: the picture is
    try:
        with pytest.raises(UnfinishedError, match=rf"the temporary folder {tmp_path} is too small .*TMPDIR"):
            export_dataset(location_of(small), ExportOptions(Format.YOLO), location_of(output))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in output.rglob("*")] == [FILES_LIST]
    export_dataset(location_of(small), ExportOptions(Format.YOLO), location_of(output))


KILLED = """
import os, signal, sys
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.pipeline.export import export
export.write_samples = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
dataset, output = (Location(Storage(), uri) for uri in sys.argv[1:])
export.export_dataset(dataset, export.ExportOptions(export.Format.COCO, with_images=False), output)
"""


def test_the_scratch_of_a_killed_export_is_deleted_by_the_next(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    command = [sys.executable, "-c", KILLED, small, str(tmp_path / "out")]
    subprocess.run(command, env=os.environ | {"TMPDIR": str(scratch)}, check=False)
    (left,) = scratch.iterdir()
    (left / "masks.json").write_text("{}")
    os.utime(left, (0, 0))
    kept = scratch / "segmint-demo"  # a folder of the user's
    kept.mkdir()
    os.utime(kept, (0, 0))
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with ScratchFolder() as living:
        os.utime(living, (0, 0))
        exported_ids(small, tmp_path / "out")
        assert set(scratch.iterdir()) == {kept, Path(living)}
    assert list(scratch.iterdir()) == [kept]


@pytest.mark.s3
def test_from_bucket_to_bucket(s3_bucket: str, s3_options: dict[str, dict[str, str]], tmp_path: Path) -> None:
    storage, uri, output = Storage(s3_options), f"s3://{s3_bucket}/some/dataset", f"s3://{s3_bucket}/out"
    write_dataset(Location(storage, uri), shards=3)
    export_dataset(Location(storage, uri), ExportOptions(Format.COCO), Location(storage, output))
    names = [entry.name for entry in storage.walk(output)]
    assert sorted(names) == ["images/" + f"sa_{number}.jpg" for number in ALL] + ["instances.json", FILES_LIST]
    storage.get_file(f"{output}/instances.json", tmp_path / "instances.json")
    loaded = COCO(tmp_path / "instances.json")
    for number in ALL:
        for annotation, mask in zip(loaded.imgToAnns[number], masks(number - 1), strict=True):
            assert (loaded.annToMask(annotation) == mask).all()

    for format, count in ((Format.FIFTYONE, 3 + 6 + 12), (Format.YOLO, 4 + 6 + 6), (Format.HF, 3)):
        export_dataset(Location(storage, uri), ExportOptions(format), Location(storage, f"{output}/{format}"))
        assert len(list(storage.walk(f"{output}/{format}"))) == count

    export_dataset(
        Location(storage, uri),
        ExportOptions(Format.LABEL_STUDIO, with_images=False),
        Location(storage, f"{output}/tasks"),
    )
    task = json.loads(storage.read(f"{output}/tasks/tasks.json"))[0]
    assert task["data"]["image"] == f"{output}/tasks/images/sa_1.jpg"
