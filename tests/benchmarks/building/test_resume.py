"""The benchmark of going on with many commits: twice, and each time the one shard that is missing is built."""

from pathlib import Path

import pytest

from benchmarks.building.resume import measure


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.s3
def test_both_builds_write_the_missing_shard_and_count_all(tmp_path: Path) -> None:
    result = measure(tmp_path, 1200)
    for each in result["builds"].values():
        assert (each["shards"], each["built_rows"]) == (1201, 1)
        assert 0 < each["opened_s"] < each["first_commit_s"] < each["seconds"]
