"""Time to resume a build of a dataset with 40,000 commits on a local S3 server.

    python benchmarks/building/resume.py [--commits N] [--folder FOLDER] [--output FILE]

A build with one image per shard, and with stubs for the pixel stages (see `stubs.py`), creates the dataset. All shards
except the first and the last are then written as copies of the first one, each with its own name and commit. Next, a
build resumes the dataset twice: first without summaries, and then with the summaries that the first build left. The
result contains the seconds from the start of the command until the missing shards are known, until the first commit,
and until the end.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.building.scale import write_build  # noqa: E402
from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.measuring import RESULTS, write_result  # noqa: E402
from segmint.catalogs.dataset.commits import CommitLog  # noqa: E402
from segmint.catalogs.layout import data_path  # noqa: E402
from segmint.infra.storage.location import Location  # noqa: E402
from segmint.infra.storage.storage import Storage  # noqa: E402
from tests.support.s3_server import ACCESS_KEY, SECRET_KEY, S3Server  # noqa: E402

THREADS = 32


def main() -> None:
    """Create the dataset, resume it twice, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commits", type=int, default=40_000)
    parser.add_argument("--folder", type=Path, help="folder for the server's objects")
    parser.add_argument("--output", type=Path, default=RESULTS / "resume.json")
    arguments = parser.parse_args()
    machine = describe_machine(1, "fp32", packages=("ray", "s3fs"))
    with tempfile.TemporaryDirectory(prefix="segmint-resume-", dir=arguments.folder) as name:
        parts = measure(Path(name), arguments.commits)
    write_result(arguments.output, "resume", machine, parts)
    for title, times in parts["builds"].items():
        print(f"{title}: {times}")


def measure(folder: Path, commits: int) -> dict[str, Any]:
    """Create a dataset with `commits` commits, and resume it twice."""
    with s3_server(folder) as server:
        options = {"s3://": {"endpoint_url": server.endpoint_url}}
        dataset = Location(Storage(options), f"s3://{server.make_bucket()}/dataset")
        keys = {"images_per_shard": 1, "output": str(dataset), "storage": options}
        config = write_build(folder, commits + 1, **keys)
        build(config, "--shards", "0:1")
        began = time.perf_counter()
        put_commits(dataset, range(1, commits))
        made = time.perf_counter() - began
        first = build(config)
        log = CommitLog(dataset)
        log.location(commits, 1).delete()
        return {
            "settings": {"commits": commits},
            "builds": {"without summaries": first, "with summaries": build(config)},
            "putting_s": round(made, 1),
        }


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Run a real S3 server, with its credentials in the environment."""
    os.environ |= {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    os.environ |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
    server = S3Server(folder / "s3")
    server.folder.mkdir(exist_ok=True)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def put_commits(dataset: Location, shards: range) -> None:
    """Write and commit shards that contain the files of shard 0 under their own names."""
    log = CommitLog(dataset)
    first = log.read(0, 1)
    if first is None:
        raise SystemExit("the first shard is not committed")
    data = {entry.path: (dataset / entry.path).read() for entry in first.files}

    def put(shard: int) -> None:
        files = []
        for entry in first.files:
            path = data_path(entry.path.partition("/")[0], shard, entry.sha256)
            (dataset / path).put(data[entry.path])
            files.append(replace(entry, path=path))
        if not log.put(replace(first, shard=shard, ordinals=(shard, shard + 1), files=tuple(files))):
            raise SystemExit(f"shard {shard} is committed already")

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(put, shards, chunksize=64):
            pass


def build(config: Path, *options: str) -> dict[str, Any]:
    """Run a build, and return the seconds from its start to its end and to some events in its log."""
    answer = config.with_name("accounting.json")
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "building" / "stubbed_build.py"),
        str(config),
        str(answer),
        *options,
    ]
    began, clock = datetime.now(UTC), time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    seconds = time.perf_counter() - clock
    if done.returncode:
        raise SystemExit(f"the build ended with {done.returncode}:\n{done.stderr[-4000:]}")
    times = {"opened": [], "committed": []}
    for line in done.stderr.splitlines():
        event = json.loads(line) if line.startswith("{") else {}
        if event.get("event") in times:
            after = datetime.fromisoformat(event["timestamp"]) - began
            times[event["event"]].append(round(after.total_seconds(), 1))
    accounting = json.loads(answer.read_text())
    return {
        "opened_s": times["opened"][0],
        "first_commit_s": times["committed"][0],
        "seconds": round(seconds, 1),
        "shards": accounting["shards"],
        "built_rows": accounting["built_rows"],
    }


if __name__ == "__main__":
    main()
