"""Working datasets of folders: imports, resumed imports, and masks that are written back without losing a JSON."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.dataset.submissions import Submission, base_digest, put_submission
from segmint.infra.storage.errors import AccessRefusedError
from segmint.infra.storage.storage import Storage
from segmint.operators.rows import Row
from segmint.operators.shards.revise import read_committed_rows
from segmint.pipeline.corrections import merge as merge_row
from segmint.pipeline.corrections.folder import (
    WORKING,
    FolderInUseError,
    WorkingDataset,
    find_images,
    is_photograph_folder,
    locked,
)
from segmint.pipeline.corrections.folder_documents import BadFileError
from tests.support.builds import ROOT
from tests.support.described_rows import rectangle_mask
from tests.support.photographs import photograph

SIZE = (60, 40)  # width, height
BOXES = ((2, 3, 20, 25), (10, 30, 30, 50))


def write_photograph(path: Path, name: str = "coffee", size: tuple[int, int] = SIZE) -> None:
    Image.fromarray(photograph(name, size)).save(path)


def write_masks(path: Path, *boxes: tuple[int, int, int, int], size: tuple[int, int] = SIZE, **added: Any) -> bytes:
    width, height = size
    masks = [rectangle_mask(height, width, *box) for box in boxes]
    keys = ("segmentation", "bbox", "area", "predicted_iou", "stability_score", "crop_box", "point_coords")
    annotations = [{"id": 50_000 + n, **{key: mask[key] for key in keys}} for n, mask in enumerate(masks)]
    image = {"image_id": 5, "width": width, "height": height, "file_name": path.name.replace(".masks.json", ".png")}
    data = json.dumps({"image": image, "annotations": annotations, "made_from": {"x": 1}, **added}).encode()
    path.write_bytes(data)
    return data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three photographs: `a` and `b` with masks, and `c` without."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in "abc":
        write_photograph(photos / f"{name}.png")
    write_masks(photos / "a.masks.json", *BOXES)
    write_masks(photos / "b.masks.json", *BOXES)
    return photos


def opened(folder: Path) -> WorkingDataset:
    return WorkingDataset(folder / WORKING, find_images(str(folder))[0], Storage())


def updated(folder: Path) -> WorkingDataset:
    (folder / WORKING).mkdir(exist_ok=True)
    working = opened(folder)
    assert working.update("photos") == []
    return working


def row_of(working: WorkingDataset, name: str) -> Row:
    log = CommitLog(working.location)
    commits = log.read_latest_of(log.committed().items())
    rows = [row for commit in commits for row in read_committed_rows(working.location, commit)]
    return next(row for row in rows if row["image_id"] == name)


def counts(box: tuple[int, int, int, int]) -> str:
    return str(rectangle_mask(SIZE[1], SIZE[0], *box)["segmentation"]["counts"])


def submit(working: WorkingDataset, name: str, add: list[str], delete: list[int] | None = None, n: int = 1) -> int:
    """Put a submission that adds masks, and deletes others by their place; return the image's id."""
    row = row_of(working, name)
    masks = [
        {"annotation_id": row["id"] * 10_000 + (index if mask["index"] is None else mask["index"]), **mask}
        for index, mask in enumerate(row["masks"])
    ]
    former = [masks[place] for place in delete or []]
    submission = Submission.from_value(
        {
            "image": row["id"],
            "n": n,
            "base": base_digest(row["release"], masks),
            "size": [SIZE[1], SIZE[0]],
            "annotator": "ann",
            "stage": "assisted",
            "seconds": 3.0,
            "complete": True,
            "saved_at": "2026-11-26T00:00:00Z",
            "masks": [{"counts": each, "source": "manual"} for each in add],
            "deleted": [{"id": mask["annotation_id"], "counts": mask["segmentation"]["counts"]} for mask in former],
        }
    )
    assert put_submission(working.location, submission)
    return int(row["id"])


def masks_in(path: Path) -> list[str]:
    return [each["segmentation"]["counts"] for each in json.loads(path.read_bytes())["annotations"]]


def test_photographs_are_imported_once_and_their_files_stay(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    working = updated(folder)
    assert [len(row_of(working, f"{name}.png")["masks"]) for name in "abc"] == [2, 2, 0]
    row = row_of(working, "a.png")
    assert (row["width"], row["height"], row["masks"][0]["predicted_iou"]) == (*SIZE, 0.93)
    manifest = load_manifest(working.location)
    assert (manifest.published, manifest.name, manifest.shards) == (False, "photos", 3)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != WORKING} == before

    stored = {path: path.stat().st_mtime_ns for path in (folder / WORKING / "dataset").rglob("*.parquet")}
    updated(folder)
    assert {path: path.stat().st_mtime_ns for path in (folder / WORKING / "dataset").rglob("*.parquet")} == stored


def test_masks_are_written_back_and_the_rest_of_the_json_stays(folder: Path) -> None:
    write_masks(folder / "b.masks.json", BOXES[0], (0, 0, 0, 0))  # the model found nothing at a prompt
    working = updated(folder)
    before = json.loads((folder / "a.masks.json").read_bytes())
    corner = counts((0, 0, 9, 9))
    image = submit(working, "a.png", [corner], delete=[0])
    working.write(image)
    working.write(submit(working, "b.png", [], delete=[1]))
    assert masks_in(folder / "b.masks.json") == [counts(BOXES[0])]
    after = json.loads((folder / "a.masks.json").read_bytes())
    assert masks_in(folder / "a.masks.json") == [counts(BOXES[1]), corner]
    assert after["annotations"][0] == before["annotations"][1]
    assert (after["image"], after["made_from"]) == (before["image"], before["made_from"])
    data = (folder / "a.masks.json").read_bytes()
    working.write(image)
    assert (folder / "a.masks.json").read_bytes() == data

    # The next start merges the submission, whose mask keeps its annotator, and leaves the JSON as it is.
    working = updated(folder)
    assert (folder / "a.masks.json").read_bytes() == data
    row = row_of(working, "a.png")
    assert [(mask["segmentation"]["counts"], mask["annotator"]) for mask in row["masks"]] == [
        (counts(BOXES[1]), None),
        (corner, "ann"),
    ]
    assert row["submission"]["n"] == 1

    # It also keeps it if another program changes the other masks.
    value = json.loads(data)
    (folder / "a.masks.json").write_text(json.dumps({**value, "annotations": value["annotations"][1:]}))
    (mask,) = row_of(updated(folder), "a.png")["masks"]
    assert [mask[name] for name in ("annotator", "source", "origin")] == ["ann", "manual", None]
    # The submission still counts as merged after the JSON was damaged for a while, so its masks don't come back.
    (folder / "a.masks.json").write_bytes(data[:-9])
    assert len(opened(folder).update("photos")) == 1
    write_masks(folder / "a.masks.json", BOXES[1])
    row = row_of(updated(folder), "a.png")
    assert [mask["segmentation"]["counts"] for mask in row["masks"]] == [counts(BOXES[1])]
    assert row["submission"]["n"] == 1


def test_a_link_is_replaced_and_not_followed(folder: Path, tmp_path: Path) -> None:
    """Somebody else's folder must not write to other files of the annotator."""
    outside, absent = tmp_path / "outside.json", tmp_path / "absent.json"
    (folder / "a.masks.json").rename(outside)
    before = outside.read_bytes()
    (folder / "a.masks.json").symlink_to(outside)
    (folder / "c.masks.json").symlink_to(absent)
    working = updated(folder)
    for name, kept in (("a", map(counts, BOXES)), ("c", ())):
        working.write(submit(working, f"{name}.png", [counts((0, 0, 9, 9))]))
        assert masks_in(folder / f"{name}.masks.json") == [*kept, counts((0, 0, 9, 9))]
    assert outside.read_bytes() == before
    assert not absent.exists()


def test_an_image_without_a_json_gets_one_with_its_first_mask(folder: Path) -> None:
    working = updated(folder)
    working.write(submit(working, "c.png", []))
    assert not (folder / "c.masks.json").exists()
    working.write(submit(working, "c.png", [counts((0, 0, 9, 9))], n=2))
    assert masks_in(folder / "c.masks.json") == [counts((0, 0, 9, 9))]


@pytest.mark.parametrize("written", [False, True])
def test_a_save_that_was_killed_is_completed_by_the_next_start(folder: Path, written: bool) -> None:
    """Killed after the submission, or after the JSON was replaced but before that was noted."""
    working = updated(folder)
    image = submit(working, "a.png", [counts((0, 0, 9, 9))])
    state = folder / WORKING / "files" / f"{image - 1}.json"
    if written:
        working.write(image)
        sums = json.loads(state.read_bytes())["sums"]
        state.write_text(json.dumps({**json.loads(state.read_bytes()), "sums": ["0" * 64, *sums]}))
    updated(folder)
    assert masks_in(folder / "a.masks.json") == [*map(counts, BOXES), counts((0, 0, 9, 9))]
    assert len(json.loads(state.read_bytes())["sums"]) == 1


def test_a_json_that_someone_else_changed_is_noticed_and_imported(folder: Path) -> None:
    """The change wins over a submission that was made before it, and no save overwrites it unseen."""
    working = updated(folder)
    image = submit(working, "a.png", [counts((0, 0, 9, 9))])
    files = sorted(path.parent.name for path in (folder / WORKING / "dataset").rglob("*000000*"))
    theirs = write_masks(folder / "a.masks.json", BOXES[0])
    with pytest.raises(BadFileError, match=r"a\.masks\.json was changed by another program"):
        working.write(image)
    assert (folder / "a.masks.json").read_bytes() == theirs
    working.refresh(image)
    assert len(row_of(working, "a.png")["masks"]) == 1
    assert sorted(path.parent.name for path in (folder / WORKING / "dataset").rglob("*000000*")) == files
    working.write(image)
    assert (folder / "a.masks.json").read_bytes() == theirs
    assert len(row_of(updated(folder), "a.png")["masks"]) == 1
    assert (folder / "a.masks.json").read_bytes() == theirs

    (folder / "a.masks.json").write_bytes(theirs[:50])
    with pytest.raises(BadFileError, match=r"a\.masks\.json: .*not SA-1B's JSON"):
        working.refresh(image)
    assert len(row_of(working, "a.png")["masks"]) == 1


def test_a_save_that_does_not_fit_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    working = updated(folder)
    before = (folder / "a.masks.json").read_bytes()
    monkeypatch.setattr(merge_row, "MASKS_PER_IMAGE_LIMIT", 2)
    image = submit(working, "a.png", [counts((0, 0, 9, 9))])
    with pytest.raises(BadFileError, match=r"a\.masks\.json: can't hold the saved masks: over"):
        working.write(image)
    assert (folder / "a.masks.json").read_bytes() == before


def test_bad_files_are_named_and_stop_no_others(folder: Path) -> None:
    (folder / "a.masks.json").write_bytes(b"{")
    (folder / "c.png").write_bytes(b"no image")
    write_masks(folder / "b.masks.json", (1, 1, 5, 5), size=(30, 30))
    write_photograph(folder / "d.png")
    (folder / WORKING).mkdir()
    problems = opened(folder).update("photos")
    for problem, told in zip(problems, (r"a.masks.json: .*not SA-1B's", "30 x 30", "not_an_image"), strict=True):
        assert re.search(told, problem), problem
    assert opened(folder).update("photos") == problems
    assert row_of(opened(folder), "d.png")["reason"] is None

    write_masks(folder / "a.masks.json", BOXES[0])
    assert opened(folder).update("photos") == problems[1:]
    assert len(row_of(opened(folder), "a.png")["masks"]) == 1


def test_photographs_come_go_and_change(folder: Path) -> None:
    updated(folder)
    (folder / "b.png").unlink()
    write_photograph(folder / "aa.png", "rocket")
    (folder / "c.png").unlink()
    write_photograph(folder / "c.png", "rocket", (80, 40))
    working = updated(folder)
    assert row_of(working, "aa.png")["ordinal"] == 3
    assert row_of(working, "b.png")["reason"] == "not_found"
    assert row_of(working, "c.png")["width"] == 80
    write_photograph(folder / "b.png")
    assert len(row_of(updated(folder), "b.png")["masks"]) == 2


def test_only_one_process_uses_a_folder(folder: Path) -> None:
    with locked(folder / WORKING), pytest.raises(FolderInUseError, match="photos"), locked(folder / WORKING):
        pass
    with locked(folder / WORKING):
        pass


def test_other_names_of_json_files(tmp_path: Path) -> None:
    """SA-1B's names are found, LabelMe's file is not taken for masks, and a JSON belongs to the photograph it names."""
    for name in ("a.png", "b.png", "c.png", "c.jpg"):
        write_photograph(tmp_path / name)
    write_masks(tmp_path / "a.json", BOXES[0])
    (tmp_path / "b.json").write_text('{"version": "5.0", "shapes": []}')
    data = json.loads((tmp_path / "a.json").read_bytes())
    data["image"]["file_name"] = "c.jpg"
    (tmp_path / "c.json").write_text(json.dumps(data))
    found = {name: Path(task.target).name for name, task in find_images(str(tmp_path))[0].items()}
    assert found == {
        "a.png": "a.json",
        "b.png": "b.masks.json",
        "c.png": "c.png.masks.json",
        "c.jpg": "c.json",
    }
    del data["image"]["file_name"]
    (tmp_path / "c.json").write_text(json.dumps(data))
    images = find_images(str(tmp_path))[0]
    assert [Path(images[f"c.{ending}"].target).name for ending in ("png", "jpg")] == [
        "c.png.masks.json",
        "c.jpg.masks.json",
    ]
    assert not is_photograph_folder("a" * 300)
    assert is_photograph_folder(str(tmp_path))
    assert not is_photograph_folder(str(tmp_path), pairs=False)
    assert not is_photograph_folder(str(tmp_path / "a.png"))


def test_a_json_that_cannot_be_read_only_skips_its_photograph(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_masks(folder / "c.json", BOXES[0])
    read = Storage.read

    def refused(self: Storage, uri: str, *arguments: Any, **named: Any) -> bytes:
        if uri.endswith(("b.masks.json", "c.json")):
            raise AccessRefusedError(f"cannot read {uri}: permission denied")
        return read(self, uri, *arguments, **named)

    monkeypatch.setattr(Storage, "read", refused)
    (folder / WORKING).mkdir()
    found = opened(folder).update("photos")
    assert [Path(line.partition(": ")[0]).name for line in found] == ["b.masks.json", "c.json"]
    assert all(line.endswith("permission denied") for line in found)


KILLED = """
import os, signal, sys
from pathlib import Path
from segmint.infra.storage import stores
from segmint.infra.storage.storage import Storage
from segmint.pipeline.corrections.folder import find_images
from segmint.pipeline.corrections.folder import WORKING, WorkingDataset

folder, left = Path(sys.argv[1]), int(sys.argv[2])
rename = stores._rename

def counted(*arguments):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(*arguments)

stores._rename = counted
(folder / WORKING).mkdir(exist_ok=True)
WorkingDataset(folder / WORKING, find_images(str(folder))[0], Storage()).update("photos")
"""


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("writes", [4, *(pytest.param(each, marks=pytest.mark.long) for each in (1, 9))])
def test_an_import_that_was_killed_resumes(folder: Path, writes: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(writes)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    working = updated(folder)
    assert [len(row_of(working, f"{name}.png")["masks"]) for name in "abc"] == [2, 2, 0]
