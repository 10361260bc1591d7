"""Every `segmint …` that the README and the docs show is a command line that segmint takes."""

import importlib.util
import json
import re
import shlex
from importlib.metadata import version
from pathlib import Path

import pytest
import typer.main

from segmint.pipeline.commands.cli import app

ROOT = Path(__file__).resolve().parents[2]
RAY = Path(importlib.util.find_spec("ray").origin).parent
PINNED_RAY = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "SECURITY.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def shown_commands() -> list[str]:
    """Lines of code blocks that begin with `segmint`, continued ones joined; `segmint …` in sentences is not taken."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            lines = block.replace("\\\n", " ").splitlines()
            found += [line for line in lines if line.startswith("segmint ")]
    return found


@pytest.mark.parametrize("line", shown_commands())
def test_a_command_shown_is_taken(line: str) -> None:
    _, *arguments = shlex.split(line, comments=True)
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        with command.make_context(command.name, arguments) as context:
            name, *arguments = [*context._protected_args, *context.args]  # noqa: SLF001 - as click's groups do
            found = command.get_command(context, name)
        assert found is not None, f"there is no command {name!r}"
        command = found
    with command.make_context(command.name, arguments):  # parses, and raises for what it does not know
        pass


def test_commands_are_shown() -> None:
    assert len(shown_commands()) > 10


def test_every_link_to_a_file_leads_somewhere() -> None:
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)[^)]*\)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    words = [re.sub(r"[^\w\s-]", "", title.lower()) for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    return {title.strip().replace(" ", "-") for title in words}


def test_every_link_to_a_heading_leads_to_one() -> None:
    for page in PAGES:
        for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
            assert anchor in slugs(page.parent / target if target else page), f"{page.name}: {target}#{anchor}"


def test_every_file_that_is_named_is_there() -> None:
    """Paths from the root into a folder of the code, or of the installed Ray; `name.py` also by its name alone."""
    folders = ("infra", "catalogs", "model", "operators", "pipeline", "tests", "benchmarks")
    files = [*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.*"))]
    found = 0
    for page in PAGES:
        for name in re.findall(r"`([\w./-]+)`", page.read_text(encoding="utf-8")):
            if name.split("/")[0] in folders and "/" in name:
                assert (ROOT / name).exists(), f"{page.name}: {name}"
                found += 1
            elif name.startswith("ray/"):  # the pages name files of the pinned version
                assert (RAY.parent / name).exists() or version("ray") != PINNED_RAY, f"{page.name}: {name}"
            elif name.endswith(".py"):
                assert any(path.match(f"*/{name}") for path in files), f"{page.name}: {name}"
    assert found > 50


def test_every_folder_is_on_the_page_of_the_code() -> None:
    page = (ROOT / "docs" / "code.md").read_text(encoding="utf-8")
    for layer in ("pipeline", "operators", "model", "catalogs", "infra"):
        for folder in sorted(path.parent for path in (ROOT / layer).glob("*/__init__.py")):
            assert f"`{layer}/{folder.name}/`" in page, f"{layer}/{folder.name}/"


def test_pictures_are_shown_small_and_credited() -> None:
    """Those with photographs are in NOTICE; drawings have none."""
    pictures = [
        path for path in (ROOT / "docs").rglob("*") if path.suffix in {".jpg", ".jpeg", ".png", ".webp", ".svg"}
    ]
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    credits_of = (ROOT / "NOTICE").read_text(encoding="utf-8")
    assert len(pictures) > 3
    for path in pictures:
        assert re.search(rf"!\[[^\]]{{20,}}\]\([^)]*images/{re.escape(path.name)}\)", text), (
            f"no page shows {path.name}"
        )
        assert path.stat().st_size < 300_000, path.name
        assert path.suffix == ".svg" or path.name in credits_of, f"NOTICE does not credit {path.name}"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"!\[.*?\]\((.*?)\)", readme) == ["docs/images/overlay.jpg"]
    assert "CC0-1.0" in readme


def test_every_promise_of_security_names_files_that_are_there() -> None:
    """A row is a promise, how it is kept, where, and what attacks it."""
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    promises = [line.split(" | ") for line in page.splitlines() if line.startswith("| ") and line.count("|") == 5]
    assert len(promises) > 10
    folders = ("infra", "catalogs", "model", "operators", "pipeline", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    for promise, _, where, attacks in promises[1:]:
        for cell, word in ((where, ".py"), (attacks, "test")):
            names = re.findall(r"`([\w/]+\.py)`", cell)
            assert any(word in name for name in names), promise
            for name in names:
                assert any(path.match(f"*/{name}") for path in files), name


def test_the_table_of_the_ray_data_script_is_the_recorded_result() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "ray_script.json").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for side in result["sides"]:
        named = "yes" if side["named"] else "no"
        minutes = f"{side['minutes']:.1f}" + ("" if side["ended_by_itself"] else ", never ended")
        cells = [side["done"], side["lost"], side["twice"], named, minutes, f"{side['cpu_s']:.0f}"]
        assert f"| `{side['side']}` | {' | '.join(map(str, cells))} |" in readme
