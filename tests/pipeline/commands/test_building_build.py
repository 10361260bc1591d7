"""`segmint build` as a user meets it at the end of a run: the accounting, whatever happens to the store then."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from segmint.infra.storage.errors import AccessRefusedError
from segmint.pipeline.commands.cli import app
from segmint.pipeline.quality.verify import verify_dataset
from tests.support.crashing_store import gated
from tests.support.locations import location_of

FAULTS = {
    "create versions/1.json": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "put dataset/shards.json": AccessRefusedError("s3://bucket answers 403"),
}
"""What a store raises, by the call."""


def failing(wanted: str) -> Callable[[str, Callable[[], Any], Any], Any]:
    def gate(name: str, call: Callable[[], Any], _: Any) -> Any:
        if name == wanted:
            raise FAULTS[wanted]
        return call()

    return gate


def test_options_for_photographs_are_refused_beside_a_configuration(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["build", str(tmp_path / "build.yaml"), "-o", "dataset", "--allow", "CC0-1.0"])
    assert done.exit_code == 2
    assert "-o, --allow can't be used with a configuration, which sets output and license.allow" in done.stderr


@pytest.mark.parametrize("key", ["catalog", "output"])
def test_a_scheme_without_a_store_is_named_with_those_that_have_one(small_dataset: Path, key: str) -> None:
    config = small_dataset.parent / "build.yaml"
    done = CliRunner().invoke(app, ["build", str(config), "--set", f"{key}=hdfs://namenode:8020/c.parquet"])
    assert done.exit_code == 2
    assert "the scheme hdfs:// of 'hdfs://namenode:8020/c.parquet' is not allowed; expected one of abfs" in done.stderr


@pytest.mark.parametrize("call", FAULTS)
def test_the_accounting_is_printed_if_the_end_cannot_be_recorded(small_dataset: Path, dataset: Path, call: str) -> None:
    def build() -> Any:
        config = small_dataset.parent / "build.yaml"
        return CliRunner().invoke(app, ["build", str(config), "--json", "--set", f"output={dataset}"])

    with gated(failing(call)):
        done = build()
    assert done.exit_code == 3
    accounting = json.loads(done.stdout)
    assert (accounting["rows"], accounting["written"], accounting["shards"]) == (8, 6, 3)
    assert accounting["version"] is None
    assert str(FAULTS[call]) in done.stderr
    assert "then run the same command again to record them" in done.stderr
    again = build()
    assert (again.exit_code, json.loads(again.stdout)["version"]["number"]) == (0, 1)
    assert verify_dataset(location_of(dataset)).problems == ()
