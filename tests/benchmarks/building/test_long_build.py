"""A long build that is killed and continued: the accounting of its rows, which must find what is wrong."""

from pathlib import Path

import pytest

from benchmarks.building.long_build import SIZE, LongBuild, small_photograph
from segmint.catalogs.dataset.commits import CommitLog
from tests.support.photographs import photograph


def test_small_photographs_differ() -> None:
    from io import BytesIO

    from PIL import Image

    made = [small_photograph([photograph("coffee"), photograph("astronaut")], number) for number in range(20)]
    assert len(set(made)) == 20
    assert {Image.open(BytesIO(data)).size for data in made} == {SIZE}


@pytest.mark.long
@pytest.mark.ray
def test_a_missing_row_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = LongBuild(tmp_path, 1000, None)
    build.begin()
    while not build.is_complete():
        build.run(kills=1, end=float("inf"))
    result = build.result()
    assert result["rows"] == {"images": 980, "rejects": 20}
    assert (result["audit"]["exit_code"], result["audit"]["findings"]) == (0, {})
    assert [piece["end"] for piece in result["build"]["pieces"]] == ["killed", "complete"]
    CommitLog(build.dataset).location(1, 1).delete()
    with pytest.raises(SystemExit, match="500 of 1000 rows are missing"):
        build.result()
