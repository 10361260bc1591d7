"""Speed and memory of streaming a source catalog of 100 million rows in each format.

    python benchmarks/datasets/catalog_streams.py [--rows N] [--formats NAME ...] [--folder FOLDER] [--output FILE]

The benchmark handles one format at a time: it writes a catalog, reads it completely as `segmint build` does, including
the checks of its values, and deletes it. The catalog repeats a million rows with distinct URIs. Each catalog is read in
a separate process, whose memory is sampled four times a second. Text formats take up to 13 GB in `--folder`.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from segmint.infra.storage.location import Location

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.measuring import MIB, RESULTS, in_process, peak_mib, write_result  # noqa: E402

DISTINCT = 1_000_000
LOOKS = 20
LICENSES = ("CC0-1.0", "CC-BY-4.0", "LicenseRef-acme-2026")
COUNTRIES = ("SE", "BR", "KE", "IN", "JP")
COLUMNS = ("uri", "license", "image_id", "provider", "country")


def main() -> None:
    """Measure each format and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--formats", nargs="+", choices=list(WRITERS), default=list(WRITERS))
    parser.add_argument("--folder", type=Path, help="folder for the catalogs")
    parser.add_argument("--output", type=Path, default=RESULTS / "catalog_streams.json")
    arguments = parser.parse_args()
    machine = describe_machine(1, "fp32", packages=("pyarrow",))
    found = []
    for name in arguments.formats:
        with tempfile.TemporaryDirectory(prefix="segmint-catalogs-", dir=arguments.folder) as folder:
            path = Path(folder) / f"catalog{name}"
            WRITERS[name](path, arguments.rows)
            found.append({"ending": name, "bytes": path.stat().st_size, **in_process(stream, str(path))})
        streamed = found[-1]
        if streamed["rows"] != arguments.rows:
            raise SystemExit(f"{arguments.rows} rows were written to a {name}, but {streamed['rows']} were read")
        print(f"{name}: {streamed['rows_per_s']:,} rows/s, {streamed['rise_mib']} MiB more in the second half")
    settings = {"rows": arguments.rows, "columns": COLUMNS}
    write_result(arguments.output, "catalog_streams", machine, {"settings": settings, "formats": found})


def stream(path: str) -> dict[str, Any]:
    """Read a catalog. Return its rows, the CPU seconds, and this process's memory over the rows."""
    from segmint.catalogs.source.readers import read_catalog
    from segmint.infra.storage.storage import Storage

    began, cpu = time.perf_counter(), time.process_time()
    rows, looks = 0, []
    for batch in read_catalog(Location(Storage(), path)):
        rows += batch.num_rows
        now = time.perf_counter() - began
        if now >= len(looks) * 0.25:
            looks.append((rows, resident_mib()))
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    sizes = [size for _, size in looks]
    middle = len(sizes) // 2
    return {
        "rows": rows,
        "seconds": round(seconds, 1),
        "rows_per_s": round(rows / seconds),
        "rows_per_cpu_s": round(rows / cpu_seconds),
        "most_mib": {"first_half": max(sizes[: middle + 1]), "second_half": max(sizes[middle:])},
        "rise_mib": round(statistics.median(sizes[middle:]) - statistics.median(sizes[: middle + 1]), 1),
        "peak_mib": peak_mib(),
        "curve": looks[:: max(1, len(looks) // LOOKS)],
    }


def resident_mib() -> float:
    """Return the resident MiB of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * resource.getpagesize() / MIB, 1)


def values(start: int, count: int) -> Iterator[tuple[str, ...]]:
    """Yield rows of a catalog as `COLUMNS`. A row's values depend only on its number."""
    for number in range(start, start + count):
        yield (
            f"photos/{number // 1000:05}/{number:09}.jpg",
            LICENSES[number % 3],
            f"acme-{number:09}",
            "acme",
            COUNTRIES[number % 5],
        )


def repeated(path: Path, rows: int, head: bytes, line: Callable[[tuple[str, ...]], str]) -> None:
    """Write a text file of `rows` lines by repeating the first `DISTINCT` lines."""
    block = "".join(line(row) for row in values(0, min(DISTINCT, rows))).encode()
    ends = block.splitlines(keepends=True) if rows % DISTINCT else []
    with path.open("wb") as file:
        file.write(head)
        for _ in range(rows // DISTINCT):
            file.write(block)
        file.write(b"".join(ends[: rows % DISTINCT]))


def write_json_lines(path: Path, rows: int) -> None:
    """Write a JSON Lines catalog."""
    repeated(path, rows, b"", lambda row: json.dumps(dict(zip(COLUMNS, row, strict=True))) + "\n")


def write_csv(path: Path, rows: int) -> None:
    """Write a CSV catalog."""
    repeated(path, rows, f"{','.join(COLUMNS)}\n".encode(), lambda row: f"{','.join(row)}\n")


def write_parquet(path: Path, rows: int) -> None:
    """Write a Parquet catalog with pyarrow's defaults."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = zip(*values(0, min(DISTINCT, rows)), strict=True)
    table = pa.table([pa.array(column) for column in columns], names=COLUMNS)
    with pq.ParquetWriter(path, table.schema) as writer:
        for start in range(0, rows, DISTINCT):
            writer.write_table(table.slice(0, min(DISTINCT, rows - start)))


WRITERS = {".parquet": write_parquet, ".jsonl": write_json_lines, ".csv": write_csv}
"""Writers of catalogs, by file suffix."""

if __name__ == "__main__":
    main()
