"""CPU time that the audit spends on comparing committed bytes with those that the rows produce.

    python benchmarks/datasets/canonical.py --dataset DIR [--images N] [--masks N] [--rounds N]

One shard with images is made from the rows of a small dataset (see `large_dataset.py`). First, its three tables are
written again from their rows and compared. Then all members of its tar are compared: headers, padding, JSON, and the
JPEGs' bytes before and after the image data. No image is decoded. The spread is over the rounds. The benchmark fails if
it finds anything in the unchanged files, or if it finds nothing after one byte of each file has been changed.

The result is written to `benchmarks/results/canonical.json`.
"""

import argparse
import hashlib
import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.measuring import RESULTS, spread, write_result  # noqa: E402


def main() -> None:
    """Create the shard, measure, print the figures, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, default=ROOT / "demo" / "dataset", help="a small local dataset")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--masks", type=int, default=100, help="masks of each image")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "canonical.json", help="file of the result")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="segmint-canonical-") as folder:
        sizes = arguments.images, arguments.masks, arguments.rounds
        found = measure(arguments.dataset, Path(folder) / "dataset", *sizes)
    settings = {"images": arguments.images, "masks_per_image": arguments.masks, "rounds": arguments.rounds}
    machine = describe_machine(1, "none", packages=("pyarrow",))
    write_result(arguments.output, "canonical", machine, {"settings": settings, "cpu_ms_per_image": found})
    for part, figures in found.items():
        print(f"{part}: {figures['median']} CPU ms per image ({figures['least']} to {figures['most']})")
    print(f"written to {arguments.output}")


def measure(source: Path, folder: Path, images: int, masks: int, rounds: int) -> dict[str, dict[str, float]]:
    """Measure the CPU milliseconds per image of checking a shard's tables and tar, by part, with the spread."""
    from benchmarks.datasets.large_dataset import LargeDataset
    from segmint.catalogs.dataset.commits import CommitLog
    from segmint.catalogs.dataset.manifest import DatasetManifest
    from segmint.catalogs.findings import FindingLocation
    from segmint.catalogs.layout import MANIFEST
    from segmint.infra.storage.location import Location
    from segmint.infra.storage.storage import Storage
    from segmint.operators.audit.parquet_parts import check_parquet
    from segmint.operators.audit.rows import ShardTables
    from segmint.operators.audit.shard_masks import ShardMasks
    from segmint.operators.audit.tar import HashedStream, audit_tar
    from segmint.operators.decoding import JpegDecoder
    from segmint.operators.schemas import SCHEMAS
    from segmint.operators.shards.committed_rows import read_table
    from segmint.operators.shards.files import ROW_GROUP_ROWS

    made = LargeDataset(source, folder, images, masks, images, with_images=True)
    made.begin()
    made.commit(0, 1)
    commit = CommitLog(Location(Storage(), str(folder))).latest(0)
    if commit is None:
        raise SystemExit(f"{folder} has no commit of shard 0")
    files = {kind: (folder / commit.file(kind).path).read_bytes() for kind in ("shards", *SCHEMAS)}
    config = DatasetManifest.from_json((folder / MANIFEST).read_bytes()).config
    quality = config["release"]["jpeg_quality"]

    def tables_found(files: dict[str, bytes]) -> list[Any]:
        checks = [
            check_parquet(io.BytesIO(files[kind]), hashlib.sha256(files[kind]).hexdigest(), schema, ROW_GROUP_ROWS)
            for kind, schema in SCHEMAS.items()
        ]
        return [check for check in checks if not check.alike]

    def tar_found(files: dict[str, bytes]) -> list[Any]:
        places = {kind: FindingLocation(commit.file(kind).path, 0) for kind in files}
        tables = ShardTables(**{kind: read_table(files[kind], kind) for kind in SCHEMAS}, places=places)
        found, stream = ShardMasks(tables, None, None), HashedStream(io.BytesIO(files["shards"]))
        with JpegDecoder(own=True) as decoder:
            return list(
                audit_tar(
                    stream,
                    tables.images.to_pylist(),
                    found.table_rows,
                    places["shards"],
                    with_images=True,
                    decode=frozenset(),
                    decoder=decoder,
                    quality=quality,
                )
            )

    changed = {kind: data[:-60] + bytes([data[-60] ^ 1]) + data[-59:] for kind, data in files.items()}
    parts: dict[str, Callable[[dict[str, bytes]], list[Any]]] = {"tables": tables_found, "tar": tar_found}
    if any(part(files) for part in parts.values()) or not tar_found(files | {"shards": changed["shards"]}):
        raise SystemExit("the unchanged shard has findings, or a changed one has none")
    return {name: spread([_milliseconds(part, files) / images for _ in range(rounds)]) for name, part in parts.items()}


def _milliseconds(part: Callable[[dict[str, bytes]], list[Any]], files: dict[str, bytes]) -> float:
    started = time.process_time()
    part(files)
    return (time.process_time() - started) * 1000


if __name__ == "__main__":
    main()
