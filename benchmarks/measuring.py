"""Shared parts of benchmarks: photographs, separate processes, memory, spreads, and results."""

import json
import multiprocessing
import os
import resource
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# A thread that spins while waiting occupies a core. As soon as anything else runs, it takes that core from the thread
# that it waits for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
SCIKIT_IMAGE = ("astronaut", "coffee", "chelsea")
MIB = 1 << 20


def photographs(
    folder: Path | None = None, only: Sequence[str] | None = None, scikit_image: bool = False
) -> dict[str, str]:
    """Return the source of each photograph by name: a file, or one of scikit-image's names.

    The folder's photographs come first; `only` selects some of them by names without suffix. scikit-image's follow if
    requested. Without a folder, `only` selects among scikit-image's. Raises SystemExit for a name that doesn't exist or
    exists twice.
    """
    own = {name: name for name in SCIKIT_IMAGE}
    if folder is None:
        found = own
    else:
        files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
        found = {path.stem: str(path) for path in files}
        if len(found) < len(files):
            raise SystemExit(f"{folder} has photographs of one name with several suffixes: expected each name once")
    chosen = {name: found[name] for name in (only or found) if name in found}
    missing = set(only or ()) - set(found)
    if missing or not chosen:
        names = ", ".join(sorted(missing)) or "to measure"
        raise SystemExit(f"no photograph {names}: expected names from {', '.join(sorted(found)) or 'an empty folder'}")
    if folder is None or not scikit_image:
        return chosen
    if set(own) & set(chosen):
        raise SystemExit(f"{', '.join(set(own) & set(chosen))}: both in {folder} and scikit-image's")
    return {**chosen, **own}


def read(source: str) -> Any:
    """Read a photograph's pixels, (height, width, 3) uint8 RGB, from a source of `photographs`."""
    import numpy as np
    from PIL import Image

    if source in SCIKIT_IMAGE:
        from skimage import data

        return np.asarray(getattr(data, source)())
    with Image.open(source) as image:
        return np.asarray(image.convert("RGB"))


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process, so that it has its own peak memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


@contextmanager
def waiting_as_shipped() -> Iterator[None]:
    """Let processes that are started in this block wait by spinning, which is OpenMP's default.

    On an idle machine, this makes the reference's operations faster, because they use all threads.
    """
    policy = os.environ.pop("OMP_WAIT_POLICY", None)
    try:
        yield
    finally:
        if policy is not None:
            os.environ["OMP_WAIT_POLICY"] = policy


def peak_mib() -> int:
    """Return this process's peak memory in MiB, including weights and libraries.

    It is read from `VmHWM`, because Linux includes the parent process's size in `ru_maxrss`.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) >> 10
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) // MIB


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Return the median, minimum, and maximum, rounded to `digits` decimals."""
    found = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


class Figures:
    """Writer of a result's figures by part, which writes the result as soon as a figure is measured.

    If the result already contains figures from the same machine and versions, they are kept. A benchmark can therefore
    be resumed after an interruption, or measure some figures at a time.
    """

    def __init__(self, output: Path, name: str, machine: dict[str, Any]) -> None:
        self._output, self._name, self._machine = output, name, machine
        before = json.loads(output.read_text()) if output.exists() else {}
        load = "load_average_before"
        same = {**before.get("machine", {}), load: None} == {**machine, load: None}
        self._parts = {name: part for name, part in before.items() if same and isinstance(part, list)}

    def add(self, part: str, settings: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> None:
        """Measure a figure unless one with these settings exists, print it, and write the result.

        The machine's load before the measurement is recorded with the figure.
        """
        figures = self._parts.setdefault(part, [])
        kept = next((each for each in figures if settings.items() <= each.items()), None)
        if kept is None:
            load = round(os.getloadavg()[0], 2)
            figures.append({**settings, **measure(), "load_before": load})
            write_result(self._output, self._name, self._machine, self._parts)
        print("kept:" if kept else "measured:", kept or figures[-1], flush=True)


def write_result(output: Path, name: str, machine: dict[str, Any], parts: dict[str, Any]) -> None:
    """Write a benchmark's result as JSON: name, date (UTC), machine, command, commit, and parts."""
    output.parent.mkdir(parents=True, exist_ok=True)
    date = datetime.now(UTC).date().isoformat()
    made = {"benchmark": name, "date": date, "machine": machine, "command": command_of(sys.argv), "commit": commit()}
    output.write_text(json.dumps({**made, **parts}, indent=2) + "\n")


def command_of(arguments: Sequence[str]) -> str:
    """Return this process's command, relative to the repository's root. Files elsewhere are reduced to their names."""
    words = []
    for word in arguments:
        path = Path(word)
        if path.is_absolute() or path.exists():
            inside = path.resolve().is_relative_to(ROOT)
            word = str(path.resolve().relative_to(ROOT)) if inside else path.name
        words.append(word)
    return shlex.join(["python", *words])


def commit() -> str | None:
    """Return the checkout's commit, with `-dirty` if code has changed since. Return None without git."""
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results", ":!docs"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}-dirty" if changed else head
