"""Annotators of a dataset: each with a browser's cookie and headers in the test's process, or `segmint annotate`."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.testclient import TestClient

from segmint.pipeline.engine.annotate.app import AnnotateOptions, ServedView, make_app
from segmint.pipeline.engine.annotate.queue import QueueOptions
from segmint.pipeline.engine.annotate.requests import ServerOrigin, Team
from tests.support.builds import ROOT

PORT = 8765
ORIGIN = f"http://127.0.0.1:{PORT}"
WRITE = {"x-segmint": "1", "origin": ORIGIN, "sec-fetch-site": "same-origin"}


def acting_as(name: str) -> dict[str, str]:
    """Return the headers of a page that was opened as an annotator's."""
    return {**WRITE, "x-segmint-annotator": quote(name)}


def options(**queue: Any) -> AnnotateOptions:
    """Options of a server on the CPU."""
    return AnnotateOptions(QueueOptions(**queue), weights="mobile_sam", device="cpu")


class Annotators:
    """Browsers of annotators: `who("ann")` is Ann's, which has opened her address."""

    def __init__(self, opened: ServedView, *names: str, origin: ServerOrigin | None = None) -> None:
        self.team = Team(PORT, list(names or ["ann"]), origin)
        self.app = make_app(opened.annotator_view, self.team)
        opened.annotator_view.embeddings.patience_s = 120.0  # these browsers do not ask again

    def stranger(self, base_url: str = ORIGIN) -> TestClient:
        """Return a browser without a cookie."""
        return TestClient(self.app, base_url=base_url, follow_redirects=False, raise_server_exceptions=False)

    def who(self, name: str) -> TestClient:
        """Return a new browser of an annotator."""
        client = self.stranger()
        assert client.get(self.team.address(name)).status_code == 303
        client.headers.update(acting_as(name))
        return client


def click(client: TestClient, image: int, *points: tuple[float, float, int], **said: Any) -> Any:
    """Return the server's answer to points, and other parts of a prompt."""
    part = said.pop("part", "auto")
    prompt = {"points": [list(point) for point in points], **({"from": said.pop("after")} if "after" in said else {})}
    answer = client.post(f"/api/images/{image}/predict", json={"prompt": {**prompt, **said}, "part": part})
    assert answer.status_code == 200, answer.text
    return answer.json()


def draft(opened: Any, counts: list[str], **fields: Any) -> dict[str, Any]:
    """Return the body of an answer to an image as the page got it, with new masks."""
    masks = [{"counts": each, "source": "assisted", "seconds": 2.0, "label": None, "prompts": []} for each in counts]
    body = {"base": opened["base"], "masks": masks, "replaced": [], "deleted": [], "seconds": 5.0, "complete": True}
    return {**body, **fields}


def saved_files(dataset: Path) -> dict[str, bytes]:
    """Return the answers in a dataset, by path."""
    files = (path for path in (dataset / "annotations").rglob("*") if path.is_file())
    return {str(path.relative_to(dataset)): path.read_bytes() for path in files}


@contextmanager
def annotate_process(dataset: Path, *arguments: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """`segmint annotate` as a separate process, with the address of `ann`; it is killed at the end."""
    command = [sys.executable, "-m", "segmint", "annotate", str(dataset), "--no-browser", "--port", "0"]
    command += ["--weights", "mobile_sam", "--device", "cpu", "--name", "ann", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            assert address, process.stderr.read() if process.stderr else ""
            yield process, address
        finally:
            process.kill()
