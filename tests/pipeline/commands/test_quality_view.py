"""`segmint view` as a user meets it: an address, an interrupt, readable errors."""

import signal
import socket
import urllib.error
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

from segmint.pipeline.commands.cli import app
from tests.support.committed import write_dataset
from tests.support.locations import location_of
from tests.support.viewed import running_viewer


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two committed shards of made-up rows."""
    folder = tmp_path_factory.mktemp("small") / "dataset"
    write_dataset(location_of(folder), shards=2)
    return folder


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("end", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGTERM])
def test_the_address_that_it_prints_opens_and_a_signal_ends_it(
    small: Path, end: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    idle = socket.socket()
    with idle, running_viewer(small, end=end) as address:  # which wants exit code 0
        at = urlsplit(address)
        assert at.hostname == "127.0.0.1"
        with pytest.raises(ConnectionRefusedError):  # as any other address of this machine
            socket.create_connection(("127.0.0.2", at.port or 0), timeout=2)
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        assert b"<!doctype html>" in browser.open(address).read()
        assert browser.open(f"http://{at.netloc}/images/1.jpg").headers["content-type"] == "image/jpeg"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"http://{at.netloc}/")
        assert list(tmp_path.iterdir())
        idle.connect(("127.0.0.1", at.port))  # an open connection does not keep it from ending
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", at.port or 0), timeout=2)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "DATASET"),
        (["{folder}"], "is not a dataset"),
        (["{folder}", "--port", "70000"], "65535"),
        (["{folder}", "--config", "{folder}/absent.yaml"], "absent.yaml"),
        (["{folder}", "--audit", "{folder}/absent.json"], "absent.json does not exist"),
    ],
)
def test_wrong_usage_is_exit_code_2(tmp_path: Path, arguments: list[str], told: str) -> None:
    done = CliRunner().invoke(app, ["view", *(argument.format(folder=tmp_path) for argument in arguments)])
    assert done.exit_code == 2
    assert told in done.output
