import hashlib
import http.server
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from segmint.infra.assets import ASSETS, CACHE_VARIABLE, Asset

CONTENT = b"weights of a very small model"
SMALL = Asset(
    name="small",
    file_name="small.pt",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    size=len(CONTENT),
    license="CC0-1.0",
)


@pytest.fixture
def content() -> bytes:
    """The bytes of the small asset."""
    return CONTENT


@pytest.fixture
def small() -> Asset:
    """The small asset, without a source."""
    return SMALL


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch):
    """Registers the small asset with the sources given."""

    def register(**sources) -> None:
        monkeypatch.setitem(ASSETS, "small", replace(SMALL, **sources))

    register()
    return register


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, which doesn't exist yet."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "of user" / "cache"))
    return tmp_path / "of user" / "cache"


@pytest.fixture
def web(tmp_path: Path):
    """A web server over a folder: (address, folder)."""
    folder = tmp_path / "web"
    folder.mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()
