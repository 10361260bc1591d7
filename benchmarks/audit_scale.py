"""How long the statistics of a large dataset take, and whether their memory stays flat.

    python benchmarks/audit_scale.py --dataset DIR [--images N] [--masks N] [--images-per-shard N] [--scratch DIR]

The dataset is made of a small one's rows: images are taken in turn, each with as many of its own masks as asked for,
taken in turn too, and all are numbered anew. So that they do not compress as copies do, the numbers that describe masks
and images are moved by up to a thousandth. Each shard has its three tables, as a build writes them, and a commit; there
are no tars, for the statistics do not read them. As masks of an image stand in it several times, so do near-duplicates:
many more pairs are compared and found than in a dataset that was built.

Two runs, each in a process of its own: over a tenth of the shards, and over all. The result goes to
`benchmarks/results/audit_scale.json`.
"""

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.measuring import MIB, RESULTS, in_process, peak_mib, write_result  # noqa: E402

NUMBERS = ("relative_size", "concavity", "center_x", "center_y", "aspect_ratio", "predicted_iou", "stability_score")
POINTS = 40
"""Of memory over time, that the result keeps."""


def main() -> None:
    """Makes the dataset, computes its statistics twice, prints the figures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, default=ROOT / "demo" / "dataset", help="a small local dataset")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--masks", type=int, default=100, help="masks of each image")
    parser.add_argument("--images-per-shard", type=int, default=500)
    parser.add_argument("--sample", type=int, default=1_000, help="images in which near-duplicates are looked for")
    parser.add_argument("--memory-limit", default="2GB", help="what DuckDB may hold")
    parser.add_argument("--scratch", type=Path, help="a folder for the dataset and what DuckDB spills; deleted")
    parser.add_argument("--output", type=Path, default=RESULTS / "audit_scale.json", help="the result's file")
    arguments = parser.parse_args()
    if min(arguments.images, arguments.masks, arguments.images_per_shard) < 1:
        parser.error("--images, --masks and --images-per-shard: expected 1 or more")
    machine = describe_machine(os.cpu_count() or 1, "none", packages=("duckdb", "pyarrow"))
    scratch = Path(tempfile.mkdtemp(prefix="segmint-scale-", dir=arguments.scratch))
    try:
        sizes = arguments.images, arguments.masks, arguments.images_per_shard
        made = in_process(make_dataset, arguments.dataset, scratch / "dataset", *sizes)
        print(f"made {made['masks']:,} masks in {made['seconds']:.0f} s, {made['bytes'] / MIB:,.0f} MiB", flush=True)
        runs = []
        for shards in sorted({max(1, made["shards"] // 10), made["shards"]}):
            run = in_process(
                measure, scratch / "dataset", shards, made["shards"], arguments.sample, arguments.memory_limit, scratch
            )
            print(told(run), flush=True)
            runs.append(run)
    finally:
        shutil.rmtree(scratch)
    settings = {
        "images": arguments.images,
        "masks_per_image": arguments.masks,
        "images_per_shard": arguments.images_per_shard,
        "sample": arguments.sample,
        "memory_limit": arguments.memory_limit,
        "tars": False,
    }
    write_result(arguments.output, "audit_scale", machine, {"settings": settings, "made": made, "runs": runs})
    print(f"written to {arguments.output}")


def make_dataset(source: Path, destination: Path, images: int, masks: int, images_per_shard: int) -> dict[str, Any]:
    """Writes a dataset of `images` images with `masks` masks each from the rows of a small one."""
    from catalogs.commits import Commit, CommitLog, FileEntry
    from catalogs.layout import MANIFEST, data_path
    from catalogs.parquet import table_bytes
    from catalogs.reader import open_dataset
    from infra.storage import Storage
    from operators.audit_rows import SCHEMAS
    from operators.shard_files import ROW_GROUP_ROWS

    started = time.perf_counter()
    opened = open_dataset(str(source))
    pool = Pool.of(opened)
    part = opened.manifest.catalog[0].model_copy(update={"rows": images, "first_shard": 0})
    changes = {"catalog": (part,), "images_per_shard": images_per_shard}
    destination.mkdir(parents=True)
    (destination / MANIFEST).write_bytes(opened.manifest.model_copy(update=changes).to_json())
    log = CommitLog(Storage(), str(destination))
    written, shards = 0, -(-images // images_per_shard)
    for shard in range(shards):
        start, stop = shard * images_per_shard, min((shard + 1) * images_per_shard, images)
        entries = []
        for kind, table in pool.tables(start, stop, masks).items():
            data = table_bytes(table, SCHEMAS[kind], ROW_GROUP_ROWS)
            digest = hashlib.sha256(data).hexdigest()
            entry = FileEntry(data_path(kind, shard, digest), len(data), digest)
            (destination / kind).mkdir(exist_ok=True)
            (destination / entry.path).write_bytes(data)
            entries.append(entry)
            written += len(data)
        rows = stop - start
        counts = {"rows": rows, "images": rows, "masks": rows * masks, "rejected": 0}
        numerics = opened.manifest.numerics_fingerprint
        log.put(Commit(shard, 1, (start, stop), numerics, counts, tuple(entries)))
    seconds = round(time.perf_counter() - started, 1)
    return {"images": images, "masks": images * masks, "shards": shards, "bytes": written, "seconds": seconds}


class Pool:
    """The rows of a small dataset, from which the tables of any shard are made."""

    def __init__(self, images: Any, masks: Any) -> None:
        import numpy as np

        self._images = images
        self._masks = masks
        owners = masks.column("ordinal").to_numpy()
        self._of_image = [np.flatnonzero(owners == ordinal) for ordinal in images.column("ordinal").to_pylist()]

    @classmethod
    def of(cls, dataset: Any) -> "Pool":
        """The images of an opened dataset that have masks, and their masks."""
        import pyarrow as pa
        import pyarrow.compute as pc

        tables = {
            kind: pa.concat_tables([dataset.table(commit, kind) for commit in dataset.commits()]).combine_chunks()
            for kind in ("images", "masks")
        }
        images = tables["images"].filter(pc.greater(tables["images"].column("masks"), 0))
        if not images.num_rows:
            raise SystemExit(f"{dataset.uri} has no image with masks: expected a dataset with some")
        return cls(images, tables["masks"])

    def tables(self, start: int, stop: int, masks: int) -> dict[str, Any]:
        """The three tables of the ordinals [start, stop), each image with this many masks."""
        import numpy as np
        import pyarrow as pa

        from operators.audit_rows import SCHEMAS

        draws = np.random.default_rng(start)
        ordinals = np.arange(start, stop)
        sources = ordinals % len(self._of_image)
        images = self._images.take(pa.array(sources))
        chosen = np.concatenate([np.resize(self._of_image[source], masks) for source in sources])
        rows = self._masks.take(pa.array(chosen))
        owners = np.repeat(ordinals, masks)
        numbers = (owners + 1) * 10_000 + np.tile(np.arange(masks), len(ordinals))
        return {
            "images": _replaced(images, ordinals, masks=pa.array(np.full(len(ordinals), masks), pa.int32())),
            "masks": _replaced(rows, owners, annotation_id=pa.array(numbers), **_moved(rows, draws)),
            "rejects": SCHEMAS["rejects"].empty_table(),
        }


def _replaced(table: Any, ordinals: Any, **columns: Any) -> Any:
    """A table with the identity of other ordinals, and other values in these columns."""
    import pyarrow as pa

    names = pa.array([f"image-{ordinal}" for ordinal in ordinals.tolist()])
    columns = {"ordinal": pa.array(ordinals), "id": pa.array(ordinals + 1), "image_id": names, **columns}
    arrays = [columns.get(name, table.column(name)) for name in table.column_names]
    return pa.table(arrays, schema=table.schema)


def _moved(rows: Any, draws: Any) -> dict[str, Any]:
    """The columns of `NUMBERS`, each value smaller by up to a thousandth."""
    import pyarrow as pa

    moved = {name: rows.column(name).to_numpy() * draws.uniform(0.999, 1, rows.num_rows) for name in NUMBERS}
    return {name: pa.array(values) for name, values in moved.items()}


def measure(
    dataset: Path, shards: int, of_shards: int, sample: int, memory_limit: str, scratch: Path
) -> dict[str, Any]:
    """Seconds and memory of the statistics over the first shards of a dataset."""
    from infra.storage import Storage
    from pipeline.statistics import compute_statistics
    from pipeline.tables import open_tables

    leave_out = frozenset(range(shards, of_shards))
    with watched_memory() as mib:
        before = mib[-1]
        started = time.perf_counter()
        with open_tables(str(dataset), Storage(), memory_limit, scratch, leave_out) as tables:
            opened = time.perf_counter() - started
            found = compute_statistics(tables, sample)
        seconds = time.perf_counter() - started
    step = max(1, len(mib) // POINTS)
    return {
        "shards": shards,
        "images": found["images"],
        "masks": found["masks"],
        "seconds": round(seconds, 2),
        "seconds_to_open": round(opened, 2),
        "seconds_per_million_masks": round(seconds / found["masks"] * 1e6, 3),
        "mib_before": before,
        "peak_mib": peak_mib(),
        "mib_over_time": mib[::step],
        "near_duplicates": {key: found["near_duplicates"][key] for key in ("images_sampled", "masks", "pairs")},
    }


@contextmanager
def watched_memory(every_s: float = 0.1) -> Iterator[list[int]]:
    """MiB of this process from now on, a value each `every_s` seconds, in a list that grows."""
    found = [resident_mib()]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(every_s):
            found.append(resident_mib())

    thread = threading.Thread(target=watch, name="memory")
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def resident_mib() -> int:
    """MiB of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // MIB


def told(run: dict[str, Any]) -> str:
    """A run in a line."""
    return (
        f"{run['masks']:,} masks of {run['images']:,} images in {run['seconds']:.1f} s, "
        f"{run['seconds_per_million_masks']:.2f} s a million, from {run['mib_before']:,} to {run['peak_mib']:,} MiB"
    )


def row(run: dict[str, Any]) -> str:
    """A run as a row of the table in docs/statistics.md."""
    numbers = f"{run['masks']:,} | {run['images']:,} | {run['seconds']:.1f} | {run['seconds_per_million_masks']:.2f}"
    return f"| {numbers} | {run['mib_before']:,} | {run['peak_mib']:,} |"


if __name__ == "__main__":
    main()
