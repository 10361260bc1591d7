"""What is installed: one package, beside whatever else has our folders' names, and no more than was asked for."""

import http.cookiejar
import json
import os
import signal
import subprocess
import sys
import tarfile
import tomllib
import urllib.request
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from PIL import Image

from segmint.model.kernels.cpu.build import LIBRARY, NoKernelsError, compiler
from segmint.pipeline.commands.console import EXTRAS
from tests.support.builds import write_catalog, write_config
from tests.support.committed import write_dataset
from tests.support.environments import COMMANDS, ended, installed_wheel, link_packages, python
from tests.support.locations import location_of

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("pipeline", "operators", "model", "catalogs", "infra")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

WITHOUT_UNIX = """
import asyncio, errno, os, signal, sys, torch  # on Linux, Python's asyncio and torch need what is missing below
def no_links(*_, **__): raise PermissionError(errno.EPERM, "Operation not permitted")
os.link = os.symlink = no_links
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
for name in ("O_DIRECTORY", "O_NOFOLLOW", "fork", "getuid", "posix_spawn", "pread", "pwrite", "register_at_fork"):
    delattr(os, name)
for name in ("SIGALRM", "setitimer"):
    delattr(signal, name)
"""
"""Removes what Windows doesn't have, and links, which some disks don't have."""

GENERATE = """
from segmint import MaskGenerator, MaskSettings, Predictor, load_sam
settings = MaskSettings.official(points_per_side=2, pred_iou_thresh=0.5)
MaskGenerator(Predictor(load_sam(sys.argv[1], device="cpu")), settings).generate(sys.argv[3])
"""

SCRIPT = """
import atexit, json, runpy, sys
from segmint import MaskGenerator, MaskSettings, Predictor, load_sam, open_dataset
weights, dataset, photo = sys.argv[1:]
images = [sample.image.shape for sample in open_dataset(dataset)]
import catalogs, infra, model, operators, pipeline
theirs = [module.OWNER for module in (catalogs, infra, model, operators, pipeline)]
answer = {"images": images, "theirs": theirs, "segmint": sys.modules["segmint"].__file__}
atexit.register(print, json.dumps(answer))
"""

MASKS = """
sys.argv = ["segmint", "masks", photo, "-o", "masks", "--weights", weights, "--point", "40,30"]
runpy.run_module("segmint", run_name="__main__")  # ends the process
"""


BEGIN = """
import sys
from segmint.infra.storage.storage import Storage
from segmint.pipeline.building.dataset import open_or_create
from segmint.pipeline.config.config import load_config
numerics = open_or_create(load_config("others.yaml"), Storage()).numerics
print(numerics.torchvision, numerics.facenet_pytorch, numerics.onnxruntime)
"""


def requirements_of(extra: str) -> set[str]:
    """What an extra requires, with what it takes over from other extras."""
    found = set()
    for text in PROJECT["optional-dependencies"][extra]:
        requirement = Requirement(text)
        inner = requirement.extras if requirement.name == "segmint" else ()
        found |= set().union(*map(requirements_of, inner)) if inner else {text}
    return found


def has_compiler() -> bool:
    try:
        compiler()
    except NoKernelsError:
        return False
    return True


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    (found,) = installed_wheel(tmp_path_factory).glob("segmint-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `pip install --no-deps --target` makes of the wheel."""
    return installed_wheel(tmp_path_factory) / "installed"


@pytest.fixture(scope="module")
def base_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages that `pip install segmint` brings without any extra."""
    folder = tmp_path_factory.mktemp("base") / "packages"
    link_packages(PROJECT["dependencies"], folder)
    return without_detectors(folder)


@pytest.fixture(scope="module")
def web_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages that `pip install 'segmint[web]'` brings: none of the detectors'."""
    folder = tmp_path_factory.mktemp("web") / "packages"
    link_packages([*PROJECT["dependencies"], *requirements_of("web")], folder)
    return without_detectors(folder)


def without_detectors(packages: Path) -> Path:
    """A folder of packages, which has none that only the bundled detectors need."""
    for module in ("facenet_pytorch", "onnxruntime", "torchvision"):
        assert not (packages / module).exists()
    return packages


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    """A working folder with somebody else's modules under the names of our folders, a photograph and a dataset."""
    (tmp_path / "pipeline").mkdir()
    for name in ("pipeline/__init__.py", "operators.py", "model.py", "catalogs.py", "infra.py"):
        (tmp_path / name).write_text("OWNER = 'theirs'\n", encoding="utf-8")
    Image.effect_noise((80, 60), 50).convert("RGB").save(tmp_path / "photo.png")
    write_dataset(location_of(tmp_path / "dataset"), shards=1)
    (tmp_path / "script.py").write_text(SCRIPT + MASKS, encoding="utf-8")
    return tmp_path


def test_a_wheel_holds_segmint_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    (metadata,) = {name.split("/")[0] for name in names if not name.startswith("segmint/")}
    assert metadata.endswith(".dist-info")
    names_at_top = ("__init__.py", "__main__.py", "py.typed", "ray.py", "transformers.py")
    expected = {f"segmint/{name}" for name in names_at_top}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "segmint" / "compat").rglob("*.py")}
    for folder in FOLDERS:
        expected |= {f"segmint/{path.relative_to(ROOT)}" for path in (ROOT / folder).rglob("*.py")}
    for part in ("engine/annotate", "engine/evaluate", "quality", "quality/report", "quality/view", "serving"):
        assets = ROOT / "pipeline" / part / "assets"
        expected |= {f"segmint/{path.relative_to(ROOT)}" for path in assets.iterdir() if path.is_file()}
    expected |= {"segmint/catalogs/countries.csv", "segmint/pipeline/building/rates.json"}
    if has_compiler():
        expected.add(f"segmint/model/kernels/cpu/{LIBRARY}")
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl" if has_compiler() else "-py3-none-any.whl")
    assert {name for name in names if name.startswith("segmint/")} == expected


def test_an_sdist_holds_what_the_wheel_is_made_of(wheel: Path) -> None:
    """The wheel of these tests is built from it, so nothing is missing."""
    (sdist,) = wheel.parent.glob("segmint-*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = [member for member in archive if not member.isdir()]
    assert all(member.isfile() for member in members)
    names = {member.name.partition("/")[2] for member in members}
    with zipfile.ZipFile(wheel) as archive:
        packaged = {name for name in archive.namelist() if name.startswith("segmint/") and not name.endswith(LIBRARY)}
    kernels = ROOT / "model" / "kernels" / "cpu"
    sources = {f"segmint/{path.relative_to(ROOT)}" for path in kernels.iterdir() if path.suffix in (".cpp", ".h")}
    files = {"LICENSE", "MANIFEST.in", "NOTICE", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg", "setup.py"}
    assert {name for name in names if not name.startswith("segmint.egg-info/")} == packaged | sources | files


@pytest.mark.parametrize(
    "way", ["wheel without Unix", "editable", pytest.param("checkout beside", marks=pytest.mark.long)]
)
def test_modules_of_our_folders_names_are_nobodys_trouble(
    way: str, request: pytest.FixtureRequest, crowded: Path, mobile_sam_path: Path
) -> None:
    """Nor do masks, generators and readers need a package of the detectors, or what only Linux and macOS have.

    The editable one only reads: it has the checkout's own modules, as most tests have.
    """
    arguments = ["script.py", str(mobile_sam_path), "dataset", "photo.png"]
    if way == "wheel without Unix":
        (crowded / "script.py").write_text(WITHOUT_UNIX + GENERATE + SCRIPT + MASKS, encoding="utf-8")
        installed: Path = request.getfixturevalue("installed")
        base: Path = request.getfixturevalue("base_packages")
        done, home = python(arguments, path=[installed, base], folder=crowded), installed
    elif way == "editable":
        (crowded / "script.py").write_text(SCRIPT, encoding="utf-8")
        done = subprocess.run([sys.executable, *arguments], cwd=crowded, capture_output=True, text=True, check=False)
        home = ROOT
    else:
        base = request.getfixturevalue("base_packages")
        done, home = python(arguments, path=[ROOT, base], folder=crowded), ROOT
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer == {
        "images": [[60, 80, 3], [60, 80, 3]],
        "theirs": ["theirs"] * 5,
        "segmint": str(home / "segmint" / "__init__.py"),
    }
    if way != "editable":
        assert json.loads((crowded / "masks" / "photo.json").read_text(encoding="utf-8"))["annotations"]


def test_a_folder_under_its_bare_name_is_refused(installed: Path, tmp_path: Path) -> None:
    script = (
        "import importlib, sys\nfor name in sys.argv[1:]:\n"
        "    try: importlib.import_module(name)\n    except ImportError as error: print(error)\n"
    )
    outside = python(["-c", script, *FOLDERS], path=[installed], folder=tmp_path)
    assert outside.stdout.splitlines() == [f"No module named '{folder}'" for folder in FOLDERS]
    inside = python(["-c", script, *FOLDERS], path=[ROOT], folder=tmp_path)
    assert inside.stdout.splitlines() == [f"{each} is segmint.{each}: import it by that name" for each in FOLDERS]


def test_a_command_without_its_extra_says_which_to_install(
    installed: Path, base_packages: Path, tmp_path: Path
) -> None:
    """In one process: none of them imports anything that the next one could then do without."""
    expected = [
        ("build config.yaml", "build", "ray"),
        ("plan config.yaml", "build", "ray"),
        ("takedown dataset --ids x --reason y", "build", "ray"),
        ("catalog check catalog.csv", "build", "duckdb"),
        ("demo folder", "demo", "scikit-image"),
        ("audit dataset", "audit", "duckdb"),
        ("report dataset", "report", "matplotlib"),
        ("view dataset", "web", "starlette"),
        ("annotate dataset", "web", "starlette"),
    ]
    commands = [command.split() for command, *_ in expected]
    done = python(["-c", COMMANDS, json.dumps(commands)], path=[installed, base_packages], folder=tmp_path)
    for (_, extra, missing), told in zip(expected, ended(done, commands), strict=True):
        assert told.returncode == 2, told
        assert f"pip install 'segmint[{extra}]'" in told.stderr, told
        assert missing in told.stderr, told
    assert list(tmp_path.iterdir()) == []


def test_audit_and_report_need_no_ray(installed: Path, crowded: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    packages = tmp_path_factory.mktemp("report") / "packages"
    link_packages([*PROJECT["dependencies"], *requirements_of("report")], packages)
    script = "from segmint.pipeline.quality.audit import integrity; integrity.RAY_FROM_MASKS = 0\n" + COMMANDS
    commands = [["audit", "dataset"], ["report", "dataset"]]
    done = python(["-c", script, json.dumps(commands)], path=[installed, packages], folder=crowded)
    audited, reported = ended(done, commands)
    assert (audited.returncode, audited.stdout.splitlines()[0].partition(":")[0]) == (1, "verdict"), audited.stderr
    assert reported.returncode == 0, reported.stderr
    assert (crowded / "dataset" / "report" / "index.html").is_file()
    assert not (packages / "ray").exists()


@pytest.mark.parametrize("command", [pytest.param("view", marks=pytest.mark.long), "annotate"])
def test_pages_need_no_detectors(
    command: str, installed: Path, web_packages: Path, crowded: Path, mobile_sam_path: Path
) -> None:
    arguments = [command, "dataset", "--no-browser", "--port", "0"]
    arguments += ["--weights", str(mobile_sam_path)] if command == "annotate" else []
    variables = {**os.environ, "PYTHONPATH": f"{installed}{os.pathsep}{web_packages}", "SEGMINT_DEBUG": "1"}
    with subprocess.Popen(
        [sys.executable, "-S", "-m", "segmint", *arguments],
        cwd=crowded,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address.startswith("http://127.0.0.1:"), process.communicate()
            browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
            with browser.open(address, timeout=60) as page:
                assert (page.status, b"<html" in page.read()) == (200, True)
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)


def test_a_build_with_other_detectors_needs_no_package_of_the_bundled_ones(
    installed: Path, tmp_path_factory: pytest.TempPathFactory, crowded: Path, mobile_sam_path: Path
) -> None:
    detectors = requirements_of("detectors")
    folder = tmp_path_factory.mktemp("build") / "packages"
    link_packages([*PROJECT["dependencies"], *(requirements_of("build") - detectors)], folder)
    path = [installed, without_detectors(folder)]
    catalog = write_catalog(crowded / "catalog.jsonl", [{"uri": "photo.png", "license": "CC0-1.0"}])
    none = {kind: {"detector": "none"} for kind in ("faces", "plates")}
    weights = {"model": {"weights": str(mobile_sam_path), "device": "cpu"}}
    write_config(crowded / "others.yaml", catalog, crowded / "others", deidentify=none, **weights)
    write_config(crowded / "bundled.yaml", catalog, crowded / "bundled", deidentify={}, **weights)
    commands = [["build", "bundled.yaml"], ["plan", "--sample", "1", "bundled.yaml"]]
    ran = python(["-c", BEGIN + COMMANDS, json.dumps(commands)], path=path, folder=crowded)
    begun, _, ran.stdout = ran.stdout.partition("\n")
    assert begun == "none none none", ran.stderr
    assert (crowded / "others" / "dataset.json").is_file()
    for done in ended(ran, commands):
        assert done.returncode == 2, done.stderr
        assert "the detectors mtcnn and clp need facenet-pytorch, onnxruntime, torchvision, not" in done.stderr
        assert "pip install 'segmint[detectors]'" in done.stderr
    assert not (crowded / "bundled").exists()


def test_an_export_needs_no_extra(installed: Path, base_packages: Path, crowded: Path) -> None:
    command = ["-m", "segmint", "export", "dataset", "--format", "coco", "-o", "out"]
    done = python(command, path=[installed, base_packages], folder=crowded)
    assert done.returncode == 0, done.stderr
    (document,) = (crowded / "out").glob("*.json")
    assert json.loads(document.read_text(encoding="utf-8"))["annotations"]


def test_the_extras_are_those_of_the_project() -> None:
    for extra, modules in EXTRAS.items():
        brought = {Requirement(text).name for text in requirements_of(extra)}
        assert brought - (EXTRAS["detectors"].keys() if extra == "build" else set()) == set(modules)
    everything = {Requirement(text).name for text in requirements_of("all")}
    assert everything >= set().union(*EXTRAS.values())
