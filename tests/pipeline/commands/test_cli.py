"""The command line as a user meets it: help at once, readable errors, exit codes, answers for programs."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from segmint.catalogs.layout import ShardPart, parse_shards
from segmint.infra.errors import SegmintError, UnfinishedError, UsageError
from segmint.infra.version import VERSION
from segmint.pipeline.commands.cli import PANELS, app
from segmint.pipeline.commands.console import guarded, print_json, print_line, print_message
from segmint.pipeline.masks.options import parse_box, parse_point
from tests.support.builds import write_catalog, write_config, write_photographs
from tests.support.locations import location_of
from tests.support.trainable import train_yaml, write_trainable

ROOT = Path(__file__).resolve().parents[3]

GOOD = "name: street\ncatalog: catalog.csv\noutput: out\nlicense: {allow: [CC0-1.0]}\n"


def run(*arguments: str):
    """A command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command as its own process, as a shell starts it."""
    return subprocess.run(
        [sys.executable, "-m", "segmint", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_help_lists_every_command_in_one_panel_by_the_first_line_of_its_help():
    printed = run("--help").stdout
    _, *sections = re.split(r"^(Build|Inspect|Correct|Export|Annotate and train):$", printed, flags=re.MULTILINE)
    listed = {
        panel: [line.strip() for line in text.strip().splitlines()]
        for panel, text in zip(sections[::2], sections[1::2], strict=True)
    }
    assert list(listed) == ["Build", "Inspect", "Correct", "Export", "Annotate and train"] == list(PANELS)
    names = [line.split()[0] for lines in listed.values() for line in lines]
    assert len(names) == len(set(names)) == 28
    group = typer.main.get_command(app)
    for panel, lines in listed.items():
        assert [line.split()[0] for line in lines] == list(PANELS[panel])
        for line in lines:
            name, help = line.split(maxsplit=1)
            with group.make_context("segmint", [name]) as context:
                told = group.get_command(context, name).help
            assert help == told.split("\n")[0], name


def test_every_module_of_a_command_is_listed():
    """A new file in `commands/` has a command that the help lists."""
    folder = ROOT / "pipeline" / "commands"
    modules = {".".join(path.relative_to(folder).with_suffix("").parts) for path in folder.rglob("*.py")}
    listed = {place.module for panel in PANELS.values() for place in panel.values()}
    assert modules - {"__init__", "cli", "console", "folder"} == listed


def test_help_imports_nothing_heavy():
    script = (
        "import sys; from segmint.pipeline.commands.cli import app\n"
        "try: app(['masks', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'ray', 'numpy', 'pyarrow', 'cv2', 'PIL', 'fsspec', 'structlog', 'yaml', 'transformers'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True)


def test_masks_command_from_a_photograph_to_files_without_ray(tmp_path, coffee):
    Image.fromarray(coffee).resize((300, 200)).save(tmp_path / "a b.jpg", quality=95)
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 no more")
    script = (
        "import sys; from segmint.pipeline.commands.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as end: code = end.code\n"
        "assert 'ray' not in sys.modules\n"
        "sys.exit(code)\n"
    )
    quick = ["--device", "cpu", "--profile", "official", "--set", "points_per_side=4", "--set", "pred_iou_thresh=0.7"]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            script,
            "masks",
            str(tmp_path),
            "-o",
            str(tmp_path / "out"),
            *quick,
            "--overlay",
            "--json",
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    good, bad = json.loads(done.stdout)
    assert (bad["outcome"], bad["output"]) == ("refused", None)
    assert (good["outcome"], good["error"]) == ("made", None)
    document = json.loads(Path(good["output"]).read_text())
    assert len(document["annotations"]) == good["masks"] >= 2
    assert np.asarray(Image.open(good["overlay"])).shape == (200, 300, 3)
    lines = [line for line in done.stderr.splitlines() if "no_cpu_kernels" not in line]
    assert lines[0].startswith("mobile_sam: 2 photographs with 16 points, about ")
    assert lines[1].startswith(f"[1/2] {tmp_path}/a b.jpg: {good['masks']} masks in ")
    assert f" s → {good['output']} and {good['overlay']}; about " in lines[1]
    assert lines[1].endswith(" s left")
    assert lines[3].startswith(f"2 photographs: 1 made and 1 refused; {good['masks']} masks in ")
    assert lines[4].startswith(f"  refused: {tmp_path}/bad.jpg: ")
    assert lines[5] == f"masks: {tmp_path}/out, one SA-1B-style JSON file per photograph"
    assert "Traceback" not in done.stderr


def test_masks_says_what_it_does_before_torch_is_imported(tmp_path, coffee, embedded_once):
    """In standard error, to which a hook writes when torch is imported, that line comes first."""
    Image.fromarray(coffee).save(tmp_path / "cup.png")
    script = (
        "import os, sys\n"
        "def hook(event, arguments):\n"
        "    if event == 'import' and arguments[0] in ('torch', 'cv2'):\n"
        "        print(arguments[0], file=sys.stderr, flush=True)\n"
        "        if arguments[0] == 'torch': os._exit(9)\n"  # the masks are made in this process below
        "sys.addaudithook(hook)\n"
        "from segmint.pipeline.commands.cli import app\n"
        "app(sys.argv[1:])\n"
    )
    words = ["masks", str(tmp_path / "cup.png"), "--device", "cpu", "--set", "points_per_side=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 9, done.stderr
    lines = done.stderr.splitlines()
    assert re.fullmatch(r"mobile_sam: 4 points, about \d+ (s|min)", lines[0])
    assert lines[-1] == "torch"
    here = run(*words)
    assert here.exit_code == 0, here.stderr
    lines = here.stderr.splitlines()
    assert lines[-2].startswith(f"{tmp_path}/cup.png: ")
    assert lines[-2].endswith(f" s → {tmp_path}/cup.masks.json")
    again = subprocess.run([sys.executable, "-c", script, *words], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f" already made → {tmp_path}/cup.masks.json" in again.stderr.splitlines()[0]  # and nothing is announced
    assert "torch" not in again.stderr.splitlines()


def test_masks_for_prompts_end_in_a_file(tmp_path, coffee, embedded_once):
    Image.fromarray(coffee).save(tmp_path / "cup.png")
    arguments = ["masks", tmp_path / "cup.png", "-o", tmp_path / "cup.json", "--device", "cpu"]
    box = "165,70,230,240"
    done = run(*arguments, "--prompt", f"point:285,200 point:450,330,0 box:{box}", "--prompt", f"box:{box}")
    assert done.exit_code == 0, done.stderr
    assert "2 masks" in done.stderr
    assert (
        done.stderr.splitlines()[-1]
        == "next: run the same command with --open to see the masks, or --overlay to draw them"
    )
    assert done.stdout == ""
    both, by_box = json.loads((tmp_path / "cup.json").read_text())["annotations"]
    assert both["point_coords"] == [[285.0, 200.0], [450.0, 330.0]]
    assert by_box["point_coords"] == []
    together = run(
        *arguments[:-3],
        tmp_path / "too.json",
        *arguments[-2:],
        "--point",
        "285,200",
        "--point",
        "450,330,0",
        "--box",
        box,
    )
    assert together.exit_code == 0, together.stderr
    (same,) = json.loads((tmp_path / "too.json").read_text())["annotations"]
    assert same["segmentation"] == both["segmentation"] != by_box["segmentation"]

    outside = run(*arguments, "--point", "600.5,3")
    assert outside.exit_code == 2
    assert "600 x 400 pixels" in outside.stderr

    unknown = run(*arguments, "--weights", "vit_x")
    assert unknown.exit_code == 2
    assert "vit_x" in unknown.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["masks", "x.jpg", "-o", "y", "--point", "3"], "expected X,Y or X,Y,LABEL"),
        (["masks", "x.jpg", "-o", "y", "--point", "3,4,2"], "expected X,Y or X,Y,LABEL"),
        (["masks", "x.jpg", "-o", "y", "--point", "nan,4"], "expected X,Y or X,Y,LABEL"),
        (["masks", "x.jpg", "-o", "y", "--box", "1,2,0,4"], "expected X,Y,W,H"),
        (["masks", "x.jpg", "-o", "y", "--set", "points=3"], "did you mean points_per_side?"),
        (["masks", "x.jpg", "-o", "y", "--crop-layers", "9"], "--crop-layers"),
        (["masks", "x.jpg", "--point", "3,4", "--crop-layers", "2"], "crop_n_layers=2 has no effect on prompts"),
        (["masks", "x.jpg", "-o", "y", "--all-masks"], "requires --point, --box, or --prompt"),
        (["masks", "x.jpg", "-o", "y", "--device", "tpu"], "tpu"),
        (["masks", "x.jpg", "-o", "y", "--point", "3,4,0"], "only has background points"),
        (["masks", "x.jpg", "-o", "y", "--prompt", "point:1,2", "--point", "3,4"], "--prompt can't be combined with"),
        (["masks", "x.jpg", "-o", "y"], "no such file: x.jpg"),
        (["masks", "x.jpg", "-o", "y", "--profile", "sam"], "sa1b"),
        (["masks", "-o", "y"], "IMAGE"),
        (["build"], "CONFIG"),
        (["demo"], "FOLDER"),
        (["plan"], "CONFIG"),
        (["plan", "absent.yaml", "--sample", "3"], "no such file"),
        (["plan", "absent.yaml", "--gpus", "many"], "valid integer"),
        (["build", "absent.yaml"], "no such file"),
        (["build", "absent.yaml", "--shards", "3"], "no such file"),
        (["catalog", "check", "absent.csv"], "absent.csv"),
        (["catalog", "scan", "."], "-o"),
        (["assets", "fetch", "vit_x"], "expected one of mobile_sam"),
        (["nonsense"], "nonsense"),
        (["masks", "--nonsense"], "nonsense"),
        ([], "Usage"),
        (["--debug"], "Missing command."),
        (["--json", "assets"], "requires --version"),
        (["buidl"], "Did you mean 'build'?"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_says_what_was_expected(arguments, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert told in done.output
    assert "Traceback" not in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_configuration_lists_its_problems_and_starts_nothing(tmp_path):
    (tmp_path / "c.yaml").write_text(GOOD + "masks: {points_per_sid: 3}\nmodel: {device: tpu}\n")
    done = command("build", tmp_path / "c.yaml")
    assert done.returncode == 2
    assert "c.yaml:5: masks.points_per_sid is not a configuration key" in done.stderr
    assert "c.yaml:6: model.device is 'tpu'" in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


def test_wrong_shards_are_refused_before_anything_starts(tmp_path):
    (tmp_path / "c.yaml").write_text(GOOD)
    done = run("build", tmp_path / "c.yaml", "--shards", "5:5")
    assert done.exit_code == 2
    assert "expected A:B with A < B" in done.stderr


def test_a_wrong_reason_is_refused_before_anything_starts(tmp_path):
    (tmp_path / "c.yaml").write_text(GOOD)
    done = run("build", tmp_path / "c.yaml", "--retry-rejected", "not_found", "--retry-rejected", "gone")
    assert done.exit_code == 2
    assert "--retry-rejected 'gone': expected one of license_not_allowed" in done.stderr


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize(
    "arguments",
    [
        ["masks", "photos/photo_000.jpg", "-o", "out", "--precision", "bf16"],
        ["evaluate", "points", "coco.json", "--images", "photos", "-o", "out", "--precision", "bf16", "--no-ray"],
        ["build", "build.yaml", "--set", "model.precision=bf16"],
        ["build", "photos", "-o", "out", "--license", "CC0-1.0", "--set", "model.precision=bf16"],
        ["train", "train.yaml", "--set", "precision=bf16"],
        ["train", "train.yaml", "--set", "precision=bf16", "--set", "resources.workers=2"],
        ["plan", "build.yaml", "--set", "model.precision=bf16"],
    ],
    ids=" ".join,
)
def test_bf16_on_a_cpu_is_refused_before_anything_is_created(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (name,) = write_photographs(tmp_path / "photos", 1)
    write_catalog(tmp_path / "catalog.jsonl", [{"uri": f"photos/{name}", "license": "CC0-1.0"}])
    write_config(tmp_path / "build.yaml", "catalog.jsonl", "out")
    write_trainable(location_of(tmp_path / "dataset"), 1)
    train_yaml(tmp_path / "train.yaml", [tmp_path / "dataset"], tmp_path / "out")
    annotation = {"id": 1, "image_id": 1, "segmentation": [[10, 10, 90, 10, 90, 90]], "iscrowd": 0}
    images = [{"id": 1, "file_name": name, "height": 180, "width": 240}]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": [annotation]}))
    before = sorted(tmp_path.rglob("*"))
    device = ["--device", "cpu"] if arguments[0] in ("masks", "evaluate") else []
    device = ["--set", "model.device=cpu"] if "photos" in arguments and arguments[0] == "build" else device
    done = run(*arguments, *device)
    assert done.exit_code == 2, done.output
    assert "precision bf16 needs a GPU: on a CPU, use precision fp32 or auto" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_catalog_scan_and_check(tmp_path, coffee):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(coffee).save(folder / "a.jpg")
    Image.fromarray(coffee).save(folder / "b.jpg")
    (folder / "b.jpg.license").write_text("CC-BY-4.0\n")
    catalog = tmp_path / "catalog.csv"
    words = ("catalog", "scan", folder, "--license", "CC0-1.0", "--attribution", "Ann")
    scanned = run(*words, "-o", catalog, "--json")
    assert scanned.exit_code == 0, scanned.stderr
    told = json.loads(scanned.stdout)
    assert told.pop("findings")["clean"]
    assert told == {"catalog": str(catalog), "rows": 2, "skipped": 0, "unusable": 0, "not_checked": []}
    (folder / "loop.jpg").symlink_to("loop.jpg")
    scanned = run(*words, "-o", tmp_path / "again.csv")
    assert scanned.exit_code == 3, scanned.stderr
    assert scanned.stdout.startswith("not checked: loop.jpg: ")
    assert "again.csv: 2 rows" in scanned.stderr

    clean = run("catalog", "check", catalog)
    assert clean.exit_code == 0
    assert "2 rows" in clean.stdout
    (tmp_path / "c.yaml").write_text(GOOD)
    judged = run("catalog", "check", catalog, "--config", tmp_path / "c.yaml", "--json")
    assert judged.exit_code == 1
    findings = json.loads(judged.stdout)
    assert not findings["clean"]
    assert findings["accepted"] == 1


def test_assets_are_listed_fetched_and_verified(tmp_path):
    listed = {entry["name"]: entry for entry in json.loads(run("assets", "list", "--json").stdout)}
    assert listed["mobile_sam"]["license"] == "Apache-2.0"
    assert "mobile_sam" in run("assets", "list").stdout
    path = run("assets", "fetch", "mobile_sam").stdout.strip()
    assert Path(path).is_file()

    assert run("assets", "verify", "mobile_sam", f"mobile_sam={path}").exit_code == 0
    wrong = tmp_path / "w.pt"
    wrong.write_bytes(b"other bytes")
    refused = run("assets", "verify", f"mobile_sam={wrong}")
    assert refused.exit_code == 1
    assert "expected SHA-256" in refused.stdout
    # A mirror that holds a wrong file does not win over a right one elsewhere.
    (tmp_path / "mobile_sam.pt").write_bytes(b"other bytes")
    assert run("assets", "fetch", "mobile_sam", "--mirror", tmp_path).stdout.strip() == path


def test_a_broken_cached_file_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGMINT_CACHE", str(tmp_path))
    (tmp_path / "sam_vit_b_01ec64.pth").write_bytes(b"half of it")
    done = run("assets", "verify")
    assert done.exit_code == 1
    assert "is not vit_b" in done.stdout
    absent = run("assets", "verify", "vit_h")
    assert absent.exit_code == 3
    assert absent.stdout.startswith("not checked: vit_h: not on this machine")


def test_version():
    assert run("--version").stdout == f"segmint {VERSION}\n"
    assert run("version").exit_code == 2
    versions = json.loads(run("--version", "--json").stdout)
    assert versions["segmint"] == VERSION
    assert versions["ray"]


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (UsageError("give a name"), 2, "error: give a name"),
        (UnfinishedError("two shards are left"), 3, "error: two shards are left"),
        (SegmintError("the store is gone"), 3, "error: the store is gone"),
        (ZeroDivisionError("division by zero"), 3, "unexpected error: ZeroDivisionError: division by zero"),
        (MemoryError(), 3, "MemoryError"),
        (KeyboardInterrupt(), 3, "interrupted"),
        (typer.Exit(1), 1, ""),
    ],
)
def test_every_exception_ends_in_a_message_and_an_exit_code(error, code, told, monkeypatch):
    small = typer.Typer()

    @small.command()
    @guarded
    def fail() -> None:
        raise error

    monkeypatch.delenv("SEGMINT_DEBUG", raising=False)
    done = CliRunner().invoke(small, [])
    assert done.exit_code == code
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    monkeypatch.setenv("SEGMINT_DEBUG", "1")
    is_failure = isinstance(error, Exception) and code != 1
    assert ("Traceback" in CliRunner().invoke(small, []).stderr) == is_failure


def test_a_reader_that_goes_away_is_no_traceback():
    done = subprocess.run(
        f"{sys.executable} -m segmint assets list --json | true; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 3)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_the_process_ends_without_finalizing_the_interpreter_in_which_arrow_s_threads_may_still_run():
    """What is registered for the end and threads are not cut off."""
    script = (
        "import atexit, threading, time, sys\nfrom segmint.pipeline.commands.cli import main\n"
        "class Left:\n    def __del__(self): print('finalized')\n"
        "left = Left()\natexit.register(print, 'handler')\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()\nmain()\n"
    )
    for words, code in ((["--version"], 0), (["--unknown"], 2)):
        done = subprocess.run([sys.executable, "-c", script, *words], cwd=ROOT, capture_output=True, text=True)
        printed = done.stdout.splitlines()
        assert (done.returncode, printed[-1], "thread" in printed) == (code, "handler", True)


def test_debug_shows_where_a_usage_error_came_from(tmp_path):
    done = command("--debug", "build", tmp_path / "absent.yaml")
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_numbers_of_options():
    assert parse_shards("0:10") == (0, 10)
    assert parse_shards("3/16") == ShardPart(3, 16)
    assert parse_point("1.5, -2") == (1.5, -2.0, 1)
    assert parse_point("1,2,0") == (1.0, 2.0, 0)
    assert parse_box("-1,2,3.5,4") == (-1.0, 2.0, 3.5, 4.0)


def test_what_is_printed_holds_no_credential_and_commands_no_terminal(monkeypatch):
    small = typer.Typer()
    title = "\x1b]0;owned\x07\x9b2J\rhello"

    @small.command()
    @guarded
    def fail() -> None:
        print_message(f"read {title}")
        print_line(f"{title} from https://me:hunter2@host/x?X-Amz-Signature=hunter2")
        print_json({"uri": "s3://me:hunter2/hunter3@bucket", "name": title, "secret_key": "hunter2"})
        raise ZeroDivisionError(f"https://me:hunter2@host, {title}")

    monkeypatch.setenv("SEGMINT_DEBUG", "1")
    done = CliRunner().invoke(small, [])
    assert done.stdout.count("hello") == 2
    assert "Traceback" in done.stderr
    for printed in (done.stdout, done.stderr):
        assert "hunter" not in printed
        assert not {"\x1b", "\x07", "\x9b", "\r"} & set(printed)
    assert json.loads(done.stdout[done.stdout.index("{") :])["name"] == title


def test_names_that_are_not_utf8_are_printed(capsys):
    name = b"a\xff.jpg".decode(errors="surrogateescape")
    print_line(name)
    print_json({"name": name})
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == "a\\udcff.jpg"
    assert json.loads(printed[printed.index("{") :])["name"] == "a\\udcff.jpg"


@pytest.mark.parametrize("group", ["catalog", "assets", "study", "evaluate"])
def test_help_says_of_each_command_in_a_whole_line_what_it_does(group: str):
    lines = run(*group.split(), "--help").output.splitlines()
    commands = lines[lines.index("Commands:") + 1 :]
    assert commands
    assert [line for line in commands if line.endswith("...")] == []


@pytest.mark.parametrize(
    ("closed", "arguments", "code"),
    [
        (">&-", "--version", 0),
        ("2>&-", "masks --no-such-option", 2),
        ("<&- >&- 2>&-", "--version --json", 0),
        ("<&- >&- 2>&-", "assets verify mobile_sam=none", 3),
        ("<&- 2>&-", "takedown none --dry-run", 2),
    ],
)
def test_a_closed_standard_stream_changes_no_exit_code(closed: str, arguments: str, code: int) -> None:
    line = f"exec {shlex.quote(sys.executable)} -m segmint {arguments} {closed}"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == code


def test_files_never_get_the_descriptor_of_a_closed_standard_stream() -> None:
    script = (
        "import os; from segmint.pipeline.commands.cli import open_streams; open_streams(); "
        "print('anything'); os._exit(0 if os.open(os.devnull, os.O_RDONLY) > 2 else 1)"
    )
    line = f"exec {shlex.quote(sys.executable)} -c {shlex.quote(script)} <&- >&- 2>&-"
    subprocess.run(["bash", "-c", line], cwd=ROOT, check=True, timeout=300)
