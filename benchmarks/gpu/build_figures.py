"""Run of a build in a process, and its figures: rates, share of the ceiling, and load."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.both import BUNDLE
from benchmarks.gpu.samples import Samples

ROOT = Path(__file__).resolve().parents[2]

FEWEST_COMMITS = 4
"""Minimum number of commits for a rate between commits. With fewer, most images are computed before the first one."""

OUTPUT_TAIL = 4000
STOP_S = 20.0
"""Seconds between asking a process to end and killing it."""

ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONUNBUFFERED": "1",
    "RAY_AUTH_MODE": "disabled",  # Ray listens on the loopback interface only, and a home folder may be read-only
    "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE": "1",  # with a small /dev/shm, Ray uses the temporary folder
    "RAY_USAGE_STATS_ENABLED": "0",
    "SEGMINT_CACHE": str(BUNDLE),
}
"""Environment variables of the builds that take effect unless they are already set."""


@dataclass(frozen=True)
class Finished:
    """Result of a command. `code` is None if it was stopped because it exceeded its time."""

    code: int | None
    output: str
    errors: str
    began: float  # seconds since the epoch
    ended: float

    @property
    def tail(self) -> str:
        """End of both outputs, for a message."""
        return f"{self.output[-OUTPUT_TAIL // 4 :]}\n{self.errors[-OUTPUT_TAIL:]}".strip()


@dataclass(frozen=True)
class CommittedShard:
    """Shard of a finished or stopped build: when it was committed, in seconds since the epoch, and its images."""

    at: float
    images: int


def rates(shards: Sequence[CommittedShard], began: float, ended: float, rows: int) -> dict[str, Any]:
    """Return the images per second of the whole command, and of the time between the first and the last commit.

    The second rate excludes the images of the first commit. It's None with fewer than `FEWEST_COMMITS` commits. If the
    build was stopped, the first rate is None.
    """
    ordered = sorted(shards, key=lambda shard: shard.at)
    images = sum(shard.images for shard in ordered)
    found: dict[str, Any] = {"images": images, "seconds": ended - began, "commits": len(ordered)}
    found["images_s"] = images / (ended - began) if images == rows else None
    found["first_commit_s"] = ordered[0].at - began if ordered else None
    found["images_s_between_commits"] = None
    if len(ordered) >= FEWEST_COMMITS and ordered[-1].at > ordered[0].at:
        found["images_s_between_commits"] = (images - ordered[0].images) / (ordered[-1].at - ordered[0].at)
    return found


def accounted(accounting: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `segmint build --json` reports. `found` has the rate between commits, to compare with the ceiling."""
    ceiling = accounting["ceiling"] or {}
    most, steady = accounting["ceiling_images_per_s"], found["images_s_between_commits"]
    return {
        "masks": accounting["masks"],
        "rejected": accounting["rejected"],
        "digest": (accounting["version"] or {}).get("digest"),
        "run_seconds": accounting["seconds"],
        "run_images_s": accounting["images_per_s"],
        "share_of_ceiling": accounting["share_of_ceiling"],
        "share_of_ceiling_between_commits": steady / most if steady and most else None,
        "ceiling_images_s": most,
        "peak_tflops": ceiling["flop_per_s"] / 1e12 if ceiling else None,
        "drawn_per_image": ceiling.get("drawn_per_image"),
        "device_kind": ceiling.get("device_kind"),
        "precision": ceiling.get("precision"),
        "stages": {stage["stage"]: stage["share"] for stage in accounting["stages"]},
    }


def per_million(images_s: float | None, gpus: int, price: float | None) -> dict[str, float] | None:
    """Return the seconds, GPU-hours, and cost of a million images at a rate. `price` is of a GPU-hour."""
    if not images_s:
        return None
    hours = 1e6 / images_s / 3600 * gpus
    found = {"seconds": 1e6 / images_s, "gpu_hours": hours}
    if price is not None:
        found["cost"] = hours * price
    return found


def load_of(samples: Samples, done: Finished, shards: Sequence[CommittedShard]) -> dict[str, Any]:
    """Return the load during the command, and between the first and the last commit."""
    found = {"load": samples.summary(done.began, done.ended)}
    if len(shards) > 1:
        times = [shard.at for shard in shards]
        found["load_between_commits"] = samples.summary(min(times), max(times))
    return found


def committed(output: Path) -> list[CommittedShard]:
    """List the committed shards of a dataset that was built in this run. The list is empty if it doesn't exist."""
    from segmint.catalogs.dataset.commits import CommitLog
    from segmint.infra.storage.location import Location
    from segmint.infra.storage.storage import Storage

    if not output.is_dir():
        return []
    log = CommitLog(Location(Storage({}), str(output)))
    found = []
    for listed in log.latest_commits():
        content = log.read(*listed.key)
        if content is not None:
            found.append(CommittedShard(listed.modified.timestamp(), content.counts["images"]))
    return found


def failed(done: Finished) -> dict[str, Any]:
    """Return the record of a command that failed or was stopped, with the end of its output."""
    reason = f"exit code {done.code}"
    if done.code is None:
        reason = f"stopped after {done.ended - done.began:.0f} s"
    last = done.tail.splitlines()[-1:] or ["no output"]
    return {"failed": f"{reason}: {last[0][:300]}", "output": done.tail}


def child_environment(given: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the builds.

    Ray's processes run in other folders, so relative paths in PYTHONPATH become absolute. No address of a cluster is
    passed on.
    """
    environment = {**ENVIRONMENT, **given}
    paths = [str(ROOT), *(path for path in given.get("PYTHONPATH", "").split(os.pathsep) if path)]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(str(Path(path).resolve()) for path in paths))
    environment["SEGMINT_CACHE"] = str(Path(environment["SEGMINT_CACHE"]).resolve())
    environment.pop("RAY_ADDRESS", None)
    return environment


def run_command(command: Sequence[str], folder: Path, environment: Mapping[str, str], limit_s: float) -> Finished:
    """Run a command in its own session. After `limit_s`, ask it to end, and then kill it and its children.

    Its outputs go to files in `folder`, because processes that outlive the command could keep a pipe open.
    """
    output, errors = folder / "output.txt", folder / "errors.txt"
    began = time.time()
    code: int | None
    with output.open("w") as out, errors.open("w") as err:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=err, start_new_session=True)
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
        finally:
            ended = time.time()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also what the command left behind
            process.wait()
    return Finished(code, output.read_text(errors="replace"), errors.read_text(errors="replace"), began, ended)
