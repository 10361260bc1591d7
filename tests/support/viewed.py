"""A dataset to look at: the small real one, with rows that a search can tell apart, and texts that attack the page."""

import json
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segmint.pipeline.quality.audit.result import to_dict
from segmint.pipeline.quality.view.app import SessionKeys, make_app, open_viewer
from segmint.pipeline.serving.responses import listen
from tests.support.builds import ROOT
from tests.support.locations import location_of
from tests.support.named_image import image_of, mask_of
from tests.support.statistics import audit_of

HOSTILE = '"><img src=x onerror="document.title=\'owned\'"><script>document.title="owned"</script>'
"""A text that is markup where it is taken for it."""

VARIED: dict[int, dict[str, str | None]] = {
    1: {"country": "FR", "provider": "acme", "license": "CC0-1.0"},
    2: {"country": "DE", "provider": HOSTILE, "image_id": HOSTILE},
    4: {"country": None, "provider": "acme"},
    5: {"country": "FR", "provider": "other", "license": "CC-BY-4.0"},
}
"""What `vary` writes into the rows of images, by id."""


OVER_1 = 1.0204
"""A predicted IoU that no mask can reach, of the first mask of image 4."""


def vary(dataset: Path) -> Path:
    """Write `VARIED` and `OVER_1` into the tables of a copy of the small real dataset, over what they said."""
    for path in (dataset / "images").iterdir():
        table = pq.read_table(path)
        rows = [{**row, **VARIED.get(row["id"], {})} for row in table.to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    for path in (dataset / "masks").iterdir():
        table = pq.read_table(path)
        rows = [
            {**row, **({"predicted_iou": OVER_1} if row["annotation_id"] == 40000 else {})} for row in table.to_pylist()
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    return dataset


def image_rows(dataset: Path) -> list[dict[str, Any]]:
    """All rows of images, in order of ids, read by pyarrow."""
    return sorted(_rows(dataset / "images"), key=lambda row: row["id"])


def mask_rows(dataset: Path, image: int) -> list[dict[str, Any]]:
    """The rows of an image's masks, in order, read by pyarrow."""
    return sorted((r for r in _rows(dataset / "masks") if r["id"] == image), key=lambda row: row["annotation_id"])


def write_audit(path: Path, findings: list[dict[str, Any]], **more: Any) -> Path:
    """An audit's JSON with these findings; if they do not name their image and mask, these follow from their place."""
    whole = {"code": "mask_area", "shard": 0, "file": "masks/x.parquet", "where": "", "expected": "1", "found": "2"}
    places = [str(finding.get("where", "")) for finding in findings]
    said = [
        {**whole, "image": image_of(where), "mask": mask_of(where), **finding}
        for where, finding in zip(places, findings, strict=True)
    ]
    document = {**to_dict(audit_of()), "findings": said, "findings_by_code": {"mask_area": len(said)}, **more}
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


@contextmanager
def running_viewer(dataset: Path, *arguments: str | Path, end: signal.Signals = signal.SIGINT) -> Iterator[str]:
    """`segmint view` as a separate process: yield its address, end it with a signal, and expect exit code 0."""
    command = [sys.executable, "-m", "segmint", "view", str(dataset), "--no-browser", *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            if not re.fullmatch(r"http://127\.0\.0\.1:\d+/\?key=[\w-]{40,}", address):
                process.kill()
                raise AssertionError(f"no address but {address!r}: {process.communicate()[1]}")
            yield address
        finally:
            process.send_signal(end)
            _, printed = process.communicate(timeout=60)
        assert process.returncode == 0, printed
        assert "Traceback" not in printed


@contextmanager
def viewing(dataset: Path, audit: Path | None = None) -> Iterator[str]:
    """The same in a thread of this process, which has imported what it needs."""
    import uvicorn

    opened = open_viewer(location_of(dataset), None if audit is None else location_of(audit))
    with opened as viewer, closing(listen(0)) as listener:
        access = SessionKeys(listener.getsockname()[1])
        config = uvicorn.Config(
            make_app(viewer, access), lifespan="off", ws="none", log_level="warning", access_log=False
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield access.address()
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive(), "the viewer did not stop"


class Addresses:
    """The one-time addresses of a running viewer, for any number of browsers."""

    def __init__(self, printed: str) -> None:
        """`printed` is used up."""
        self.origin = printed.partition("?")[0]
        self._entered = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        self._entered.open(printed).close()

    def next(self) -> str:
        """Return a new address."""
        with self._entered.open(f"{self.origin}api/address") as answer:
            return str(json.load(answer)["address"])


def reject_rows(dataset: Path) -> list[dict[str, Any]]:
    """All rejected rows, in order of ids, read by pyarrow."""
    return sorted(_rows(dataset / "rejects"), key=lambda row: row["id"])


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.iterdir()):
        yield from pq.read_table(path).to_pylist()
