"""Run the long tests in pieces, and keep a table of their results in `.ci/long_tests.json`.

    python .ci/long_tests.py [--minutes 55]    run the files whose result is missing, red, or outdated, until time is up
    python .ci/long_tests.py FILE…             run only these of them
    python .ci/long_tests.py --check           fail unless each file has a result that is green and still holds

Green means that all long tests of the file passed, and none was skipped.

A piece is one test file. Its result holds as long as nothing changes that decides about it: the file itself, the parts
of segmint, of `tests/`, and of `benchmarks/` that it imports, directly or not, and the fixtures of its folders. A file
that runs commands depends on all of segmint, because a command imports what it needs only when it runs.
"""

import argparse
import ast
import datetime
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / ".ci" / "long_tests.json"
MARK = "long and not cuda and not cluster"
RESULTS = {0: "passed", 5: "none"}
"""Results by pytest's exit code; others mean `failed`. `none`: all long tests of the file need a GPU or a cluster."""

COMMANDS = ("segmint.pipeline.commands.cli", '"-m", "segmint"')
"""What a file says that runs commands in this process or in another one."""


def pieces(root: Path = ROOT) -> list[str]:
    """Return the test files that contain a long test, as paths from the root, in order."""
    files = sorted((root / "tests").rglob("test_*.py"))
    return [str(path.relative_to(root)) for path in files if "pytest.mark.long" in _data(path).decode()]


def digest(piece: str, root: Path = ROOT) -> str:
    """Return a SHA-256 of all files that decide about the result of a piece."""
    found = hashlib.sha256()
    for path in sorted(_files_of(piece, root)):
        found.update(f"{path.relative_to(root)} {hashlib.sha256(_data(path)).hexdigest()}\n".encode())
    return found.hexdigest()


def problem(entry: dict[str, Any] | None, of_now: str) -> str | None:
    """Return what is wrong with a piece's entry in the table, for the tree with this digest. None means green."""
    if entry is None:
        return "no result"
    if entry["result"] not in RESULTS.values() or "skipped" in entry["tests"]:
        return f"{entry['result']} on {entry['date']}: {entry['tests']}"
    if entry["digest"] != of_now:
        return f"code that it tests has changed since {entry['date']}"
    return None


def problems(table: dict[str, Any], root: Path = ROOT) -> list[str]:
    """Return a line for each piece without a green result that still holds, and for each entry without a file."""
    known = pieces(root)
    found = {piece: problem(table.get(piece), digest(piece, root)) for piece in known}
    lines = [f"{piece}: {what}" for piece, what in found.items() if what is not None]
    return [*lines, *(f"{piece}: no such file" for piece in sorted(set(table) - set(known)))]


def run(minutes: float, chosen: list[str]) -> int:
    """Run the outdated pieces, or those chosen, until the minutes are over. Return 0 if all are green, otherwise 1."""
    end = time.monotonic() + 60 * minutes
    table = read_table()
    for piece in chosen or pieces():
        now = digest(piece)
        if problem(table.get(piece), now) is None:
            continue
        left = end - time.monotonic()
        if left <= 0:
            break
        entry = _run_piece(piece, now, left)
        if entry is None:
            print(f"{piece}: stopped, because time is up", flush=True)
            break
        table[piece] = entry
        _write_table(table)
        print(f"{piece}: {entry['tests']}", flush=True)
    left_over = problems(table)
    print(*left_over, f"{len(pieces()) - len(left_over)} of {len(pieces())} files with long tests are green", sep="\n")
    return 1 if left_over else 0


def read_table() -> dict[str, Any]:
    """Read the results by piece."""
    return json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}


def _write_table(table: dict[str, Any]) -> None:
    known = {piece: table[piece] for piece in pieces() if piece in table}
    TABLE.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def _run_piece(piece: str, of_now: str, seconds: float) -> dict[str, Any] | None:
    """Run a piece's long tests. Return its entry, or None if it didn't end in time."""
    start = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-m", MARK, piece]
    try:
        done = subprocess.run(
            command, cwd=ROOT, timeout=seconds, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    except subprocess.TimeoutExpired:
        return None
    result = RESULTS.get(done.returncode, "failed")
    if result == "failed":
        print(done.stdout)
    summaries = re.findall(r"^=* ?(.*\b(?:passed|failed|skipped|deselected|error)\b.*? in [\d.]+s)", done.stdout, re.M)
    return {
        "result": result,
        "tests": summaries[-1] if summaries else f"exit code {done.returncode}",
        "seconds": round(time.monotonic() - start),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "tree": _git("rev-parse", "HEAD^{tree}"),
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no", "--", ":!.ci/long_tests.json")),
        "cpu": _cpu(),
        "digest": of_now,
    }


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def _files_of(piece: str, root: Path) -> set[Path]:
    """Return the files of the repository that decide about a piece's result."""
    first = root / piece
    files = {first, *(folder / "conftest.py" for folder in first.parents if (folder / "conftest.py").exists())}
    todo = list(files)
    while todo:
        for path in _imported(todo.pop(), root):
            if path not in files:
                files.add(path)
                todo.append(path)
    if any(words.encode() in _data(path) for path in files for words in COMMANDS):
        files |= _product(root)
    return files


@cache
def _product(root: Path) -> frozenset[Path]:
    """Return all files of segmint, but not what is built from them."""
    folders = [root / name for name in ("catalogs", "infra", "model", "operators", "pipeline", "segmint")]
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix not in (".pyc", ".so")]
    return frozenset(path for path in files if path.is_file())


@cache
def _data(path: Path) -> bytes:
    return path.read_bytes()


@cache
def _imported(path: Path, root: Path) -> tuple[Path, ...]:
    """Return the files of the repository that a file imports itself, at its top or in a function."""
    if path.suffix != ".py":
        return ()
    found = []
    for node in ast.walk(ast.parse(_data(path))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += _modules([node.module, *(f"{node.module}.{each.name}" for each in node.names)], root)
        elif isinstance(node, ast.Import):
            found += _modules([each.name for each in node.names], root)
    return tuple(dict.fromkeys(found))


def _modules(names: Iterable[str], root: Path) -> Iterator[Path]:
    """Yield the files of modules of the repository; other modules have none."""
    for name in names:
        place = root.joinpath(*name.removeprefix("segmint.").split(".")) if name.count(".") else root / name
        for path in (place.with_suffix(".py"), place / "__init__.py", root / "segmint" / f"{place.name}.py"):
            if path.exists() and path.is_relative_to(root):
                yield path


def main() -> int:
    """Run the pieces, or check the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=55)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("pieces", nargs="*", metavar="FILE")
    arguments = parser.parse_args()
    if unknown := set(arguments.pieces) - set(pieces()):
        parser.error(f"no long tests in {', '.join(sorted(unknown))}")
    if not arguments.check:
        return run(arguments.minutes, arguments.pieces)
    lines = problems(read_table())
    print(*lines, f"{len(lines)} problems with the long tests' results", sep="\n")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
