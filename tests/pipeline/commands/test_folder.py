"""`segmint view` and `segmint annotate` of a folder of photographs, as a user meets them."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.cookiejar import CookieJar
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image
from typer.testing import CliRunner

from segmint.catalogs.dataset.manifest import load_manifest
from segmint.infra.errors import UsageError
from segmint.infra.storage.storage import Storage
from segmint.pipeline.commands import masks, quality
from segmint.pipeline.commands.cli import app
from segmint.pipeline.commands.folder import folder_to_correct, folder_to_view
from segmint.pipeline.corrections import folder as working
from segmint.pipeline.corrections.folder import WORKING
from segmint.pipeline.engine.annotate.app import AnnotateOptions, open_view
from segmint.pipeline.engine.annotate.decoder import Embeddings
from segmint.pipeline.engine.annotate.queue import QueueOptions
from segmint.pipeline.export.export import ExportOptions, export_dataset
from segmint.pipeline.export.formats import Format
from segmint.pipeline.masks.images import find_photographs
from segmint.pipeline.masks.outputs import plan_outputs
from segmint.pipeline.quality.evidence import check_target
from segmint.pipeline.quality.report.report import write_report
from segmint.pipeline.quality.signatures import sign_version
from tests.support.annotating import Annotators, draft
from tests.support.builds import ROOT
from tests.support.described_rows import rectangle_mask
from tests.support.locations import location_of
from tests.support.photographs import photograph

BOX = (2, 3, 20, 25)


def write_masks(path: Path, *boxes: tuple[int, int, int, int]) -> bytes:
    masks = [rectangle_mask(40, 60, *box) for box in boxes]
    keys = ("segmentation", "bbox", "area", "predicted_iou", "stability_score", "crop_box", "point_coords")
    annotations = [{"id": 50_000 + n, **{key: mask[key] for key in keys}} for n, mask in enumerate(masks)]
    image = {"image_id": 5, "width": 60, "height": 40, "file_name": "a.png"}
    path.write_text(json.dumps({"image": image, "annotations": annotations}))
    return path.read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A photograph with a mask, one without, and a file that is not an image."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in "ab":
        Image.fromarray(photograph("coffee", (60, 40))).save(photos / f"{name}.png")
    (photos / "bad.png").write_bytes(b"no image")
    write_masks(photos / "a.masks.json", BOX)
    return photos


@contextmanager
def running(*arguments: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """`segmint` as a process, with the address that it prints; it must end well at SIGINT."""
    command = [sys.executable, "-m", "segmint", *arguments, "--no-browser", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()


@pytest.mark.usefixtures("processes", "mobile_sam_path")
def test_the_viewer_shows_a_folder_and_leads_to_its_annotator(folder: Path) -> None:
    with running("view", str(folder)) as (address, process):
        assert address, process.stderr.read() if process.stderr else ""
        at = urlsplit(address).netloc
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        browser.open(address).read()

        def got(path: str) -> Any:
            return json.load(browser.open(f"http://{at}/api/{path}"))

        about = got("dataset")
        assert (about["name"], about["images"], about["masks"], about["correctable"]) == ("photos", 2, 1, True)
        first = got("annotator")["address"]
        assert b"<!doctype html>" in browser.open(first).read()
        assert got("annotator")["address"] == first
        port = urlsplit(first).port or 0
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert "skipped: " in (said := process.stderr.read() if process.stderr else "")
        assert "bad.png: not_an_image" in said
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=2)


def test_a_save_in_the_annotator_writes_the_json(
    folder: Path, mobile_sam_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Embeddings, "prepare", lambda *_: None)
    with folder_to_correct(str(folder)) as files:
        options = AnnotateOptions(QueueOptions(), weights=str(mobile_sam_path), device="cpu", files=files)
        with open_view(files.location, options) as opened:
            ann = Annotators(opened).who("ann")
            page = ann.get("/api/images/1").json()
            new = str(rectangle_mask(40, 60, 0, 0, 9, 9)["segmentation"]["counts"])
            assert ann.put("/api/images/1/submissions/1", json=draft(page, [new])).status_code == 201
            saved = json.loads((folder / "a.masks.json").read_bytes())
            assert [each["segmentation"]["counts"] for each in saved["annotations"]][1:] == [new]

            # Someone else changes the file while the page is open: the save is refused, and the page gets their masks.
            page = ann.get("/api/images/1").json()
            theirs = write_masks(folder / "a.masks.json", BOX, (10, 30, 30, 50))
            refused = ann.put("/api/images/1/submissions/2", json=draft(page, [new]))
            assert (refused.status_code, refused.json()["winner"]) == (409, None)
            assert (folder / "a.masks.json").read_bytes() == theirs
            again = ann.get("/api/images/1").json()
            assert (len(again["masks"]), again["submission"]) == (2, None)

            (folder / "a.masks.json").write_bytes(theirs[:40])
            broken = ann.put("/api/images/1/submissions/2", json=draft(again, [new]))
            assert (broken.status_code, "a.masks.json: " in broken.json()["error"]) == (400, True)
            (folder / "a.masks.json").write_bytes(theirs)
            assert ann.put("/api/images/1/submissions/2", json=draft(again, [new])).status_code == 201
            assert len(json.loads((folder / "a.masks.json").read_bytes())["annotations"]) == 3
        with pytest.raises(UsageError, match="is using"), folder_to_correct(str(folder)):
            pass
        with folder_to_view(str(folder)) as shown:
            assert shown.location.uri == files.location.uri


def test_ratings_of_a_folder_are_saved_in_its_working_dataset(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def served(_: Any, *, on_ready: Callable[[dict[str, str]], None], **__: Any) -> None:
        on_ready({"jo": "http://127.0.0.1:1/"})

    write_masks(folder / "a.masks.json", (2, 2, 34, 34))
    monkeypatch.setattr("segmint.pipeline.engine.annotate.app.serve", served)
    done = CliRunner().invoke(app, ["annotate", str(folder), "--stage", "rate", "--name", "jo"])
    assert f"ratings are saved to {folder}/.segmint/dataset\n" in done.stderr


def test_a_working_dataset_is_not_for_publication(folder: Path, tmp_path: Path) -> None:
    with folder_to_correct(str(folder)) as files:
        pass
    refused = pytest.raises(UsageError, match="nobody checked its licenses or faces")
    with refused:
        sign_version(files.location, location_of(tmp_path / "key"))
    with refused:
        check_target(files.location, location_of(tmp_path / "evidence"))
    with refused:
        export_dataset(files.location, ExportOptions(Format.HF), location_of(tmp_path / "hf"))
    with refused:
        write_report(files.location)
    export_dataset(files.location, ExportOptions(Format.COCO), location_of(tmp_path / "coco"))
    done = CliRunner().invoke(app, ["audit", files.location.uri, "--integrity-only"])
    assert done.exit_code == 0, done.output


def test_a_folder_that_cannot_be_written_is_shown_from_elsewhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(working, "locked", refuse)
    with folder_to_view(str(folder)) as shown:
        assert not shown.location.uri.startswith(str(folder))
    assert not (folder / WORKING).exists()
    assert "prepared again at every start" in capsys.readouterr().err


def test_a_folder_that_cannot_be_locked_is_not_corrected(folder: Path) -> None:
    (folder / WORKING).write_bytes(b"a file")
    with pytest.raises(UsageError, match=r"photos can't be corrected: File exists: "), folder_to_correct(str(folder)):
        pass
    with folder_to_view(str(folder)) as shown:
        assert not shown.location.uri.startswith(str(folder))


def test_a_photograph_and_a_missing_path_are_not_taken_for_datasets(folder: Path) -> None:
    for name, told in (("a.png", "a.png is a photograph: pass its folder"), ("absent", "no such folder: ")):
        for command in ("view", "annotate"):
            done = CliRunner().invoke(app, [command, str(folder / name)])
            assert done.exit_code == 2
            assert told in " ".join(done.output.split())


def test_masks_of_subfolders_are_shown_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The viewer of a folder only shows the photographs directly in it."""
    shown: list[int] = []
    monkeypatch.setattr(quality, "show_folder", lambda _: shown.append(-1))
    monkeypatch.setattr(quality, "show_dataset", lambda place: shown.append(load_manifest(place).shards))
    for recursive in (False, True):
        found = find_photographs(Storage(), [str(folder)], recursive=recursive)
        results: Any = [SimpleNamespace(image=each.name, outcome="made") for each in found.images]
        planned: Any = SimpleNamespace(outputs=plan_outputs(found, None))
        masks.open_masks(planned, results, [str(folder)])
        (folder / "sub").mkdir(exist_ok=True)
        Image.fromarray(photograph("coffee", (60, 40))).save(folder / "sub" / "c.png")
    assert shown == [-1, 4]


@pytest.mark.parametrize("is_missing", [False, True])
def test_a_damaged_working_dataset_may_be_deleted(folder: Path, is_missing: bool) -> None:
    with folder_to_correct(str(folder)):
        pass
    for path in (folder / WORKING / "dataset" / "masks").iterdir():
        path.unlink() if is_missing else path.write_bytes(b"PAR1")
    write_masks(folder / "a.masks.json")
    with pytest.raises(UsageError, match=f"{WORKING} is only a copy"), folder_to_correct(str(folder)):
        pass
    shutil.rmtree(folder / WORKING)
    with folder_to_correct(str(folder)):
        pass
