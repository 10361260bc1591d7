"""`segmint apply --stage` on the command line: wrong options change nothing, and a dry run lists the changes."""

import json
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from segmint.pipeline.commands.cli import app
from tests.support.applied_columns import apply_column, means
from tests.support.protocol import DatasetPath, contents, two_shards

MEANS = ("--stage", means().stage)
LABELS = ("--stage", "tests.support.labeled.ShadeLabels", "--arguments", '{"threshold": 1}')


@pytest.fixture(scope="module")
def place() -> Iterator[DatasetPath]:
    with two_shards() as place:
        yield place


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*MEANS, "--masks", "add"), "--stage adds a column: it can't be combined with --masks or --segmenter"),
        (("--remove", "--masks", "add"), "--remove needs --stage CLASS, and neither --arguments nor --select"),
        ((*MEANS, "--remove", "--select", "masks > 1"), "--remove needs --stage CLASS"),
        ((*MEANS, "--remove", "--yes"), "`segmint apply` added no column of the stage tests.support"),
        ((*MEANS, "--arguments", "[1]"), "--stage 'tests.support.applied_columns.Means': "),
        ((*MEANS, "--arguments", '{"other": 1}', "--dry-run"), "is invalid: TypeError"),
        ((*LABELS, "--yes"), "has no column to add: expected a stage with fields"),
        (MEANS, "needs confirmation, but there's no terminal"),
    ],
)
def test_wrong_usage_ends_with_exit_code_2_and_changes_nothing(
    place: DatasetPath, words: tuple[str, ...], message: str
) -> None:
    before = contents(place)
    done = CliRunner().invoke(app, ["apply", place.uri, *words])
    assert (done.exit_code, message in done.output) == (2, True), done.output
    assert contents(place) == before


def test_a_dry_run_lists_the_bytes_and_a_removal_needs_no_code(place: DatasetPath) -> None:
    run = CliRunner().invoke
    shown = run(app, ["apply", place.uri, *MEANS, "--select", "id < 3", "--dry-run"])
    assert (shown.exit_code, "a column of 2 images" in shown.output) == (0, True)
    assert "of Parquet; tars keep their bytes" in shown.output
    apply_column(place.location, means())
    listed = run(app, ["apply", place.uri, *MEANS, "--remove", "--dry-run", "--json"])
    value = json.loads(listed.stdout)
    assert (value["images"], value["column"], value["version"]) == (4, "stage_means", "removed")
    removed = run(app, ["apply", place.uri, *MEANS, "--remove", "--yes"])
    assert (removed.exit_code, "4 images changed in 2 shards" in removed.output) == (0, True)
