"""`segmint merge` on the command line: it lists, asks, and merges."""

import json

from typer.testing import CliRunner

from segmint.catalogs.dataset.submissions import put_submission
from segmint.pipeline.commands.cli import app
from tests.support.protocol import contents, two_shards
from tests.support.submissions import answer_to, new_mask


def run(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["merge", *map(str, words)])
    assert result.exit_code == code, result.output
    return result.output


def test_it_lists_and_then_merges() -> None:
    with two_shards() as place:
        assert put_submission(place.location, answer_to(place.location, 1, [new_mask((22, 5, 28, 30))]))
        before = contents(place)
        listed = json.loads(run(place.uri, "--dry-run", "--json"))
        assert (listed["images"], listed["submitted"], listed["masks"]["added"]) == (1, 1, 1)
        assert "then pass --yes" in run(place.uri, code=2)
        assert contents(place) == before
        assert "submissions for 1 image merged in 1 shard" in run(place.uri, "--yes")
        assert "nothing to merge" in run(place.uri, "--yes")
