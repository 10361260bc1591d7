"""The packages that `make setup` installs: their hashes, their versions in constraints.txt, and NOTICE."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCKED = re.compile(r"^(\S+)==(\S+)(?: ; .*)? \\\n((?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE)


def pins(text: str) -> dict[str, str]:
    """Versions by name, of lines such as `numpy==2.4.6`."""
    found = re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==([\w.+!-]+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def locked(name: str) -> dict[str, str]:
    """Versions by name in a file that `make lock` wrote; every package must have hashes."""
    text = (ROOT / ".ci" / name).read_text(encoding="utf-8")
    assert "make lock" in text
    lines = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    assert len(lines) == len(LOCKED.findall(text))
    return pins(text)


def direct(*without: str) -> list[Requirement]:
    """Return the requirements in pyproject.toml, leaving out some extras."""
    extras = {name: texts for name, texts in PROJECT["optional-dependencies"].items() if name not in without}
    texts = [*PROJECT["dependencies"], *(text for extra in extras.values() for text in extra)]
    return [found for found in map(Requirement, texts) if found.name != "segmint"]


def test_the_packages_are_locked_in_the_versions_of_the_constraints() -> None:
    found = locked("requirements.txt")
    constraints = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert {name: constraints.get(name) for name in found} == found, "run `make lock`"
    for requirement in direct("docs", "azure"):
        version = found.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} isn't locked: run `make lock`"
        assert requirement.specifier.contains(version), f"{requirement} is locked as {version}: run `make lock`"


def test_the_weight_packages_are_locked() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = re.findall(r"^(?:WEIGHT_PACKAGES|LABEL_STUDIO) := (.*)$", makefile, re.MULTILINE)
    assert locked("weights.txt") == pins("\n".join(" ".join(named).split())), "run `make lock`"


def test_the_notice_names_every_package_that_pyproject_does() -> None:
    words = {canonicalize_name(word) for word in re.findall(r"[\w-]+", (ROOT / "NOTICE").read_text(encoding="utf-8"))}
    assert sorted({str(one) for one in direct("docs") if canonicalize_name(one.name) not in words}) == []
