"""Photographs in, files out, by the real model on real pixels; a folder is continued where it stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image
from pycocotools import mask as coco
from typer.testing import CliRunner

from segmint.infra.assets import resolve
from segmint.infra.device import Compute, resolve_compute
from segmint.infra.errors import UsageError
from segmint.infra.storage.storage import Storage
from segmint.model.automatic.device_crops import KernelError
from segmint.model.automatic.generator import MaskGenerator
from segmint.model.sam.predictor import Predictor
from segmint.operators.overlay import is_drawn_from
from segmint.operators.prepare.release import ReleaseConfig
from segmint.operators.segment.mask_config import MasksConfig
from segmint.operators.segment.models import load_model
from segmint.operators.segment.segment import mask_columns
from segmint.pipeline.commands.cli import app
from segmint.pipeline.corrections.folder_documents import edit_document, read_masks
from segmint.pipeline.masks import images
from segmint.pipeline.masks.options import MasksOptions, PhotographPrompt, masks_config
from segmint.pipeline.masks.outputs import RECORD
from segmint.pipeline.masks.run import ImageResult, Work, make_masks, plan, recorded_speed
from tests.support.deadly import deadly_heic
from tests.support.released import in_a_build

pytestmark = pytest.mark.usefixtures("embedded_once")

ROOT = Path(__file__).parents[3]
QUICK = MasksConfig(profile="official", points_per_side=4, pred_iou_thresh=0.7, stability_score_thresh=0.8)
MIDDLE = (PhotographPrompt(((75, 50, 1),)),)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(load_model(resolve("mobile_sam"), resolve_compute("cpu")))


def made(image: object, output: object | None, options: MasksOptions, **how: bool) -> list[ImageResult]:
    told: list[ImageResult] = []
    results = make_masks(plan([str(image)], None if output is None else str(output), options, **how), told.append)
    assert results == told
    return results


def decoded(annotation: dict) -> np.ndarray:
    code = annotation["segmentation"]
    return coco.decode({"size": code["size"], "counts": code["counts"].encode("ascii")}).astype(bool)


def assert_annotation(annotation: dict, width: int, height: int) -> None:
    """One annotation as SA-1B has it, consistent with its own mask."""
    assert list(annotation) == [
        "id",
        "segmentation",
        "bbox",
        "area",
        "predicted_iou",
        "stability_score",
        "crop_box",
        "point_coords",
    ]
    for key in ("bbox", "crop_box"):
        assert [type(value) for value in annotation[key]] == [float] * 4
    mask = decoded(annotation)
    assert mask.shape == (height, width)
    assert mask.sum() == annotation["area"] > 0
    y, x = np.nonzero(mask)
    assert annotation["bbox"] == [x.min(), y.min(), np.ptp(x), np.ptp(y)]


def test_automatic_masks_of_a_photograph_as_sa1b_has_them(tmp_path, coffee):
    Image.fromarray(coffee).save(tmp_path / "cup.png")
    options = MasksOptions(masks=QUICK, device="cpu", overlay=True)
    results = made(tmp_path / "cup.png", tmp_path / "new" / "cup.json", options)
    document = json.loads((tmp_path / "new" / "cup.json").read_text())
    assert document["image"] == {"image_id": 1, "width": 600, "height": 400, "file_name": "cup.png"}
    annotations = document["annotations"]
    assert len(annotations) == results[0].masks >= 3
    assert [annotation["id"] for annotation in annotations] == [10_000 + i for i in range(len(annotations))]
    for annotation in annotations:
        assert_annotation(annotation, 600, 400)
        assert annotation["crop_box"] == [0.0, 0.0, 600.0, 400.0]
        ((x, y),) = annotation["point_coords"]
        assert isinstance(x, float)
        assert isinstance(y, float)
        assert annotation["predicted_iou"] > 0.7
    overlay = Image.open(results[0].overlay)
    assert overlay.size == (600, 400)
    assert (np.asarray(overlay) != coffee).any()


@pytest.fixture
def photographs(tmp_path, coffee):
    """A tree with two good photographs and two bad ones."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    Image.fromarray(coffee).resize((150, 100)).save(folder / "deep" / "cup.jpg")
    Image.fromarray(skimage.data.chelsea()).resize((150, 100)).save(folder / "cat.png")
    (folder / "text.jpg").write_text("this is no photograph")
    whole = (folder / "deep" / "cup.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_made_once_and_bad_photographs_are_told(tmp_path, photographs):
    out, options = tmp_path / "out", MasksOptions(prompts=MIDDLE, device="cpu", overlay=True)
    (photographs / "ill.heic").write_bytes(deadly_heic())
    results = made(photographs, out, options, recursive=True)
    assert [result.outcome for result in results] == ["made", "made", "refused", "refused", "refused"]
    assert [result.image.removeprefix(f"{photographs}/") for result in results][:2] == ["cat.png", "deep/cup.jpg"]
    assert results[2].error.startswith("truncated: ")
    assert results[3].error.startswith("killed_worker: ")
    (photographs / "ill.heic").unlink()
    assert results[4].error.startswith("not_an_image: ")
    first = contents(out)
    names = [RECORD, "cat.json", "cat.overlay.png", "deep/cup.json", "deep/cup.overlay.png"]
    assert sorted(first) == sorted(names)

    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = made(photographs, out, options, recursive=True)
    assert [result.outcome for result in again] == ["skipped", "skipped", "refused", "refused"]
    assert [result.masks for result in again[:2]] == [1, 1]
    Image.open(photographs / "cat.png").save(photographs / "cat.tif")  # cat.png keeps its file
    long_name = "x" * 250 + ".gif"
    Image.open(photographs / "cat.png").save(photographs / long_name)
    grown = {Path(result.image).name: result for result in made(photographs, out, options, recursive=True)}
    assert (grown["cat.png"].outcome, grown["cat.tif"].output) == ("skipped", f"{out}/cat.tif.json")
    assert grown[long_name].outcome == "refused"
    assert "Rename the photograph." in grown[long_name].error
    for path in (photographs / "cat.tif", photographs / long_name, *out.glob("cat.tif*")):
        path.unlink()
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times

    # One that is missing is made again, and drawings come from the masks that are there: the same bytes both times.
    (out / "cat.json").unlink()
    (out / "deep" / "cup.overlay.png").unlink()
    third = made(photographs, out, options, recursive=True)
    assert [result.outcome for result in third[:2]] == ["made", "skipped"]
    assert contents(out) == first


def test_another_photograph_of_that_name_is_not_taken_for_the_first(tmp_path, photographs):
    out, options = tmp_path / "out", MasksOptions(prompts=MIDDLE, device="cpu")
    made(photographs / "cat.png", out, options)
    before = (out / "cat.json").read_bytes()
    Image.open(photographs / "deep" / "cup.jpg").save(photographs / "cat.png")
    (result,) = made(photographs / "cat.png", out, options)
    assert (result.outcome, result.output) == ("refused", None)
    assert "a photograph with different content" in result.error
    assert (out / "cat.json").read_bytes() == before
    (result,) = made(photographs / "cat.png", out, options, overwrite=True)
    assert result.outcome == "made"
    assert (out / "cat.json").read_bytes() != before


def test_without_an_output_masks_are_next_to_each_photograph(tmp_path, photographs):
    options = MasksOptions(prompts=MIDDLE, device="cpu", overlay=True)
    (photographs / "text.jpg").unlink()
    (photographs / "half.jpg").unlink()
    before = set(contents(photographs))
    results = made(photographs, None, options, recursive=True)
    assert [result.output for result in results] == [
        f"{photographs}/cat.masks.json",
        f"{photographs}/deep/cup.masks.json",
    ]
    new = {"cat.masks.json", "cat.masks.png", "deep/cup.masks.json", "deep/cup.masks.png"}
    first = contents(photographs)
    assert set(first) - before == new
    # One photograph of them, named itself, has the same masks; drawings are no photographs.
    assert [result.outcome for result in made(photographs / "cat.png", None, options)] == ["skipped"]
    assert [result.outcome for result in made(photographs, None, options, recursive=True)] == ["skipped", "skipped"]
    (photographs / "cat.masks.json").unlink()
    (photographs / "cat.masks.png").unlink()
    made(photographs / "cat.png", None, options)
    assert contents(photographs) == first

    # By other settings only when told to.
    other = MasksOptions(prompts=(PhotographPrompt(((20, 20, 1),)),), device="cpu")
    (result,) = made(photographs / "cat.png", None, other)
    assert result.outcome == "refused"
    assert "cat.masks.json was made with different settings or weights. Pass --overwrite" in result.error
    assert contents(photographs) == first
    (result,) = made(photographs / "cat.png", None, other, overwrite=True)
    assert result.outcome == "made"
    assert (photographs / "cat.masks.json").read_bytes() != first["cat.masks.json"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["cat.masks.json", "cat.masks.png"])
def test_a_file_that_segmint_did_not_write_is_never_overwritten(photographs, name, overwrite):
    """Neither in place of the masks nor of their drawing, and the other file is not written either."""
    theirs = photographs / name
    theirs.write_bytes(b'{"annotations": []}' if name.endswith("json") else (photographs / "cat.png").read_bytes())
    before = contents(photographs)
    options = MasksOptions(prompts=MIDDLE, device="cpu", overlay=True)
    (result,) = made(photographs / "cat.png", None, options, overwrite=overwrite)
    assert result.outcome == "refused"
    assert result.error.startswith(f"{theirs} wasn't written by segmint")
    assert contents(photographs) == before


@pytest.mark.parametrize("by_older_version", [False, True])
def test_masks_that_a_person_corrected_are_never_replaced(photographs, by_older_version):
    options, file = MasksOptions(prompts=MIDDLE * 2, device="cpu"), photographs / "cat.masks.json"
    made(photographs, None, options, recursive=True)
    document = json.loads(file.read_text())
    if by_older_version:
        document["annotations"][0]["predicted_iou"] = None
        file.write_text(json.dumps(document))
    else:
        file.write_bytes(edit_document(document, read_masks(file.read_bytes(), "cat", "0" * 64).masks[:1]))
    before = file.read_bytes()
    assert made(photographs / "cat.png", None, options)[0].outcome == "skipped"
    other = replace(options, prompts=MIDDLE)
    for output, asked, how in ((None, options, {"overwrite": True}), (None, other, {}), (file, options, {})):
        (result,) = made(photographs / "cat.png", output, asked, **how)
        assert (result.outcome, result.error) == (
            "refused",
            f"{file} contains masks that a person made or corrected. To generate new masks, move the file elsewhere.",
        )
    results = made(photographs, None, options, recursive=True, overwrite=True)
    assert [result.outcome for result in results[:2]] == ["refused", "made"]
    assert file.read_bytes() == before


def test_points_are_reported_over_all_crops_and_the_speed_is_recorded(tmp_path, photographs, monkeypatch):
    monkeypatch.setenv("SEGMINT_CACHE", str(tmp_path / "cache"))
    options = MasksOptions(masks=masks_config("sa1b", ["points_per_side=4", "crop_n_layers=1"]), device="cpu")
    assert recorded_speed(options) is None
    announced: list[Work] = []
    gray = photographs / "gray.png"
    Image.new("RGB", (66, 66), (90, 90, 90)).save(gray)  # its crops, squares of 44 pixels, look the same enlarged
    planned = plan([str(gray)], str(tmp_path / "gray.json"), options, announce=announced.append)
    points: list[tuple[int, int]] = []
    make_masks(planned, lambda _: None, lambda done, total: points.append((done, total)))
    assert announced == [planned.work]
    assert (planned.work.encodes, planned.work.points) == (5, 16 + 4 * 4)
    assert points[-1] == (32, 32)
    assert len(points) > 5
    speed = recorded_speed(options)
    assert speed is not None
    assert min(speed.start_s, speed.encode_s) > 0
    assert recorded_speed(MasksOptions(masks=options.masks, device="cuda")) is None


def test_an_overwrite_that_stopped_is_finished_by_the_next_run(tmp_path, photographs):
    """After it the record has the new settings, and what still has the old ones is made again."""
    out, options = tmp_path / "out", MasksOptions(prompts=MIDDLE, device="cpu")
    made(photographs, out, options)
    old = (out / "cat.json").read_bytes()
    other = MasksOptions(prompts=(PhotographPrompt(((20, 20, 1),)),), device="cpu")
    plan([str(photographs)], str(out), other, overwrite=True)  # and killed here
    assert (out / "cat.json").read_bytes() == old
    assert made(photographs, out, other)[0].outcome == "made"
    assert (out / "cat.json").read_bytes() != old
    assert made(photographs, out, other)[0].outcome == "skipped"


def test_an_overlay_always_shows_the_masks_that_are_there(tmp_path, photographs):
    out, told = tmp_path / "out", MasksOptions(prompts=MIDDLE, device="cpu", overlay=True)
    made(photographs / "cat.png", out, told)
    old = (out / "cat.overlay.png").read_bytes()
    other = MasksOptions(prompts=(PhotographPrompt(((20, 20, 1),)),), device="cpu")
    (result,) = made(photographs / "cat.png", out, other, overwrite=True)
    assert result.overlay == f"{out}/cat.overlay.png"
    new = contents(out)
    assert is_drawn_from(new["cat.overlay.png"], sha256(new["cat.json"]).hexdigest())
    assert not is_drawn_from(old, sha256(new["cat.json"]).hexdigest())

    # Killed between its two files, or while it wrote one of them.
    (out / "cat.overlay.png").write_bytes(old)
    (out / f".tmp-cat.overlay.png-{'0a' * 16}").write_bytes(old[:100])
    (out / f".tmp-{'0a' * 16}").write_bytes(old[:100])
    foreign = {".tmp-notes": b"", f".tmp-{'0a' * 16}.jpg": b""}
    for name, data in foreign.items():
        (out / name).write_bytes(data)
    (result,) = made(photographs / "cat.png", out, replace(other, overlay=True))
    assert result.outcome == "skipped"
    assert contents(out) == {**new, **foreign}

    (out / "cat.overlay.png").write_bytes((photographs / "cat.png").read_bytes())
    (result,) = made(photographs / "cat.png", out, replace(other, overlay=True), overwrite=True)
    assert (result.outcome, result.error.partition("png ")[2][:25]) == ("refused", "wasn't written by segmint")


def test_cutouts_are_those_of_the_masks_that_are_there(tmp_path, photographs):
    prompts = tuple(PhotographPrompt(((x, 50, 1),)) for x in (75, 30))
    told = MasksOptions(prompts=prompts, device="cpu", cutouts=True)
    photograph, folder = photographs / "cat.png", photographs / "cat.cutouts"
    (result,) = made(photograph, None, told)
    assert (result.outcome, result.cutouts) == ("made", str(folder))
    written = contents(folder)
    assert sorted(written) == ["000.png", "001.png"]
    annotations = json.loads((photographs / "cat.masks.json").read_text())["annotations"]
    pixels = np.asarray(Image.open(photograph).convert("RGB"))
    for name, annotation in zip(sorted(written), annotations, strict=True):
        cutout = np.asarray(Image.open(folder / name))
        x, y, width, height = map(int, annotation["bbox"])
        box = slice(y, y + height + 1), slice(x, x + width + 1)
        mask = decoded(annotation)[box]
        assert np.array_equal(cutout[..., 3], mask * 255)
        assert np.array_equal(cutout[mask][:, :3], pixels[box][mask])

    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert made(photograph, None, told)[0].outcome == "skipped"
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    (folder / "001.png").unlink()  # killed between them
    (folder / f".tmp-{'0a' * 16}").write_bytes(b"")
    assert made(photograph, None, told)[0].outcome == "skipped"
    assert contents(folder) == written
    found = images.find_photographs(Storage(), [str(photographs)], recursive=True)
    assert str(photograph) in [image.name for image in found.images]
    assert not [image for image in found.images if ".cutouts" in image.name]

    fewer = replace(told, prompts=prompts[:1])
    assert made(photograph, None, fewer, overwrite=True)[0].masks == 1
    assert list(contents(folder)) == ["000.png"]
    none = MasksOptions(
        masks_config("official", ["points_per_side=1", "pred_iou_thresh=5"]), device="cpu", cutouts=True
    )
    for outcome in ("made", "skipped"):
        (result,) = made(photographs / "deep" / "cup.jpg", None, none)
        assert (result.outcome, result.masks, result.cutouts) == (outcome, 0, None)
    (folder / "notes.png").write_bytes(photograph.read_bytes())
    (result,) = made(photograph, None, fewer, overwrite=True)
    assert (result.outcome, result.error.partition("notes.png")[2][:31]) == (
        "refused",
        ", which wasn't written by segmi",
    )


def test_damaged_masks_are_not_drawn_and_the_run_goes_on(photographs):
    told = MasksOptions(prompts=MIDDLE, device="cpu")
    made(photographs, None, told, recursive=True)
    file = photographs / "cat.masks.json"
    document = json.loads(file.read_text())
    (mask,) = document["annotations"]
    polygon, small = [[1, 1, 9, 1, 9, 9]], {"size": [3, 2], "counts": [4, 2]}
    for damaged in ("mask", {}, {**mask, "segmentation": polygon}, {**mask, "segmentation": small}):
        file.write_text(json.dumps({**document, "annotations": [mask, damaged]}))
        before = file.read_bytes()
        for drawn in (replace(told, overlay=True), replace(told, cutouts=True)):
            results = made(photographs, None, drawn, recursive=True)[:2]
            assert [result.outcome for result in results] == ["refused", "skipped"]
            assert results[0].error.startswith(f"{file} contains an invalid mask (")
        assert file.read_bytes() == before
        assert made(photographs, None, told)[0].outcome == "skipped"
    assert sorted(path.name for path in photographs.glob("cat*")) == ["cat.masks.json", "cat.png"]
    file.write_text(json.dumps({**document, "annotations": [{"segmentation": mask["segmentation"]}]}))
    assert made(photographs, None, replace(told, overlay=True, cutouts=True))[0].outcome == "skipped"
    assert (photographs / "cat.masks.png").exists()
    assert (photographs / "cat.cutouts" / "000.png").exists()


def test_a_prompt_outside_refuses_that_photograph_among_several(tmp_path, photographs):
    Image.new("RGB", (40, 40)).save(photographs / "small.png")
    options = MasksOptions(prompts=MIDDLE, device="cpu")
    results = {Path(result.image).name: result for result in made(photographs, tmp_path / "out", options)}
    assert (results["small.png"].outcome, results["cat.png"].outcome) == ("refused", "made")
    assert "40 x 40 pixels" in results["small.png"].error
    with pytest.raises(UsageError, match="40 x 40 pixels"):
        made(photographs / "small.png", tmp_path / "small.json", options)


@pytest.mark.long
def test_a_killed_run_leaves_whole_files_and_the_next_one_the_same_bytes(tmp_path, photographs):
    for number in range(4):
        Image.open(photographs / "cat.png").rotate(number * 9).save(photographs / "deep" / f"{number}.png")
    options = MasksOptions(prompts=MIDDLE, device="cpu", overlay=True)
    script = (
        "import sys\nfrom segmint.pipeline.masks.options import *\nfrom segmint.pipeline.masks.run import *\n"
        "options = MasksOptions(prompts=(PhotographPrompt(((75, 50, 1),)),), device='cpu', overlay=True)\n"
        "make_masks(plan([sys.argv[1]], sys.argv[2], options, recursive=True), lambda result: print(flush=True))\n"
    )
    killed = tmp_path / "killed"
    command = [sys.executable, "-c", script, str(photographs), str(killed)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as run:
        for _ in range(2):
            run.stdout.readline()
        time.sleep(0.05)
        run.send_signal(signal.SIGKILL)
    left = contents(killed)
    assert 2 <= len([name for name in left if name.endswith(".json") and name != RECORD]) < 6
    for name, data in left.items():
        assert name.startswith(".") or not name.endswith(".json") or json.loads(data)["annotations"]
    made(photographs, killed, options, recursive=True)
    made(photographs, tmp_path / "whole", options, recursive=True)
    temporary = {name for name in left if ".tmp-" in name}
    assert {name: data for name, data in contents(killed).items() if name not in temporary} == contents(
        tmp_path / "whole"
    )


def test_ctrl_c_keeps_what_is_made_and_says_what_was_not_reached(tmp_path, photographs):
    for number in range(20):
        Image.open(photographs / "cat.png").rotate(number * 9).save(photographs / f"{number:02}.png")
    words = [
        "masks",
        str(photographs),
        "--recursive",
        "-o",
        str(tmp_path / "out"),
        "--point",
        "75,50",
        "--device",
        "cpu",
    ]
    command = [sys.executable, "-m", "segmint", *words]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as run:
        lines = []
        while not lines or (lines[-1] and not lines[-1].startswith("[")):
            lines.append(run.stderr.readline())
        run.send_signal(signal.SIGINT)
        lines += run.stderr.readlines()
    assert run.returncode == 3, lines
    lines = [line for line in lines if "no_cpu_kernels" not in line]
    assert lines[0].startswith("mobile_sam: 24 photographs with 1 prompt, about ")
    assert lines[1].startswith(f"[1/24] {photographs}/00.png: 1 mask in ")
    assert any(line.startswith("24 photographs: ") and " not reached; " in line for line in lines)
    assert lines[-1].startswith("interrupted: finished work is kept")
    assert 1 <= len(list((tmp_path / "out").glob("[!.]*.json"))) < 21


@pytest.mark.s3
def test_a_prefix_of_a_bucket_is_a_folder(tmp_path, photographs, s3_server, s3_bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint_url)
    storage = Storage()
    for name in ("cat.png", "deep/cup.jpg"):
        storage.put_file(f"s3://{s3_bucket}/photos/{name}", photographs / name)
    out, options = f"s3://{s3_bucket}/masks/", MasksOptions(prompts=MIDDLE, device="cpu")
    results = made(f"s3://{s3_bucket}/photos/", out, options, recursive=True)
    assert [(result.outcome, result.output) for result in results] == [
        ("made", f"{out}cat.json"),
        ("made", f"{out}deep/cup.json"),
    ]
    assert {entry.name for entry in storage.list(out)} == {RECORD, "cat.json"}
    assert [result.outcome for result in made(f"s3://{s3_bucket}/photos/", out, options)] == ["skipped"]
    made(photographs / "cat.png", tmp_path / "local", options)
    assert storage.read(f"{out}cat.json") == (tmp_path / "local" / "cat.json").read_bytes()


WITHOUT_TORCH = """
import json, sys
from typer.testing import CliRunner
from segmint.pipeline.commands.cli import app
codes = [CliRunner().invoke(app, ["masks", *words]).exit_code for words in json.loads(sys.argv[1])]
print(json.dumps([codes, "torch" in sys.modules]))
"""


def test_what_is_wrong_is_known_before_torch_is_loaded(tmp_path, photographs, monkeypatch):
    out, other, cat = str(tmp_path / "out"), str(tmp_path / "x.json"), str(photographs / "cat.png")
    made(cat, out, MasksOptions(prompts=MIDDLE, device="cpu"))
    commands = [
        [str(tmp_path / "absent.jpg"), "-o", out],
        [cat, "-o", out, "--set", "points_per_side=4"],
        [cat, "-o", other, "--point", "500,3"],
        [str(photographs / "text.jpg"), "-o", other],
        [cat, "-o", out, "--point", "75,50"],  # nothing is left to do
    ]
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, json.dumps(commands)], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    assert json.loads(ran.stdout) == [[2, 2, 2, 1, 0], False]

    access = os.access

    def deep_is_closed(path: str | Path, *mode: int, **options: bool) -> bool:
        return Path(path) != photographs / "deep" and access(path, *mode, **options)

    monkeypatch.setattr(os, "access", deep_is_closed)  # root may read all
    words = ["masks", cat, f"{photographs}/deep/*", "-o", out, "--point", "75,50"]
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, done.stdout) == (3, f"not checked: {photographs}/deep: the folder can't be read\n")
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)[-1]
    assert (told["image"], told["outcome"], told["error"]) == (
        f"{photographs}/deep",
        "failed",
        "the folder can't be read",
    )


@pytest.mark.parametrize("layers", [0, pytest.param(1, marks=pytest.mark.long)])
def test_sa1b_masks_of_a_large_photograph_are_those_of_a_build(tmp_path, predictor, coffee, layers):
    points = 4 if not layers else 8
    masks = MasksConfig(points_per_side=points, crop_n_layers=layers, pred_iou_thresh=0.7, stability_score_thresh=0.8)
    options = MasksOptions(masks, device="cpu", overlay=True, release=ReleaseConfig(short_side=200))
    Image.fromarray(coffee).save(tmp_path / "cup.png")
    (result,) = made(tmp_path / "cup.png", tmp_path / "cup.json", options)
    assert (result.frame, result.source) == ((300, 200), (600, 400))
    assert Image.open(result.overlay).size == (300, 200)

    document = json.loads((tmp_path / "cup.json").read_text())
    assert (document["image"]["width"], document["image"]["height"]) == (300, 200)
    frame = in_a_build((tmp_path / "cup.png").read_bytes(), options.release, masks)
    generated = MaskGenerator(predictor, masks.settings()).generate(frame.image, frame.original)
    built = mask_columns(generated)["masks"]
    found = [{key: value for key, value in each.items() if key != "id"} for each in document["annotations"]]
    assert document["outputs"] == [row.pop("output") for row in built]
    wanted = [json.loads(json.dumps({**row, "segmentation": as_text(row["segmentation"])})) for row in built]
    assert found == wanted
    assert len({tuple(each["crop_box"]) for each in found}) >= 1 + layers


def as_text(segmentation: dict) -> dict:
    counts = segmentation["counts"]
    return {**segmentation, "counts": counts if isinstance(counts, str) else counts.decode("ascii")}


def test_exif_orientation_is_applied(tmp_path, coffee):
    upright = Image.fromarray(coffee).resize((150, 100))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: rotate by 90 degrees to look at it
    upright.rotate(90, expand=True).save(tmp_path / "lying.jpg", exif=exif)
    options = MasksOptions(prompts=(PhotographPrompt(((149, 1, 1),)),), device="cpu")
    (result,) = made(tmp_path / "lying.jpg", tmp_path / "m.json", options)
    assert result.error is None
    assert json.loads((tmp_path / "m.json").read_text())["image"] | {"file_name": ""} == {
        "image_id": 1,
        "width": 150,
        "height": 100,
        "file_name": "",
    }


def test_auto_weights_suit_the_device(tmp_path, photographs, monkeypatch):
    monkeypatch.setenv("SEGMINT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("segmint.infra.assets.download", refuse_download)
    announced: list[Work] = []
    options = MasksOptions(weights="auto", device="cuda:1")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError, match="torch sees no CUDA device"):
        plan([str(photographs)], str(tmp_path / "out"), options, announce=announced.append)
    assert announced == []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for device, name in (("cpu", "mobile_sam"), ("cuda:1", "vit_h")):
        options = MasksOptions(masks_config("official", []), weights="auto", device=device)
        with suppress(UsageError):
            assert plan([str(photographs)], str(tmp_path / name), options, announce=announced.append).weights.exists()
        assert announced[-1].options.weights == name
    with pytest.raises(UsageError, match="--weights is auto, which means vit_h on a GPU: no usable copy of vit_h"):
        plan([str(photographs)], str(tmp_path / "out"), options)


def refuse_download(*_: object) -> Path:
    raise OSError("no network")


def test_a_file_that_is_no_checkpoint_is_a_wrong_argument(tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(UsageError, match="not a PyTorch checkpoint"):
        load_model(tmp_path / "weights.pt", Compute("cpu", "fp32", 1))


def test_kernels_that_compute_something_else_end_the_run(tmp_path, photographs, monkeypatch):
    def refuse(*_: object) -> None:
        raise KernelError("this GPU would generate wrong masks")

    monkeypatch.setattr(MaskGenerator, "find", refuse)
    with pytest.raises(UsageError, match="wrong masks"):
        made(photographs, tmp_path / "out", MasksOptions(masks=QUICK, device="cpu"))
