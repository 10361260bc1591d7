"""Builds with stubs instead of pixels: shards near the object store's size, and memory that does not grow."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.building.scale import OBJECT_STORE, measure, write_build
from benchmarks.building.stubs import RELEASE_BYTES
from tests.support.builds import ROOT, digests
from tests.support.stubbed import write_dataset

pytestmark = [pytest.mark.ray, pytest.mark.long]

SHARD_ROWS = 306
SHARDS = 3
MEGABYTE = 1_000_000
STILL_WARMING_UP = ("driver", "Ray Data's own actors")  # later windows add less and less


def test_shards_of_300_mb_pass_through_an_object_store_of_500_mb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files equal those written without an object store, byte for byte."""
    monkeypatch.setenv(RELEASE_BYTES, str(MEGABYTE))
    assert OBJECT_STORE == 500 * MEGABYTE
    config = write_build(tmp_path / "ray", SHARDS * SHARD_ROWS, images_per_shard=SHARD_ROWS)
    script = ROOT / "benchmarks" / "building" / "stubbed_build.py"
    subprocess.run([sys.executable, script, config, tmp_path / "submission"], cwd=ROOT, check=True, timeout=500)
    sizes = [tar.stat().st_size for tar in (tmp_path / "ray" / "dataset" / "shards").iterdir()]
    assert len(sizes) == SHARDS
    assert min(sizes) > 300 * MEGABYTE

    write_dataset(write_build(tmp_path / "alone", SHARDS * SHARD_ROWS, images_per_shard=SHARD_ROWS))
    found, expected = digests(tmp_path / "ray" / "dataset"), digests(tmp_path / "alone" / "dataset")
    del found["shards.json"]  # made at the end of a whole build
    assert found == expected


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Twenty thousand rows in four windows."""
    result = measure(tmp_path, 20_000, every=0.5, window_shards=10)
    assert result["build"]["shards"] == 40
    roles = {each["role"]: each for each in result["roles"]}
    assert {"prepare actor", "segment actor", "task worker"} <= roles.keys()
    for role in ("gcs_server", "raylet", "ledger actor"):
        assert roles[role]["rise_mib"]["own"] < 20, roles[role]
    for role, each in roles.items():
        early, late = each["most_mib"]["own"]
        assert late - early < (40 if role in STILL_WARMING_UP else 20), (role, each)
