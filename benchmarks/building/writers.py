"""Rows per second of a build against its number of shard writers, with rows of realistic size and an S3 server.

    python benchmarks/building/writers.py [--rows N] [--writers N ...] [--folder DIR] [--output FILE]

Each row contains an image of 450 kB and 100 masks. The two pixel stages are stubs (see `stubs.py`), and all other parts
are real. The object store is smaller than the shards that eight writers hold, so Ray must spill or wait. The S3 server
runs on the same machine and shares its cores. Every fiftieth row is rejected for its license. The result contains the
rows per second of the whole command, and the rows per second between the first and the last commit.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.building.resume import s3_server  # noqa: E402
from benchmarks.building.scale import REFUSED_EVERY, write_build  # noqa: E402
from benchmarks.building.stubs import MANY_MASKS, RELEASE_BYTES  # noqa: E402
from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.measuring import RESULTS, Figures  # noqa: E402
from segmint.catalogs.dataset.commits import (  # noqa: E402
    CommitLog,
    sum_listing,
)
from segmint.infra.storage.location import Location  # noqa: E402
from segmint.infra.storage.storage import Storage  # noqa: E402

IMAGE_BYTES = 450_000
MASKS = 100
SHARD_ROWS = 50
OBJECT_STORE = 100_000_000


def main() -> None:
    """Build once for each number of writers, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=800)
    parser.add_argument("--writers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--folder", type=Path, help="folder for the server's objects")
    parser.add_argument("--output", type=Path, default=RESULTS / "writers.json")
    arguments = parser.parse_args()
    machine = describe_machine(1, "fp32", packages=("ray", "pyarrow", "s3fs"))
    figures = Figures(arguments.output, "writers", machine)
    settings = {
        "rows": arguments.rows,
        "image_bytes": IMAGE_BYTES,
        "masks_per_image": MASKS,
        "images_per_shard": SHARD_ROWS,
        "object_store_memory": OBJECT_STORE,
    }
    for writers in arguments.writers:
        with tempfile.TemporaryDirectory(prefix="segmint-writers-", dir=arguments.folder) as name:
            run = partial(measure, Path(name), arguments.rows, writers)
            figures.add("runs", {**settings, "writers": writers}, run)


def measure(folder: Path, rows: int, writers: int) -> dict[str, Any]:
    """Build `rows` rows with this number of writers. Raises SystemExit if a row is lost or the build fails."""
    with s3_server(folder) as server:
        storage = {"s3://": {"endpoint_url": server.endpoint_url}}
        output = f"s3://{server.make_bucket()}/dataset"
        config = write_build(
            folder,
            rows,
            output=output,
            storage=storage,
            images_per_shard=SHARD_ROWS,
            resources={"address": "local", "object_store_memory": OBJECT_STORE, "writers": writers},
        )
        command = [sys.executable, str(ROOT / "benchmarks" / "building" / "stubbed_build.py"), str(config)]
        environment = {**os.environ, RELEASE_BYTES: str(IMAGE_BYTES), MANY_MASKS: str(MASKS)}
        began = time.monotonic()
        with (folder / "log").open("wb") as log:
            build = subprocess.run(
                [*command, str(folder / "accounting.json")], cwd=ROOT, env=environment, stdout=log, stderr=log
            )
        seconds = time.monotonic() - began
        if build.returncode:
            raise SystemExit(f"the build ended with {build.returncode}:\n{(folder / 'log').read_text()[-4000:]}")
        commits = CommitLog(Location(Storage(storage), output))
        sums = sum_listing(Location(Storage(storage), output), commits.latest_commits())
        times = sorted(
            entry["LastModified"].timestamp()
            for entry in server.client().list_objects_v2(Bucket=output.split("/")[2], Prefix="dataset/commits/")[
                "Contents"
            ]
        )
        kept = rows - rows // REFUSED_EVERY
        if (sums.counts["images"], sums.counts["masks"]) != (kept, MASKS * kept):
            raise SystemExit(f"{rows} rows went in, but {sums} came out")
        return {
            "seconds": round(seconds, 1),
            "rows_per_s": round(rows / seconds, 1),
            "rows_per_s_between_commits": round((rows - SHARD_ROWS) / max(1.0, times[-1] - times[0]), 1),
        }


if __name__ == "__main__":
    main()
