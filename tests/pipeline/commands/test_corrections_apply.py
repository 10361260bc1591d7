"""`segmint apply` on the command line: its options, its list, and its exit codes. The runs are tested without it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from segmint.pipeline.commands.cli import app
from tests.support.protocol import DatasetPath, contents, two_shards

BRIGHT = ("--segmenter", "tests.support.segmenters.Bright")


@pytest.fixture(scope="module")
def place() -> Iterator[DatasetPath]:
    with two_shards() as place:
        yield place


def run(place: DatasetPath, *words: object) -> Result:
    return CliRunner().invoke(app, ["apply", place.uri, *map(str, words)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (BRIGHT, "--masks None: expected one of replace, add"),
        (("--masks", "both", *BRIGHT), "--masks 'both': expected one of replace, add"),
        (("--masks", "add"), "expected --segmenter CLASS, or --config CONFIG"),
        (("--masks", "add", "--arguments", "{}}", *BRIGHT), "isn't a JSON object"),
        (("--masks", "add", "--arguments", "[1]", *BRIGHT), "--segmenter 'tests.support.segmenters.Bright': "),
        (("--masks", "add", "--segmenter", "bright"), "--segmenter 'bright': "),
        (("--masks", "add", "--segmenter", "tests.support.segmenters.Nothing", "--dry-run"), "can't be imported"),
        (("--masks", "add", "--select", "1 +", "--dry-run", *BRIGHT), "--select"),
        (("--masks", "add", *BRIGHT), "needs confirmation, but there's no terminal"),
    ],
)
def test_wrong_usage_ends_with_exit_code_2_and_changes_nothing(
    place: DatasetPath, words: tuple[str, ...], message: str
) -> None:
    before = contents(place)
    done = run(place, *words)
    assert (done.exit_code, message in done.output) == (2, True), done.output
    assert contents(place) == before


def test_a_dry_run_lists_the_changes_of_a_class_and_of_a_configuration(place: DatasetPath, tmp_path: Path) -> None:
    shown = run(place, "--masks", "replace", "--dry-run", *BRIGHT)
    assert shown.exit_code == 0
    assert "masks of 4 images" in shown.output
    config = tmp_path / "new.yaml"
    settings = {"name": "new", "catalog": "rows.csv", "output": "elsewhere", "license": {"allow": ["CC0-1.0"]}}
    config.write_text(yaml.safe_dump({**settings, "segmenter": {"stage": BRIGHT[1], "filters": {"min_area": 5}}}))
    listed = run(place, "--masks", "replace", "--config", config, "--dry-run", "--json")
    assert listed.exit_code == 0
    value = json.loads(listed.stdout)
    assert (value["images"], value["segmenter"], value["masks"]) == (4, BRIGHT[1], {"replaced": 8, "kept": 0})
