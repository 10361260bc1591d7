"""Long build that is killed several times, in pieces of limited time: is each row there exactly once?

    python benchmarks/building/long_build.py --folder DIR [--rows N] [--photographs] [--kills K] [--minutes M]
        [--output FILE]

Without `--photographs`, stubs replace both stages that process pixels (see `stubs.py`), and each fiftieth row is
rejected for its license. With it, an S3 server on this machine holds N small JPEGs, all different, and the dataset; the
real prepare stage reads, decodes, and releases them, without detectors, and only the model is a stub.

The driver is killed with SIGKILL K times, when equal shares of the shards have been committed, and started again. After
M minutes, the piece ends in the same way. The same command continues in DIR. When the dataset is complete, its rows are
compared with the catalog, it is audited, and the result is written.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.building.resume import s3_server  # noqa: E402
from benchmarks.building.scale import REFUSED_EVERY, by_role, summary, write_build  # noqa: E402
from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.measuring import RESULTS, SCIKIT_IMAGE, write_result  # noqa: E402
from benchmarks.processes import Trace  # noqa: E402
from segmint.catalogs.dataset.commits import CommitLog  # noqa: E402
from segmint.catalogs.dataset.reading.torch_dataset import open_dataset  # noqa: E402
from segmint.infra.storage.location import Location  # noqa: E402
from segmint.infra.storage.storage import Storage  # noqa: E402

BUCKET = "long-build"
SIZE = (160, 120)
"""Width and height of a small photograph in pixels."""

ROWS_PER_SHARD = 500
SECONDS_BETWEEN_LOOKS = 5.0
THREADS = 16


def main() -> None:
    """Continue the build in the folder. Write the result once the dataset is complete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder for catalog, dataset, and state")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--photographs", action="store_true", help="read real JPEGs from an S3 server")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=55.0)
    parser.add_argument("--output", type=Path, help="default: long_build.json or long_build-photographs.json")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    machine = describe_machine(1, "fp32", packages=("ray", "pyarrow", "s3fs"))
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with s3_server(arguments.folder) if arguments.photographs else nullcontext() as server:
        endpoint = None
        if server is not None:
            endpoint = server.endpoint_url
            client = server.client()
            if BUCKET not in {each["Name"] for each in client.list_buckets()["Buckets"]}:
                client.create_bucket(Bucket=BUCKET)
        build = LongBuild(arguments.folder, arguments.rows, endpoint)
        build.begin()
        while not build.is_complete() and time.monotonic() < end:
            build.run(arguments.kills, end)
        if not build.is_complete():
            print(f"{build.committed()} of {build.shards} shards after {arguments.minutes} minutes: run this again")
            return
        parts = build.result()
    name = "long_build-photographs" if arguments.photographs else "long_build"
    write_result(arguments.output or RESULTS / f"{name}.json", name, machine, parts)
    build_figures = {key: value for key, value in parts["build"].items() if key != "pieces"}
    print(json.dumps({"build": build_figures, "rows": parts["rows"], "audit": parts["audit"]}, indent=1))


class LongBuild:
    """Build of many rows in a folder, and the record of its pieces. `endpoint` is the S3 server of the photographs."""

    def __init__(self, folder: Path, rows: int, endpoint: str | None) -> None:
        self.folder = folder
        self.rows = rows
        self.shards = -(-rows // ROWS_PER_SHARD)
        self.endpoint = endpoint
        self.options = {} if endpoint is None else {"s3://": {"endpoint_url": endpoint}}
        place = str(folder / "dataset") if endpoint is None else f"s3://{BUCKET}/dataset"
        self.dataset = Location(Storage(self.options), place)
        self.config = folder / "build.yaml"
        self.state = folder / "pieces.json"

    def begin(self) -> None:
        """Write the photographs and the catalog if they are missing, and the configuration."""
        settings: dict[str, Any] = {"output": str(self.dataset), "images_per_shard": ROWS_PER_SHARD}
        if self.endpoint is not None:
            settings |= {"storage": self.options}
            if not self.state.exists():
                put_photographs(self.dataset.storage, self.rows)
        if self.state.exists():
            tree = json.loads(self.config.read_text()) | settings  # the server's port changes with each piece
            self.config.write_text(json.dumps(tree))
            return
        write_build(self.folder, self.rows, **settings)
        if self.endpoint is not None:
            _rename_photographs(self.folder / "catalog.parquet")
        self.state.write_text("[]")

    def committed(self) -> int:
        """Number of committed shards."""
        return sum(1 for _ in CommitLog(self.dataset).latest_commits())

    def is_complete(self) -> bool:
        """Whether the last piece ended by itself."""
        pieces = self.pieces()
        return bool(pieces) and pieces[-1]["end"] == "complete"

    def pieces(self) -> list[dict[str, Any]]:
        """Read the record of the pieces so far."""
        found: list[dict[str, Any]] = json.loads(self.state.read_text())
        return found

    def run(self, kills: int, end: float) -> None:
        """Build until the next kill, the time `end`, or the end of the build, and record the piece.

        Raises SystemExit if the build fails.
        """
        pieces = self.pieces()
        killed = sum(piece["end"] == "killed" for piece in pieces)
        kill_at = self.shards * (killed + 1) // (kills + 1) if killed < kills else self.shards + 1
        before, began, load = self.committed(), time.monotonic(), os.getloadavg()[0]
        with self._started() as process:
            trace, how = Trace(process.pid), "complete"
            while process.poll() is None and how == "complete":
                trace.look()
                time.sleep(SECONDS_BETWEEN_LOOKS)
                if self.committed() >= kill_at:
                    how = "killed"
                elif time.monotonic() > end:
                    how = "out of time"
            ended = process.poll()
            process.send_signal(signal.SIGKILL)
            process.wait()
        if ended == 0:
            how = "complete"
        elif ended is not None:
            raise SystemExit(f"the build ended with {process.returncode}:\n{self._log()[-4000:]}")
        seconds, done = time.monotonic() - began, self.committed() - before
        rows = max(1, min(done * ROWS_PER_SHARD, self.rows))
        pieces.append(
            {
                "end": how,
                "seconds": round(seconds, 1),
                "shards": done,
                "load_before": round(load, 2),
                "roles": _roles(trace, rows),
            }
        )
        self.state.write_text(json.dumps(pieces))
        print(f"{how} after {seconds:.0f} s: {before + done} of {self.shards} shards", flush=True)

    def result(self) -> dict[str, Any]:
        """Compare the rows with the catalog, audit the dataset, and return the result.

        Raises SystemExit if a row is missing, there twice, or decided wrongly.
        """
        pieces = self.pieces()
        rows = self._accounting()
        return {
            "settings": {"rows": self.rows, "photographs": self.endpoint is not None, "rows_per_shard": ROWS_PER_SHARD},
            "build": {
                "seconds": round(sum(piece["seconds"] for piece in pieces), 1),
                "rows_per_s": round(self.rows / sum(piece["seconds"] for piece in pieces), 1),
                "kills": sum(piece["end"] == "killed" for piece in pieces),
                "pieces": pieces,
            },
            "rows": rows,
            "audit": self._audit(),
        }

    @contextmanager
    def _started(self) -> Iterator[subprocess.Popen[bytes]]:
        script = ROOT / "benchmarks" / "building" / "stubbed_build.py"
        command = [sys.executable, str(script), str(self.config), str(self.folder / "accounting.json")]
        if self.endpoint is not None:
            command.append("--photographs")
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def _log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def _accounting(self) -> dict[str, int]:
        dataset = open_dataset(str(self.dataset), self.dataset.storage)
        seen = bytearray(self.rows)
        counts = {"images": 0, "rejects": 0}
        for commit in dataset.commits():
            for kind in counts:
                table = dataset.table(commit, kind)
                counts[kind] += table.num_rows
                ordinals, ids = (table.column(name).to_pylist() for name in ("ordinal", "image_id"))
                for ordinal, image_id in zip(ordinals, ids, strict=True):
                    is_refused = (ordinal + 1) % REFUSED_EVERY == 0
                    if image_id != f"image-{ordinal:09}" or seen[ordinal] or is_refused is not (kind == "rejects"):
                        raise SystemExit(f"row {ordinal} is there as {image_id} in the {kind} of shard {commit.shard}")
                    seen[ordinal] = 1
        if missing := seen.count(0):
            raise SystemExit(f"{missing} of {self.rows} rows are missing")
        return counts

    def _audit(self) -> dict[str, Any]:
        command = [sys.executable, "-m", "segmint", "audit", str(self.dataset), "--config", str(self.config)]
        answer = self.folder / "audit.json"
        options = ["--sample", "200", "--json", "-o", str(answer)]
        if self.endpoint is None:
            options.append("--integrity-only")  # all images are the same
        else:
            options += ["--privacy-sample", "0"]
        began = time.monotonic()
        done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=False)
        print(done.stdout, done.stderr[-4000:], sep="\n")
        seconds = round(time.monotonic() - began, 1)
        findings = json.loads(answer.read_text())["findings_by_code"]
        return {"exit_code": done.returncode, "sample": 200, "seconds": seconds, "findings": findings}


def _roles(trace: Trace, rows: int) -> list[dict[str, Any]]:
    """Summarize the processes by role, without their curves, which no page shows."""
    found = [summary(role, members, rows) for role, members in by_role(list(trace.processes.values())).items()]
    return [{key: value for key, value in each.items() if key != "curve"} for each in found]


def put_photographs(storage: Storage, rows: int) -> None:
    """Put small JPEGs under `photos/` of the bucket: crops of photographs at random places, in random sizes.

    Those that are there from an attempt that was interrupted stay.
    """
    from skimage import data

    sources = [getattr(data, name)() for name in SCIKIT_IMAGE]
    photos = Location(storage, f"s3://{BUCKET}/photos")
    present = {info.name for info in photos.walk()}

    def put(number: int) -> None:
        name = f"{number:09}.jpg"
        if name not in present:
            (photos / name).put(small_photograph(sources, number))

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(put, range(rows)):
            pass


def small_photograph(sources: list[Any], number: int) -> bytes:
    """Make the JPEG with this number: a crop of one of the photographs (height, width, 3), scaled to `SIZE`."""
    from PIL import Image

    choose = random.Random(number)
    source = Image.fromarray(choose.choice(sources))
    width = choose.randint(SIZE[0], source.width)
    height = min(source.height, width * SIZE[1] // SIZE[0])
    left, top = choose.randint(0, source.width - width), choose.randint(0, source.height - height)
    stream = BytesIO()
    crop = source.crop((left, top, left + width, top + height)).resize(SIZE)
    crop.save(stream, "JPEG", quality=90, comment=f"{number}".encode())
    return stream.getvalue()


def _rename_photographs(catalog: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(catalog)
    uris = [f"s3://{BUCKET}/{uri}" for uri in table.column("uri").to_pylist()]
    pq.write_table(table.set_column(table.schema.get_field_index("uri"), "uri", pa.array(uris)), catalog)


if __name__ == "__main__":
    main()
