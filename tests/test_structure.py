"""Files and folders stay small enough to be read, and tests use public names, as CONTRIBUTING.md says."""

import ast
import os
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("pipeline", "operators", "model", "catalogs", "infra", "segmint", "benchmarks")
MOST_LINES, MOST_FILES, MOST_ENTRIES = 700, 20, 12

PATCHED_ANYWAY = {
    ("tests/operators/custom/test_stage.py", "_exit"),  # a public function of `os`
    ("tests/pipeline/masks/test_interactive_processes.py", "_is_in_bad_fork"),  # torch's, and no process forks here
    ("tests/pipeline/quality/test_signatures.py", "_bcrypt_supported"),  # what cryptography found on import
    ("tests/support/pretended_cuda.py", "_InferenceMode"),  # torch's own class, which refuses a device that isn't there
}
"""Private names that a test replaces although it shouldn't, with the test's file."""


def python_files(root: Path = ROOT) -> list[Path]:
    """Every Python file of the five folders, `segmint/` and `benchmarks/`, once: links to folders are not followed."""
    return [
        Path(folder, file).relative_to(root)
        for name in FOLDERS
        for folder, _, files in os.walk(root / name)
        for file in files
        if file.endswith(".py")
    ]


def too_large(root: Path = ROOT) -> list[str]:
    """The files, and the folders, that are over a limit."""
    files = python_files(root)
    lines = {path: len((root / path).read_text(encoding="utf-8").splitlines()) for path in files}
    counts = Counter(path.parent for path in files if path.name != "__init__.py")
    entries = sorted({path.parts[1] for path in files if path.parts[0] == "pipeline"} - {"__init__.py"})
    return [
        *(f"{path}: {count} lines" for path, count in sorted(lines.items()) if count > MOST_LINES),
        *(f"{folder}/: {count} Python files" for folder, count in sorted(counts.items()) if count > MOST_FILES),
        *([f"pipeline/: {len(entries)} entries"] if len(entries) > MOST_ENTRIES else []),
    ]


def patched_names(text: str) -> list[str]:
    """Return the private names that a test replaces by `setattr` or a patch of `mock`, or that a string gives."""
    found: list[str] = []
    for node in ast.walk(ast.parse(text)):
        given: list[ast.expr] = []
        if isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in ("setattr", "delattr", "patch", "object"):
                given = node.args[:2]
        elif isinstance(node, ast.Constant) and re.fullmatch(r"segmint(\.\w+)+", str(node.value)):
            given = [node]
        names = [str(each.value).rpartition(".")[2] for each in given if isinstance(each, ast.Constant)]
        found += [name for name in names if re.fullmatch(r"_(?!_)\w+", name) and name not in found]
    return sorted(found)


def test_no_file_and_no_folder_is_too_large() -> None:
    found = python_files()
    assert len(found) > 300
    assert {path.parts[0] for path in found} == set(FOLDERS)
    assert too_large() == []


def test_what_is_too_large_is_named(tmp_path: Path) -> None:
    for name in FOLDERS:
        (tmp_path / name).mkdir()
    (tmp_path / "model" / "long.py").write_text("x = 1\n" * (MOST_LINES + 1))
    for number in range(MOST_FILES + 1):
        (tmp_path / "infra" / f"file_{number}.py").touch()
    for number in range(MOST_ENTRIES + 1):
        (tmp_path / "pipeline" / f"part_{number}").mkdir()
        (tmp_path / "pipeline" / f"part_{number}" / "__init__.py").touch()
    (tmp_path / "segmint" / "model").symlink_to(tmp_path / "model")
    assert too_large(tmp_path) == ["model/long.py: 701 lines", "infra/: 21 Python files", "pipeline/: 13 entries"]


def test_tests_replace_public_names() -> None:
    files = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "tests").rglob("*.py")}
    texts = {file: path.read_text(encoding="utf-8") for file, path in files.items()}
    texts = {file: text for file, text in texts.items() if re.search(r"[\"'.]_[A-Za-z]\w*[\"']", text)}
    found = {(file, name) for file, text in texts.items() for name in patched_names(text)}
    assert found == PATCHED_ANYWAY, "pass an argument, or use a public name"


def test_private_names_that_are_replaced_are_found() -> None:
    text = """
monkeypatch.setattr(module, "_LIMIT", 3)
monkeypatch.setattr("segmint.infra.units._parse", str)
mock.patch.object(
    Class, "_method", str
)
patch("os._exit")
monkeypatch.setattr(module, "LIMIT", 3), monkeypatch.setattr(Class, "__init__", str)
name = "segmint.infra.units._UNITS"
"""
    assert patched_names(text) == ["_LIMIT", "_UNITS", "_exit", "_method", "_parse"]


def test_files_that_the_code_names_are_there() -> None:
    """A name in backticks is a path from the root, or the end of one."""
    folders = (*FOLDERS, "tests")
    known = [*ROOT.glob("*.py"), *(path for name in folders for path in (ROOT / name).rglob("*.py"))]
    missing = [
        f"{path}: {name}"
        for path in python_files()
        for name in re.findall(r"`([\w/]+\.py)`", (ROOT / path).read_text(encoding="utf-8"))
        if not any(each.match(f"*/{name}") for each in known)
    ]
    assert missing == []
