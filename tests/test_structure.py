"""Files and folders stay small enough to be read: the limits that CONTRIBUTING.md states."""

import os
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("pipeline", "operators", "model", "catalogs", "infra", "segmint", "benchmarks")
MOST_LINES, MOST_FILES, MOST_ENTRIES = 700, 20, 12


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
