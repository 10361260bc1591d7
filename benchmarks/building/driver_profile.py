"""Profile of a build's driver: the shares of Ray Data's scheduling loop, of its parts, and of segmint's code."""

import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

SAMPLES_PER_S = 100

WAITING = "get_output_blocking"
"""Function of Ray Data in which the main thread sleeps most of the time. py-spy counts its sleep as work."""

PARTS = {
    "Ray Data's loop": ("_scheduling_loop_step",),
    "loop: finished tasks": ("process_completed_tasks",),
    "loop: usage and budgets": ("update_usages",),
    "loop: next tasks": ("dispatch_next_task", "select_operator_to_run"),
    "loop: state of actors": ("refresh_state",),
    "Ray Data's metadata thread": ("ThreadedMetadataFetcher._run",),
    "segmint: progress and stalls": ("on_execution_step",),
    "segmint: limit on waiting blocks": ("WaitingBlocks.can_add_input",),
    "segmint: shard writers": ("ShardWriters.",),
}
"""Functions of each part. The parts of the loop are also in `Ray Data's loop`."""


def profile(pid: int, seconds: float) -> dict[str, float]:
    """Sample a process with py-spy for `seconds`. Return the number of samples and each part's share of them."""
    program = shutil.which("py-spy")
    if program is None:
        raise SystemExit("a profile needs py-spy: run `pip install py-spy`")
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "samples"
        command = [program, "record", "--pid", str(pid), "--duration", str(round(seconds)), "--format", "raw"]
        command += ["--rate", str(SAMPLES_PER_S), "--threads", "--nonblocking", "--output", str(samples)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return shares(samples.read_text().splitlines())


def shares(lines: Iterable[str]) -> dict[str, float]:
    """Return the number of samples and each part's share of them. Samples of the main thread's sleep don't count."""
    counts: Counter[str] = Counter()
    total = 0
    for line in lines:
        stack, number = line.rsplit(" ", 1)
        frames = stack.split(";")
        if WAITING in frames[-1]:
            continue
        total += int(number)
        for part, functions in PARTS.items():
            if any(function in frame for frame in frames for function in functions):
                counts[part] += int(number)
    if not total:
        raise SystemExit("py-spy found no sample of a thread that was running")
    return {"samples": total, **{part: round(counts[part] / total, 3) for part in PARTS}}
