"""Run time of `segmint status` for a large dataset in a bucket or folder.

    python benchmarks/datasets/status.py --dataset s3://bucket/large --shards 40000

`--dataset` must not exist yet. The commits are the same as from a build. Of the files that they name, only the ones
that `segmint status` reads are written: the `images` tables of the last shards and of its sample. The benchmark
measures three runs: the first one, which sums every commit, the next one, which reads the sums per block, and one after
more commits.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import pyarrow as pa  # noqa: E402

from segmint.catalogs.dataset.commits import Commit, CommitLog, FileEntry  # noqa: E402
from segmint.catalogs.dataset.manifest import CatalogPart, DatasetManifest, ModelWeights  # noqa: E402
from segmint.catalogs.layout import MANIFEST, data_path, json_sha256, part_path  # noqa: E402
from segmint.catalogs.parquet import table_bytes  # noqa: E402
from segmint.infra.storage.location import Location  # noqa: E402
from segmint.infra.storage.storage import Storage  # noqa: E402
from segmint.operators.rows import SCHEMAS  # noqa: E402
from segmint.pipeline.building.status import last_and_sample  # noqa: E402

ROWS = 500
KINDS = ("shards", "images", "masks", "rejects")
LEFT = 1000
"""Number of shards that are missing at first, so that `segmint status` estimates a remaining time."""

MORE = 375
"""Number of shards that are committed later. They leave the last block of summed commits half full."""


def begin(dataset: Location, shards: int) -> None:
    """Write the manifest of a dataset with `shards` shards."""
    part = CatalogPart(
        path=part_path(0, "0" * 64), rows=shards * ROWS, sha256="0" * 64, source_sha256="0" * 64, first_shard=0
    )
    manifest = DatasetManifest(
        name="large",
        config={"images_per_shard": ROWS},
        config_sha256=json_sha256({"images_per_shard": ROWS}),
        numerics={"device": "cpu"},
        code_version="0",
        weights=ModelWeights(name="none", sha256="0" * 64),
        catalog=(part,),
        images_per_shard=ROWS,
        policy_date=date(2026, 1, 1),
    )
    (dataset / MANIFEST).put(manifest.to_json())


def commit(dataset: Location, shard: int) -> None:
    """Put the commit of a shard."""
    refused = shard % 7
    counts = {
        "rows": ROWS, "images": ROWS - refused, "masks": 100 * (ROWS - refused), "rejected": refused,
        **({"rejected:not_found": refused} if refused else {}),
    }  # fmt: skip
    digest = f"{shard:064x}"
    files = tuple(FileEntry(data_path(kind, shard, digest), 10**6, digest) for kind in KINDS)
    CommitLog(dataset).put(Commit(shard, 1, (shard * ROWS, (shard + 1) * ROWS), "0" * 12, "0" * 64, counts, files))


def put_commits(dataset: Location, shards: range, table: bytes) -> None:
    """Write the commits of these shards, which follow the existing ones, and the tables that a status then reads."""
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda shard: commit(dataset, shard), shards))
        last, sample = last_and_sample(range(shards.stop), range(shards.stop)) or ([], [])
        paths = [data_path("images", shard, f"{shard:064x}") for shard in (*last, *sample)]
        list(pool.map(lambda path: (dataset / path).put(table), paths))


def images_table() -> bytes:
    """Create an `images` table of 500 rows."""
    empty = dict.fromkeys(SCHEMAS["images"].names)
    rows = [
        {**empty, "ordinal": row, "id": row + 1, "image_id": f"image-{row}", "faces": row % 3, "plates": 0}
        for row in range(ROWS)
    ]
    return table_bytes(pa.Table.from_pylist(rows, schema=_nullable(SCHEMAS["images"])), _nullable(SCHEMAS["images"]))


def _nullable(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_nullable(True) for field in schema])


def measure(dataset: str) -> dict[str, Any]:
    """Run the command as a user does, and return its run time and results."""
    started, cpu = time.perf_counter(), _cpu_of_children()
    done = subprocess.run(
        [sys.executable, "-m", "segmint", "status", dataset, "--json"],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    seconds = time.perf_counter() - started
    told = json.loads(done.stdout)
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(_cpu_of_children() - cpu, 2),
        "load": round(os.getloadavg()[0], 1),
        **{name: told[name] for name in ("shards", "written", "masks", "missing_rows")},
    }


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Create the dataset and print the measurements as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="a folder or bucket prefix that does not exist yet")
    parser.add_argument("--shards", type=int, default=40_000, help="commits")
    parser.add_argument("--options", default="{}", help="storage options of the dataset, as JSON")
    arguments = parser.parse_args()
    dataset = Location(Storage(json.loads(arguments.options)), arguments.dataset)
    if (dataset / MANIFEST).exists():
        raise SystemExit(f"{dataset} exists: expected a place for a new dataset")
    begin(dataset, arguments.shards + LEFT)
    table = images_table()
    started = time.perf_counter()
    put_commits(dataset, range(arguments.shards), table)
    made = time.perf_counter() - started
    results = {
        "shards": arguments.shards,
        "seconds_to_make": round(made, 1),
        "first": measure(arguments.dataset),
        "next": [measure(arguments.dataset) for _ in range(3)],
    }
    put_commits(dataset, range(arguments.shards, arguments.shards + MORE), table)
    results["after_more"] = [measure(arguments.dataset) for _ in range(2)]
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
