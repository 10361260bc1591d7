"""`segmint status` as a user calls it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from segmint.infra.storage.errors import StorageFaultError
from segmint.pipeline.building.status import StatusReader
from segmint.pipeline.commands import building as command
from segmint.pipeline.commands.cli import app
from tests.support.committed import write_dataset, write_generation
from tests.support.locations import location_of


def test_options_that_do_not_fit(tmp_path: Path) -> None:
    for options, said in (
        (["--watch", "--json"], "--watch can't be combined with --json"),
        (["--every", "0"], "--every is 0: expected 1 to 86400 seconds"),
        (["--every", "nan"], "--every is nan: expected 1 to 86400 seconds"),
        (["--every", "1e300"], "--every is 1e+300: expected 1 to 86400 seconds"),
        ([], "is not a segmint dataset"),
    ):
        done = CliRunner().invoke(app, ["status", str(tmp_path), *options])
        assert (done.exit_code, said in done.stderr) == (2, True), done.output
    done = CliRunner().invoke(app, ["status", str(tmp_path / "build.yaml")])
    assert "build.yaml is a configuration: expected a dataset's folder" in done.stderr


def test_json_is_one_value(tmp_path: Path) -> None:
    write_dataset(location_of(tmp_path), 2)
    done = CliRunner().invoke(app, ["status", str(tmp_path), "--json", "--price", "2"])
    told = json.loads(done.stdout)
    assert (told["shards"], told["written"], told["complete"], told["cost_left"]) == (2, 4, True, 0.0)


def test_watching_outlives_a_fault_and_ends_with_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = location_of(tmp_path)
    write_dataset(location, 2)
    (location / "commits/000001.g1.json").delete()
    faults = [StorageFaultError("the store does not answer")]
    original = StatusReader.read

    def read(self: StatusReader) -> object:
        if waits and faults:
            raise faults.pop()
        return original(self)

    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            write_generation(location, 1)

    monkeypatch.setattr(StatusReader, "read", read)
    monkeypatch.setattr(command, "time", SimpleNamespace(sleep=wait))  # other threads sleep, too
    done = CliRunner().invoke(app, ["status", str(tmp_path), "--watch", "--every", "7"])
    assert (done.exit_code, waits) == (0, [7.0, 7.0])
    looks = done.stdout.split("\n\n")
    assert "1 of 2 shards" in looks[0]
    assert "couldn't be updated: the store does not answer" in looks[1]
    assert "complete: nothing left to build" in looks[2]
