"""Each row of the table of exit codes in `docs/errors.md` has a test here, and each command has a row.

Commands run in this process. Where a result takes minutes, the function that gives it is replaced by its outcome.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from segmint.catalogs.dataset.commits import write_shards_index
from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.dataset.submissions import put_submission
from segmint.catalogs.dataset.tombstones import Fingerprint, put_fingerprints
from segmint.catalogs.dataset.versions import name_now, put_version
from segmint.catalogs.layout import json_sha256
from segmint.catalogs.source.files import read_rows
from segmint.infra.errors import SegmintError, UnfinishedError
from segmint.pipeline.building.execution.accounting import Accounting
from segmint.pipeline.commands.cli import PLACES, app
from segmint.pipeline.config.config import load_config
from segmint.pipeline.corrections.apply.columns import LabelList
from segmint.pipeline.corrections.apply.engine import FAILED
from segmint.pipeline.corrections.apply.masks import ApplyList
from segmint.pipeline.corrections.mask_revision import RevisionResult
from segmint.pipeline.corrections.merge import MergeList
from segmint.pipeline.engine.evaluate.result import EvaluationSubject
from segmint.pipeline.engine.evaluate.truth import SkippedTruth
from segmint.pipeline.masks.run import ImageResult
from tests.support.committed_shard import CommittedShard, change_manifest
from tests.support.imported import FIRST, write_coco
from tests.support.keys import write_keys
from tests.support.locations import location_of
from tests.support.protocol import DatasetPath, begin, write
from tests.support.submissions import answer_to, new_mask
from tests.support.torchscript import HalfAndHalf, saved

PAGE = Path(__file__).resolve().parents[3] / "docs" / "errors.md"
ROWS: list[tuple[str, ...]] = re.findall(r"^\| (.+?) \| (.+?) \| ([0-3]) \|$", PAGE.read_text(), re.MULTILINE)

Case = Callable[..., Any]
CASES: dict[tuple[str, str, str], Case] = {}


def case(command: str, condition: str, code: int) -> Callable[[Case], Case]:
    """Add the test of a row, which returns the result of the command, or several."""

    def add(test: Case) -> Case:
        assert CASES.setdefault((command, condition, str(code)), test) is test
        return test

    return add


def run(*words: object) -> Any:
    return CliRunner().invoke(app, list(map(str, words)))


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, object], None]:
    """Give a function below `segmint.pipeline` a result, or an error to raise."""

    def replace(name: str, outcome: object) -> None:
        def function(*_: object, **__: object) -> object:
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        monkeypatch.setattr(f"segmint.pipeline.{name}", function)

    return replace


@pytest.fixture
def place(tmp_path: Path) -> DatasetPath:
    """Two made-up shards with a recorded version."""
    place = DatasetPath(str(tmp_path / "dataset"))
    begin(place)
    write(place, 0)
    write(place, 1)
    write_shards_index(place.location, "protocol")
    put_version(place.location, "build")
    return place


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration for commands whose work is replaced."""
    words = ("--catalog", _catalog(tmp_path), "--output", tmp_path / "out")
    assert run("init", tmp_path / "c.yaml", *words).exit_code == 0
    return tmp_path / "c.yaml"


def done(*lines: str, **values: object) -> SimpleNamespace:
    return SimpleNamespace(lines=lambda: list(lines), **values)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}: {row[1]}: {row[2]}")
def test_a_row(row: tuple[str, str, str], request: pytest.FixtureRequest) -> None:
    test = CASES[row]
    code = int(row[2])
    names = test.__code__.co_varnames[: test.__code__.co_argcount]
    results = test(*(request.getfixturevalue(name) for name in names))
    results = results if isinstance(results, list) else [results]
    assert results
    for result in results:
        assert result.exit_code == code, result.output
        if code == 3 and not re.search("^(error: |interrupted|unexpected)", result.stderr, re.MULTILINE):
            assert "not checked: " in result.stdout or json.loads(result.stdout)["not_checked"]
        if code == 0:
            assert "not checked: " not in result.stdout


def test_every_command_has_a_row_and_every_test_its_row() -> None:
    assert CASES.keys() == set(ROWS)
    leaves = {name for name in PLACES if name not in ("catalog", "assets", "study", "evaluate")}
    leaves |= {f"catalog {each}" for each in ("scan", "check", "curate", "collect", "prompts")}
    leaves |= {f"assets {each}" for each in ("list", "fetch", "verify", "export-onnx")}
    leaves |= {f"study {each}" for each in ("plan", "sample", "score")}
    leaves |= {f"evaluate {each}" for each in ("points", "proposals", "edges", "instances")}
    listed = {match[1] for row in ROWS if (match := re.match(r"`([a-z-]+(?: [a-z-]+)?)", row[0]))}
    assert leaves == {name.removesuffix(" --prove") for name in listed if not name.startswith("check")}
    groups = {name.partition(" ")[0] for name in leaves if " " in name}
    assert leaves == {name for name in PLACES if name not in groups} | {
        f"{group} {name}" for group in groups for name in _commands_of(group)
    }


def _commands_of(group: str) -> Iterator[str]:
    shown = run(group, "--help").stdout.partition("Commands:")[2]
    yield from re.findall(r"^  ([a-z-]+) ", shown, re.MULTILINE)


@case("every command", "an option, value, or file that it can't use", 2)
def _unusable() -> Any:
    return [run(*name.split(), "--nonsense") for name in [*PLACES, "catalog scan", "study score", "evaluate edges"]]


@case(
    "every command",
    "Ctrl-C, SIGTERM, a closed output pipe, a failure of a store or the machine, or an unexpected error",
    3,
)
def _failed(replaced, config: Path) -> Any:
    results = []
    for error in (KeyboardInterrupt(), typer.Abort(), SegmintError("the store is down"), RuntimeError("a bug")):
        replaced("build.run_build", error)
        results.append(run("build", config))
    reader, writer = os.pipe()
    os.close(reader)
    assert subprocess.run([sys.executable, "-m", "segmint", "assets", "list"], stdout=writer).returncode == 3
    os.close(writer)
    return results


@case("`init`", "the configuration was written", 0)
def _init(tmp_path: Path) -> Any:
    return run("init", tmp_path / "build.yaml")


def _photographs(folder: Path) -> Path:
    folder.mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / "a.jpg")
    return folder


@case("`catalog scan`", "all images were listed, even if some rows are unusable", 0)
def _scanned(tmp_path: Path) -> Any:
    return run("catalog", "scan", _photographs(tmp_path / "a"), "-o", tmp_path / "c.csv", "--absolute")


@case("`catalog scan`", "some files can't be listed in a catalog", 3)
def _not_scanned(tmp_path: Path) -> Any:
    folder = _photographs(tmp_path / "a")
    (folder / "b.jpg").symlink_to("b.jpg")
    words = ("catalog", "scan", folder, "--license", "CC0-1.0", "--absolute", "-o")
    results = [run(*words, tmp_path / "c.csv"), run(*words, tmp_path / "d.csv", "--json")]
    (folder / "a.jpg").unlink()
    return [*results, run(*words, tmp_path / "e.csv")]


def _catalog(folder: Path, **columns: str) -> Path:
    (folder / "c.jsonl").write_text(json.dumps({"uri": "a.jpg", "license": "CC0-1.0", **columns}) + "\n")
    return folder / "c.jsonl"


@case("`catalog check`", "no findings", 0)
def _checked(tmp_path: Path) -> Any:
    return run("catalog", "check", _catalog(tmp_path))


@case("`catalog check`", "findings", 1)
def _unclean(tmp_path: Path) -> Any:
    return run("catalog", "check", _catalog(tmp_path, license="nothing of the kind"))


@case("`catalog curate`", "every row was inspected", 0)
def _curated(replaced, config: Path, tmp_path: Path) -> Any:
    replaced("building.curate.run_curate", done("all"))
    return run("catalog", "curate", _catalog(tmp_path), "-o", tmp_path / "d.parquet", "--config", config)


@case("`catalog curate`", "some rows couldn't be inspected", 3)
def _not_curated(replaced, config: Path, tmp_path: Path) -> Any:
    replaced("building.curate.run_curate", UnfinishedError("1 parts of 1 rows could not be inspected"))
    return run("catalog", "curate", _catalog(tmp_path), "-o", tmp_path / "d.parquet", "--config", config)


@case("`catalog collect`", "every row is in the new catalog, even if some images couldn't be copied", 0)
def _collected(tmp_path: Path) -> Any:
    """A private address is never asked."""
    results = []
    for name, flags in (("a", []), ("b", ["--json"])):
        catalog = _catalog(tmp_path, uri="https://127.0.0.1/a.jpg")
        results.append(run("catalog", "collect", catalog, "-o", tmp_path / name, *flags))
    return results


@case("`catalog collect`", "some servers didn't respond, so their rows are left for another run", 3)
def _not_collected(monkeypatch, tmp_path: Path) -> Any:
    """Without an address for the host, as on a machine without DNS."""

    def no_address(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", no_address)
    return run("catalog", "collect", _catalog(tmp_path, uri="https://a.example/1"), "-o", tmp_path / "a", "--json")


def _prompts(tmp_path: Path, box: list[float]) -> Any:
    """Add one box of a COCO file to a catalog."""
    boxes = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": box}],
        "categories": [{"id": 1, "name": "cup"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    catalog, out = _catalog(tmp_path, uri="a.jpg"), tmp_path / "prompted.parquet"
    return run("catalog", "prompts", catalog, "--coco", tmp_path / "boxes.json", "-o", out)


@case("`catalog prompts`", "every box is a prompt, except those of crowds", 0)
def _prompted(tmp_path: Path) -> Any:
    return _prompts(tmp_path, [1, 2, 3, 4])


@case("`catalog prompts`", "some boxes couldn't be read", 3)
def _not_prompted(tmp_path: Path) -> Any:
    return _prompts(tmp_path, [1, 2, -3, 4])


@case("`plan`", "the estimate was made", 0)
def _planned(replaced, config: Path) -> Any:
    replaced("building.plan.make_plan", done("a plan", rows=1))
    return run("plan", config)


@case("`plan`", "a sampled row couldn't be accepted or rejected", 3)
def _not_planned(replaced, config: Path) -> Any:
    replaced("building.plan.make_plan", SegmintError("row 4 of the sample can be neither accepted nor rejected"))
    return run("plan", config, "--sample", 4)


@case("`build`", "every shard is committed, even if rows were rejected", 0)
def _built(replaced, config: Path) -> Any:
    replaced("build.run_build", done("8 rows, 2 rejected"))
    return run("build", config)


@case("`build`", "some shards aren't committed, or the version isn't recorded", 3)
def _not_built(replaced, config: Path) -> Any:
    replaced("build.run_build", UnfinishedError("1 shard could not be finished. Nothing is lost"))
    return run("build", config)


@case("`build`", "some files of PHOTOGRAPHS can't be listed", 3)
def _not_scanned(replaced, config: Path) -> Any:
    replaced("build.run_build", Accounting("d", rows=1, written=1, rejected={}, masks=1, shards=1, seconds=1.0))
    replaced("building.photographs.open_photographs", (load_config(str(config)), [], ["cut.tar: not a whole tar"]))
    replaced("building.photographs.refused_licenses", [])
    (config.parent / "photos").mkdir()
    (config.parent / "photos/cut.tar").touch()
    return run("build", config.parent / "photos", "-o", config.parent / "out", "--license", "CC0-1.0")


@case("`status`", "everything was read, even if the dataset is incomplete", 0)
def _read(place: DatasetPath) -> Any:
    return run("status", place.uri)


@case("`status`", "tables couldn't be read", 3)
def _unread(place: DatasetPath) -> Any:
    assert put_submission(place.location, answer_to(place.location, 1, [new_mask((22, 5, 28, 30))]))
    assert run("merge", place.uri, "--yes").exit_code == 0
    next(Path(place.uri, "masks").glob("sa_000000-*")).unlink()
    words = ("status", place.uri)
    return [run(*words), run(*words, place.uri), run(*words, "--json"), run(*words, "--watch")]


@case("`status`", "`--watch`, stopped with Ctrl-C", 0)
def _stopped(place: DatasetPath, monkeypatch: pytest.MonkeyPatch) -> Any:
    def stop(_: float) -> None:
        raise KeyboardInterrupt

    (place.location / "commits/000001.g1.json").delete()
    monkeypatch.setattr("segmint.pipeline.commands.building.time", SimpleNamespace(sleep=stop))
    return run("status", place.uri, "--watch")


@case("`demo`", "the dataset was built", 0)
def _demo(replaced, tmp_path: Path) -> Any:
    replaced("demo.run_demo", done())
    return run("demo", tmp_path / "demo")


def _masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *outcomes: str) -> Any:
    def make(plan: object, report: Callable[[ImageResult], None], _: object) -> None:
        for outcome in outcomes:
            report(ImageResult(f"{outcome}.jpg", outcome, error=None if outcome == "made" else "why"))  # type: ignore[arg-type]

    monkeypatch.setattr("segmint.pipeline.masks.run.make_masks", make)
    folder = _photographs(tmp_path / "a")
    for number in range(len(outcomes)):
        shutil.copy(folder / "a.jpg", folder / f"{number}.jpg")
    return run("masks", folder, "-o", tmp_path / "masks")


@case("`masks`", "all masks were written, or already existed", 0)
def _made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return _masks(tmp_path, monkeypatch, "made", "made")


@case("`masks`", "photographs or their output files were refused, even if others failed", 1)
def _refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return _masks(tmp_path, monkeypatch, "made", "refused", "failed")


@case("`masks`", "photographs failed, and none were refused", 3)
def _masks_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return _masks(tmp_path, monkeypatch, "failed", "made")


@case("`assets list`", "always", 0)
def _assets() -> Any:
    return run("assets", "list")


@case("`assets fetch`", "the files are in the cache", 0)
def _fetched(mobile_sam_path: Path) -> Any:
    return run("assets", "fetch", "mobile_sam")


@case("`assets fetch`", "a file couldn't be fetched", 3)
def _not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def refuse(*_: object) -> Path:
        raise OSError("no network")

    monkeypatch.setenv("SEGMINT_CACHE", str(tmp_path))
    monkeypatch.setattr("segmint.infra.assets.download", refuse)
    return run("assets", "fetch", "vit_h")


@case("`assets verify`", "all hashes are right", 0)
def _right(mobile_sam_path: Path) -> Any:
    return run("assets", "verify", f"mobile_sam={mobile_sam_path}")


@case("`assets verify`", "a hash is wrong", 1)
def _wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("SEGMINT_CACHE", str(tmp_path))
    (tmp_path / "w.pt").write_bytes(b"other bytes")
    return run("assets", "verify", f"mobile_sam={tmp_path / 'w.pt'}", "vit_h")


@case("`assets verify`", "a file that you named isn't on this machine, or no weights file is", 3)
def _absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("SEGMINT_CACHE", str(tmp_path))
    named = run("assets", "verify", "vit_h", f"mobile_sam={tmp_path / 'nowhere.pt'}")
    monkeypatch.setattr("segmint.infra.assets.locate", lambda _: None)
    return [named, run("assets", "verify"), run("assets", "verify", "--json")]


@case("`assets export-onnx`", "the file was written", 0)
def _onnx(replaced, tmp_path: Path) -> Any:
    replaced("masks.onnx_export.export", done("written"))
    return run("assets", "export-onnx", "mobile_sam", "-o", tmp_path / "a.onnx")


@case("`audit`", "findings", 1)
def _findings(dataset: Path) -> Any:
    next((dataset / "masks").glob("sa_000000-*")).unlink()
    return run("audit", dataset, "--integrity-only", "--sample", 0)


@case("`audit`", "no image could be searched: there are no detectors or no images", 3)
def _nothing_searched(dataset: Path, tmp_path: Path) -> Any:
    config = load_manifest(location_of(dataset)).config
    none = {"detector": "none", "score": None}
    config = {**config, "deidentify": {**config["deidentify"], "faces": none, "plates": none}}
    change_manifest(dataset, config=config, config_sha256=json_sha256(config))
    words = ("audit", dataset, "--sample", 0)
    return [run(*words), run(*words, "--json"), run(*words, "-o", tmp_path / "audit.txt")]


@case("`audit`", "no findings, and all images of the sample were searched", 0)
def _clean(small_dataset: Path) -> Any:
    return run("audit", small_dataset, "--privacy-sample", 1, "--sample", 0)


@case("`audit`", "a detector failed or isn't available here, or sampled images couldn't be read", 3)
def _detector_gone(dataset: Path) -> Any:
    gone = {"detector": "0" * 64, "score": None}
    config = load_manifest(location_of(dataset)).config
    config = {**config, "deidentify": {**config["deidentify"], "faces": gone}}
    change_manifest(dataset, config=config, config_sha256=json_sha256(config))
    return run("audit", dataset, "--privacy-sample", 1, "--sample", 0, "--detector", "face=mtcnn")


@case("`audit`", "`--privacy-sample 0` or `--integrity-only`, and no findings", 0)
def _left_out(small_dataset: Path) -> Any:
    words = ("audit", small_dataset, "--sample", 0)
    return [run(*words, "--privacy-sample", 0), run(*words, "--integrity-only")]


@case("`report`", "the report was written, regardless of what its audit found", 0)
def _reported(replaced, place: DatasetPath) -> Any:
    replaced("quality.report.report.write_report", done("103 findings", not_checked=()))
    return run("report", place.uri)


@case("`report`", "the report leaves out damaged shards", 3)
def _partly_reported(replaced, place: DatasetPath) -> Any:
    shards = ("shard 1: its files are damaged",)
    replaced("quality.report.report.write_report", done(f"not checked: {shards[0]}", not_checked=shards))
    return run("report", place.uri)


@case("`view`", "stopped with Ctrl-C or SIGTERM", 0)
def _viewed(replaced, small_dataset: Path) -> Any:
    replaced("quality.view.app.serve", None)
    return run("view", small_dataset)


@case("`study sample`", "the sample was drawn", 0)
def _drawn(place: DatasetPath, tmp_path: Path) -> Any:
    return run("study", "sample", place.uri, "-n", 3, "-o", tmp_path / "study")


@case("`study plan`", "the number was printed", 0)
def _planned(tmp_path: Path) -> Any:
    return run("study", "plan", "--difference", 0.3)


@case("`study score`", "some masks lack a rating for a model or for the ground truth", 3)
def _partly_rated(replaced, tmp_path: Path) -> Any:
    (tmp_path / "manifest.json").write_text(json.dumps({"kind": "ratings"}))
    replaced("engine.study.ratings.score_ratings", done("not checked: 1 mask", not_checked=["1 mask"]))
    return run("study", "score", tmp_path)


@case("`study score`", "every sampled image has an answer, regardless of the findings", 0)
def _scored(place: DatasetPath, tmp_path: Path) -> Any:
    _drawn(place, tmp_path)
    return run("study", "score", tmp_path / "study", "--corrected", tmp_path / "study/instances.json")


@case("`study score`", "images without an answer, or answers that can't be read", 3)
def _partly_scored(place: DatasetPath, tmp_path: Path) -> Any:
    _drawn(place, tmp_path)
    drawn = json.loads((tmp_path / "study/instances.json").read_text())
    partly = {**drawn, "images": drawn["images"][:1]}
    partly["annotations"] = [each for each in drawn["annotations"] if each["image_id"] == drawn["images"][0]["id"]]
    (tmp_path / "partly.json").write_text(json.dumps(partly))
    unreadable = [{**each, "segmentation": {"size": [1], "counts": 7}} for each in drawn["annotations"]]
    (tmp_path / "unreadable.json").write_text(json.dumps({**drawn, "annotations": unreadable}))
    names = ("partly.json", "unreadable.json")
    return [run("study", "score", tmp_path / "study", "--corrected", tmp_path / name) for name in names]


def _digest(place: DatasetPath) -> str:
    return f"sha256:{json.loads(run('verify', place.uri, '--json').stdout)['version']['digest']}"


@case("`verify` a dataset", "it matches its version, with or without a key or a pinned digest", 0)
def _verified(place: DatasetPath, tmp_path: Path) -> Any:
    private, public = write_keys(tmp_path, "key")
    assert run("sign", place.uri, "--key", private).exit_code == 0
    pinned = ("--version", _digest(place))
    ways = ((), ("--key", public), pinned, (*pinned, "--require-pinned"), ("--key", public, "--require-pinned"))
    return [run("verify", place.uri, *way) for way in ways]


@case("`verify` a dataset", "something differs: files, the pinned digest, or the signature", 1)
def _differs(place: DatasetPath, tmp_path: Path) -> Any:
    _, public = write_keys(tmp_path, "key")
    unlike = [run("verify", place.uri, "--key", public), run("verify", place.uri, "--version", f"sha256:{'0' * 64}")]
    next(Path(place.uri, "masks").glob("sa_000001-*")).write_bytes(b"x")
    return [*unlike, run("verify", place.uri), run("verify", place.uri, "--require-pinned")]


@case("`verify` a dataset", "no version is recorded", 3)
def _no_version(place: DatasetPath) -> Any:
    (place.location / "versions/1.json").delete()
    return run("verify", place.uri)


@case("`verify` a dataset", "`--require-pinned` without `--key` or a full digest", 3)
def _unpinned(place: DatasetPath) -> Any:
    words = ("verify", place.uri, "--require-pinned")
    return [run(*words), run(*words, "--version", _digest(place)[:20])]


@case("`sign`", "the version was signed, or already was", 0)
def _signed(place: DatasetPath, tmp_path: Path) -> Any:
    private, _ = write_keys(tmp_path, "key")
    return [run("sign", place.uri, "--key", private), run("sign", place.uri, "--key", private)]


@case("`diff`", "the comparison was made, with or without differences", 0)
def _compared(place: DatasetPath) -> Any:
    same = run("diff", place.uri, place.uri)
    write(place, 1, variant=2, generation=2)
    return [same, run("diff", place.uri, place.uri, "--version-a", 1)]


def _take_down(dataset: Path, *more: object) -> Any:
    ids = dataset.parent / "ids.txt"
    ids.write_text("image-1\n")
    return run("takedown", dataset, "--ids", ids, "--reason", "asked for", *more)


@case("`takedown`", "the images were taken down, or listed with `--dry-run`", 0)
def _taken(dataset: Path) -> Any:
    return [_take_down(dataset, "--dry-run"), _take_down(dataset, "--yes")]


@case("`takedown`", "`--forget-fingerprints` removed an image's fingerprints, or an earlier run did", 0)
def _forgotten(dataset: Path) -> Any:
    _take_down(dataset, "--yes")
    return [run("takedown", dataset, "--forget-fingerprints", "image-1", "--yes") for _ in range(2)]


@case("`takedown`", "`--other-picture` recorded a decision, or an earlier run did", 0)
def _told_apart(dataset: Path) -> Any:
    _take_down(dataset, "--yes")
    (tombstone,) = (dataset / "tombstones").iterdir()
    words = ("--other-picture", "image-4", "--of", tombstone.name, "--reason", "another cup")
    return [run("takedown", dataset, *words) for _ in range(2)]


@case("`takedown --prove`", "a similar image was found, and `--other-picture` doesn't name it", 1)
def _near(dataset: Path) -> Any:
    _take_down(dataset, "--yes")
    hashes = CommittedShard(dataset, 1).rows["images"][1]["hashes"]
    like = Fingerprint(hashes="".join(f"{value:016x}" for value in hashes))
    put_fingerprints(location_of(dataset), 0, {2: like})
    return run("takedown", dataset, "--prove", "image-1")


@case("`takedown --prove`", "not found anywhere", 0)
def _gone(dataset: Path) -> Any:
    _take_down(dataset, "--yes")
    return run("takedown", dataset, "--prove", "image-1")


@case("`takedown --prove`", "found", 1)
def _still_there(dataset: Path) -> Any:
    _take_down(dataset, "--yes")
    (dataset / "report").mkdir(exist_ok=True)
    (dataset / "report/index.html").write_text("<img src=images/sa_2.jpg>")
    return run("takedown", dataset, "--prove", "image-1")


@case("`takedown --prove`", "not found, but a recorded output couldn't be searched", 3)
def _not_searched(dataset: Path, tmp_path: Path) -> Any:
    assert run("export", dataset, "--format", "coco", "-o", tmp_path / "coco").exit_code == 0
    _take_down(dataset, "--yes")
    shutil.rmtree(tmp_path / "coco")
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco/others.txt").write_text("nothing")
    return run("takedown", dataset, "--prove", "image-1")


@case("`redact`", "the regions were redacted, or listed", 0)
def _redacted(dataset: Path, tmp_path: Path) -> Any:
    regions = tmp_path / "regions.jsonl"
    regions.write_text(json.dumps({"id": 1, "kind": "face", "x": 90, "y": 10, "w": 60, "h": 80}))
    return [run("redact", dataset, "--regions", regions, how) for how in ("--dry-run", "--yes")]


@case("`redact --prove`", "not found anywhere", 0)
def _not_shown(dataset: Path, tmp_path: Path) -> Any:
    return [*_redacted(dataset, tmp_path), run("redact", dataset, "--prove", 1)]


@case("`redact --prove`", "found", 1)
def _still_shown(dataset: Path, tmp_path: Path) -> Any:
    assert run("export", dataset, "--format", "coco", "-o", tmp_path / "coco").exit_code == 0
    _redacted(dataset, tmp_path)
    return run("redact", dataset, "--prove", 1)


@case("`redact --prove`", "not found, but a recorded output couldn't be searched", 3)
def _maybe_shown(dataset: Path, tmp_path: Path) -> Any:
    _still_shown(dataset, tmp_path)
    shutil.rmtree(tmp_path / "coco")
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco/others.txt").write_text("nothing")
    return run("redact", dataset, "--prove", 1)


@case("`amend`", "the rows were amended, or listed; unknown rows are counted", 0)
def _amended(dataset: Path, tmp_path: Path) -> Any:
    part = load_manifest(location_of(dataset)).catalog[0].path
    uri = read_rows(location_of(dataset) / part, 1, 2)["uri"][0].as_py()
    rows = [{"image_id": name, "attribution": "Jo"} for name in ("image-1", "nobody's")]
    catalog = tmp_path / "amend.jsonl"
    catalog.write_text("".join(f"{json.dumps({'uri': uri, 'license': '', **row})}\n" for row in rows))
    return run("amend", dataset, catalog, "--dry-run")


@case("`import`", "all masks were imported, or listed; images that the dataset doesn't contain are counted", 0)
def _imported(place: DatasetPath, tmp_path: Path) -> Any:
    file = write_coco(place, {1: [(FIRST, None)], 900: [(FIRST, None)]})
    return [run("import", place.uri, file, "--replace", how) for how in ("--dry-run", "--yes")]


@case("`import`", "masks, or images of the dataset, couldn't be imported", 3)
def _not_imported(place: DatasetPath, tmp_path: Path) -> Any:
    file = Path(write_coco(place, {1: [(FIRST, None)]}))
    value = json.loads(file.read_text())
    value["annotations"][0]["segmentation"] = {"size": [1], "counts": 7}
    file.write_text(json.dumps(value))
    return [run("import", place.uri, file, "--replace", how) for how in ("--dry-run", "--yes")]


@case("`merge`", "all submissions were merged, or listed; masks that no longer fit are counted", 0)
def _merged(place: DatasetPath) -> Any:
    assert put_submission(place.location, answer_to(place.location, 1, [new_mask((22, 5, 28, 30))]))
    return [run("merge", place.uri, how) for how in ("--dry-run", "--yes", "--yes")]


@case("`merge`", "a whole submission couldn't be merged", 3)
def _not_merged(replaced, place: DatasetPath) -> Any:
    skipped = {"a submission that cannot be read": 1, "taken down": 1}
    numbers = dict.fromkeys(("images", "unchanged", "merged", "superseded", "uncompared"), 0)
    named: Any = {"dataset": "d", "name": "d", "masks": {}, "examples": (), "shards": ()}
    listed = MergeList(submitted=2, skipped_images=skipped, **numbers, **named)
    replaced("corrections.merge.list_merge", listed)
    return run("merge", place.uri, "--dry-run")


@case("`label`", "the masks were labeled, or listed", 0)
def _labeled(place: DatasetPath, tmp_path: Path) -> Any:
    (tmp_path / "labels.txt").write_text("near\nfar\n")
    how = ["--vocabulary", tmp_path / "labels.txt", "--model", saved(HalfAndHalf(), tmp_path / "module.pt")]
    return [run("label", place.uri, *how, last) for last in ("--dry-run", "--yes", "--yes")]


@case("`label`", "some images failed, and keep what they had", 3)
def _not_labeled(replaced, place: DatasetPath) -> Any:
    named = {"dataset": "d", "name": "d", "masks": {}, "shards": (), "examples": ()}
    done = LabelList(images=3, labeler="label", sha256="0" * 64, skipped_images={FAILED: 1}, **named)
    replaced("corrections.apply.columns.label", RevisionResult(done, (0, 1), name_now(place.location)))
    return run("label", place.uri, "--remove", "--yes")


_BRIGHT = ("--masks", "add", "--segmenter", "tests.support.segmenters.Bright")


@case("`apply`", "the masks were made, or the column was added or removed, or the changes were listed", 0)
def _applied(replaced, place: DatasetPath) -> Any:
    listed = run("apply", place.uri, *_BRIGHT, "--dry-run")
    named = {"dataset": "d", "name": "d", "masks": {}, "shards": (), "skipped_images": {}, "examples": ()}
    done = ApplyList(images=4, segmenter="Bright", sha256="0" * 64, mode="add", bytes={}, **named)
    replaced("corrections.apply.masks.apply_masks", RevisionResult(done, (0, 1), name_now(place.location)))
    return [listed, run("apply", place.uri, *_BRIGHT, "--yes")]


@case("`apply`", "some images failed, and keep what they had", 3)
def _not_applied(replaced, place: DatasetPath) -> Any:
    named = {"dataset": "d", "name": "d", "masks": {}, "shards": (), "examples": ()}
    failed = {FAILED: 1}
    done = ApplyList(
        images=3, segmenter="Bright", sha256="0" * 64, mode="add", bytes={}, skipped_images=failed, **named
    )
    replaced("corrections.apply.masks.apply_masks", RevisionResult(done, (0, 1), name_now(place.location)))
    return run("apply", place.uri, *_BRIGHT, "--yes")


@case("`repair`", "all files are complete", 0)
def _repaired(dataset: Path) -> Any:
    next((dataset / "masks").glob("sa_000000-*")).unlink()
    return run("repair", dataset)


@case("`repair`", "some files couldn't be restored", 1)
def _not_repaired(dataset: Path) -> Any:
    next((dataset / "images").glob("sa_000002-*")).unlink()
    return run("repair", dataset)


@case("`select`", "the images were selected, and the file was written", 0)
def _selected(place: DatasetPath, tmp_path: Path) -> Any:
    return run("select", place.uri, "id > 1", "-o", tmp_path / "subset.json")


@case("`export`", "the export was written; it lists the masks that the format can't store", 0)
def _exported(place: DatasetPath, tmp_path: Path) -> Any:
    return run("export", place.uri, "--format", "yolo", "-o", tmp_path / "yolo")


@case("`annotate`", "stopped with Ctrl-C or SIGTERM", 0)
def _annotated(replaced, dataset: Path) -> Any:
    replaced("engine.annotate.app.serve", None)
    return run("annotate", dataset, "--stage", "rate", "--name", "jo")


@case("`evaluate points`", "every image and mask was measured", 0)
def _measured(replaced, place: DatasetPath) -> Any:
    replaced("engine.evaluate.points.evaluate_points", done("points", subject=_measured_subject()))
    return run("evaluate", "points", place.uri)


def _measured_subject(*skipped: SkippedTruth) -> EvaluationSubject:
    return EvaluationSubject("points", (), (), "cpu, fp32", 1, 1, skipped, 1.0)


def _skipping() -> SimpleNamespace:
    subject = _measured_subject(SkippedTruth("t", "a.jpg", "gone"))
    return done(subject.head(), *subject.closing_lines(), subject=subject)


@case("`evaluate points`", "some images or masks couldn't be measured", 3)
def _points(replaced, place: DatasetPath) -> Any:
    replaced("engine.evaluate.points.evaluate_points", _skipping())
    return run("evaluate", "points", place.uri)


def _compared(interval: tuple[float, float] | None) -> SimpleNamespace:
    subject = _measured_subject().with_change("iou_1", -0.1, interval)
    return done(subject.head(), *subject.closing_lines(), subject=subject)


def _fails_if_worse(name: str) -> None:
    """Add the rows of an evaluation that compares two sets of weights."""
    function = f"engine.evaluate.{name}.evaluate_{name}"

    @case(f"`evaluate {name}`", "`--fail-if-worse`, and the second weights are worse by the whole interval", 1)
    def _worse(replaced, place: DatasetPath) -> Any:
        replaced(function, _compared((-0.2, -0.05)))
        return run("evaluate", name, place.uri, "--fail-if-worse", "iou_1")

    @case(f"`evaluate {name}`", "`--fail-if-worse`, and the difference has no interval", 3)
    def _unknown(replaced, place: DatasetPath) -> Any:
        replaced(function, _compared(None))
        return run("evaluate", name, place.uri, "--fail-if-worse", "iou_1")


for _name in ("points", "proposals", "edges", "instances"):
    _fails_if_worse(_name)


@case("`evaluate proposals`", "every image and mask was measured", 0)
def _all_proposals(replaced, place: DatasetPath) -> Any:
    replaced("engine.evaluate.proposals.evaluate_proposals", done("all", subject=_measured_subject()))
    return run("evaluate", "proposals", place.uri)


@case("`evaluate proposals`", "some images or masks couldn't be measured", 3)
def _proposals(replaced, place: DatasetPath) -> Any:
    replaced("engine.evaluate.proposals.evaluate_proposals", _skipping())
    return run("evaluate", "proposals", place.uri)


@case("`evaluate edges`", "every image and mask was measured", 0)
def _all_edges(replaced, place: DatasetPath) -> Any:
    replaced("engine.evaluate.edges.evaluate_edges", done("all", subject=_measured_subject()))
    return run("evaluate", "edges", place.uri)


@case("`evaluate edges`", "some images or masks couldn't be measured", 3)
def _edges(replaced, place: DatasetPath) -> Any:
    replaced("engine.evaluate.edges.evaluate_edges", _skipping())
    return run("evaluate", "edges", place.uri)


@case("`evaluate instances`", "every image and mask was measured", 0)
def _all_instances(replaced, place: DatasetPath) -> Any:
    replaced("engine.evaluate.instances.evaluate_instances", done("all", subject=_measured_subject()))
    return run("evaluate", "instances", place.uri)


@case("`evaluate instances`", "some images or masks couldn't be measured", 3)
def _instances(replaced, place: DatasetPath) -> Any:
    replaced("engine.evaluate.instances.evaluate_instances", _skipping())
    return run("evaluate", "instances", place.uri)


@case("`train`", "the run is complete", 0)
def _trained(replaced, tmp_path: Path) -> Any:
    replaced("engine.train.settings.load_train_config", SimpleNamespace(task="masks", encoder_weights="weights.pt"))
    replaced("engine.train.run.run_train", done("trained"))
    return run("train", tmp_path / "train.yaml")


@case("`train`", "`--dry-run`: the cost was printed", 0)
def _dry(replaced, tmp_path: Path) -> Any:
    replaced("engine.train.settings.load_train_config", SimpleNamespace(task="masks"))
    replaced("engine.train.run.plan_train", done("planned"))
    return run("train", tmp_path / "train.yaml", "--dry-run")
