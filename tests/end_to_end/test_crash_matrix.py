"""Operations killed at every storage call, and writers paused at every one: the points are counted, not chosen."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.builds import ROOT
from tests.support.crash_matrix import CHANGES
from tests.support.crashing_store import READS
from tests.support.protocol import quick_folder

Results = dict[str, dict[str, Any]]

OF_SEGMENTER = (
    ("write_shard", "retry", "sweep"),
    ("takedown", "takedown in a build"),
    ("redact", "amend"),
    ("import", "merge"),
    ("label", "remove labels"),
)
"""Operations on a dataset whose masks a segmenter made, by the process in which they are killed."""

LOCAL = (
    ["write_shard", "takedown" + CHANGES, "sweep"],
    ["retry", "retry beside a takedown", "sleep beside other content"],
)
"""The operations run in each of two processes, which take about equally long."""

LONG = ["next generation", "shards.json", "sleep beside equal content"]
"""More of them, which only `make test-long` runs, as it does those of other corrections."""


def start_matrix(operations: list[str], *arguments: str) -> subprocess.Popen[str]:
    """Start `tests.support.crash_matrix` in a process without threads, so that it can fork."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.crash_matrix", ",".join(operations), *arguments],
        cwd=ROOT,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answer_of(process: subprocess.Popen[str]) -> Results:
    """Return a matrix's results."""
    out, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    results: Results = json.loads(out)
    return results


@pytest.fixture(scope="module")
def matrix() -> Results:
    """The results of the operations of `make test` on local files."""
    with quick_folder() as folder:
        started = [start_matrix(operations, str(folder)) for operations in LOCAL]
        answers = [answer_of(process) for process in started]
    return answers[0] | answers[1]


@pytest.fixture(scope="module")
def long_matrix() -> Results:
    """The results of `LONG` on local files."""
    with quick_folder() as folder:
        return answer_of(start_matrix(LONG, str(folder)))


@pytest.mark.parametrize("operation", ["write_shard", "sweep", "takedown", "retry"])
def test_a_death_at_any_call_leaves_one_whole_generation_and_is_recovered(matrix: Results, operation: str) -> None:
    assert_recovered(matrix[operation], reads=operation != "takedown")


@pytest.mark.long
@pytest.mark.parametrize("operation", ["next generation", "shards.json"])
def test_a_death_in_more_operations_is_recovered(long_matrix: Results, operation: str) -> None:
    assert_recovered(long_matrix[operation], reads=True)


def assert_recovered(results: dict[str, Any], *, reads: bool) -> None:
    assert results["wrong"] == {}
    calls = results["calls"]
    points = [call for call in calls if reads or call.split()[0] not in READS]
    assert results["points"] == len(points) + calls.count("fsync of a file") + 1 > 8


@pytest.mark.long
def test_a_correction_may_die_at_any_call_even_one_that_reads() -> None:
    with quick_folder() as folder:
        results = answer_of(start_matrix(["takedown", "redact", "repair"], str(folder)))
    for each in results.values():
        assert each["wrong"] == {}
        assert each["points"] == len(each["calls"]) + each["calls"].count("fsync of a file") + 1


@pytest.mark.long
@pytest.mark.parametrize("correction", ["takedown", "amend"])
def test_a_correction_in_a_build_may_die_at_any_call(correction: str) -> None:
    """Beside a dead writer's reservation and files, and before the build goes on with rows made before."""
    operation = f"{correction} in a build"
    with quick_folder() as folder:
        results = answer_of(start_matrix([operation], str(folder)))[operation]
    assert results["wrong"] == {}
    assert {"create commits/000000.g2.json", "create commits/000001.g2.json"} <= set(results["calls"])


@pytest.mark.long
def test_an_amendment_may_die_or_sleep_at_any_call() -> None:
    """It compares catalogs by DuckDB, in each of some 200 processes."""
    names = ["amend", "amendment beside a takedown"]
    with quick_folder() as folder:
        results = answer_of(start_matrix(names, str(folder)))
    assert [results[name]["wrong"] for name in names] == [{}, {}]
    assert all("create commits/000001.g2.json" in results[name]["calls"] for name in names)


@pytest.mark.long
def test_an_import_may_die_or_sleep_at_any_call() -> None:
    """It sorts masks by DuckDB, in each of some 200 processes."""
    names = ["import", "import beside a takedown"]
    with quick_folder() as folder:
        results = answer_of(start_matrix(names, str(folder)))
    assert [results[name]["wrong"] for name in names] == [{}, {}]
    assert all("create commits/000001.g2.json" in results[name]["calls"] for name in names)


@pytest.mark.long
def test_labels_may_die_or_sleep_at_any_call() -> None:
    """They are set, removed, and set beside a takedown; only the tables of masks are put."""
    names = ["label", "remove labels", "label beside a takedown"]
    with quick_folder() as folder:
        results = answer_of(start_matrix(names, str(folder)))
    assert [results[name]["wrong"] for name in names] == [{}, {}, {}]
    for name in names:
        calls = results[name]["calls"]
        assert "create commits/000001.g2.json" in calls or "create commits/000001.g3.json" in calls
        puts = [call.split("-")[0] for call in calls if call.startswith(("put shards", "put images", "put masks"))]
        assert puts == ["put masks/sa_000000", "put masks/sa_000001"]


@pytest.mark.long
def test_columns_may_die_or_sleep_at_any_call() -> None:
    """They are added, filled in, and removed, also beside a takedown; only the tables of images are put."""
    names = ["add a column", "fill in a column", "remove a column", "takedown beside a column"]
    beside = ["new column beside a takedown", "removed column beside a takedown"]
    with quick_folder() as folder:
        started = [start_matrix(each, str(folder)) for each in (names[:2], names[2:], beside)]
        results = {name: answer for process in started for name, answer in answer_of(process).items()}
    assert {name: result["wrong"] for name, result in results.items()} == {name: {} for name in (*names, *beside)}
    for name in (*names[:3], *beside):
        calls = results[name]["calls"]
        puts = [call.split("-")[0] for call in calls if call.startswith(("put shards", "put images", "put masks"))]
        assert puts == ["put images/sa_000000", "put images/sa_000001"][name == names[1] :]


@pytest.mark.long
def test_masks_of_another_segmenter_may_die_or_sleep_at_any_call() -> None:
    """Masks of people stay, and nothing that was taken down comes back."""
    names = ["apply", "apply beside a takedown"]
    with quick_folder() as folder:
        started = [start_matrix([name], str(folder)) for name in names]
        results = {name: answer for process in started for name, answer in answer_of(process).items()}
    assert [results[name]["wrong"] for name in names] == [{}, {}]
    for name in names:
        calls = results[name]["calls"]
        made = ("dataset.g2.json", "commits/000000.g3.json", "commits/000001.g3.json")
        created = [call for call in calls if call.startswith("create ")]
        assert all(any(call.endswith(name) for call in created) for name in made)


@pytest.mark.long
def test_a_merge_of_answers_may_die_or_sleep_at_any_call() -> None:
    """And a takedown, which removes answers, may die."""
    names = ["merge", "merge beside a takedown", "takedown of answers"]
    with quick_folder() as folder:
        started = [start_matrix([name], str(folder)) for name in names]
        results = {name: answer for process in started for name, answer in answer_of(process).items()}
    assert [results[name]["wrong"] for name in names] == [{}, {}, {}]
    assert all("create commits/000001.g2.json" in results[name]["calls"] for name in names[:2])
    assert "purge 0/0.1.json" in results["takedown of answers"]["calls"]


@pytest.mark.long
@pytest.mark.parametrize("names", OF_SEGMENTER)
def test_operations_on_masks_of_a_segmenter_may_die_at_any_call(names: tuple[str, ...]) -> None:
    """The masks lack scores and points and have prompts, and the catalog has prompts, of which a takedown leaves none.

    Rows were rejected because their prompts were for another frame, or because the segmenter failed.
    """
    with quick_folder() as folder:
        results = answer_of(start_matrix([f"{name} with a segmenter" for name in names], str(folder)))
    for each in results.values():
        assert each["wrong"] == {}
        assert each["points"] == len(each["calls"]) + each["calls"].count("fsync of a file") + 1 > 8


@pytest.mark.long
def test_changes_of_fingerprints_may_die_at_any_call() -> None:
    names = ["takedown without fingerprints", "forget fingerprints", "other picture"]
    with quick_folder() as folder:
        results = answer_of(start_matrix(names, str(folder)))
    assert [results[name]["wrong"] for name in names] == [{}, {}, {}]
    assert {"create fingerprints/000000.g2.json", "purge fingerprints/000000.g1.json"} <= set(
        results[names[1]]["calls"]
    )


def test_the_matrix_covers_every_call_of_the_protocol(matrix: Results) -> None:
    """A matrix without points would find nothing."""
    calls = [call.partition("-")[0] for call in matrix["write_shard"]["calls"]]
    assert [call for call in calls if " " in call and not call.startswith("fsync")] == [
        "read commits/000001.g1.json",
        "create reservations/000001.g1",
        "put shards/sa_000001",
        "put images/sa_000001",
        "put masks/sa_000001",
        "put rejects/sa_000001",
        "create commits/000001.g1.json",
        "version shards/sa_000001",
        "version images/sa_000001",
        "version masks/sa_000001",
        "version rejects/sa_000001",
        "walk undisturbed/commits",
        "walk undisturbed/tombstones",
        "walk write_shard/undisturbed",
        "delete reservations/000001.g1",
    ]
    # Each put: the temporary file is synced and renamed, its folder synced. Reservation and commit are linked instead.
    assert [calls.count(name) for name in ("fsync of a file", "replace", "link", "unlink")] == [6, 4, 2, 3]
    assert any(call.startswith("delete") for call in matrix["sweep"]["calls"])
    assert any(call.startswith("create commits/000001.g2") for call in matrix["retry"]["calls"])


def test_a_writer_paused_at_any_call_changes_nothing_when_it_resumes(matrix: Results) -> None:
    """The result is what either writer alone would have left: the loser's files are gone."""
    assert_changed_nothing(matrix["sleep beside other content"])


@pytest.mark.long
def test_a_writer_paused_beside_equal_content_changes_nothing_when_it_resumes(long_matrix: Results) -> None:
    assert_changed_nothing(long_matrix["sleep beside equal content"])


def assert_changed_nothing(results: dict[str, Any]) -> None:
    assert results["wrong"] == {}
    assert results["points"] == len(results["calls"]) + 1 > 20


def test_a_retry_that_sleeps_at_any_call_does_not_bring_back_what_was_taken_down(matrix: Results) -> None:
    assert_nothing_is_back(matrix["retry beside a takedown"], "create commits/000001.g2")


@pytest.mark.long
@pytest.mark.parametrize(
    ("revision", "put"), [("redaction", "create commits/000001.g2"), ("repair", "put masks/sa_000001")]
)
def test_a_revision_that_sleeps_at_any_call_does_not_bring_back_what_was_taken_down(revision: str, put: str) -> None:
    with quick_folder() as folder:
        results = answer_of(start_matrix([f"{revision} beside a takedown"], str(folder)))
    assert_nothing_is_back(results[f"{revision} beside a takedown"], put)


def assert_nothing_is_back(results: dict[str, Any], put: str) -> None:
    assert results["wrong"] == {}
    assert any(call.startswith(put) for call in results["calls"])
    assert results["points"] == len(results["calls"]) + 1 > 20


@pytest.mark.s3
def test_a_death_at_any_request_to_s3_is_recovered(
    tmp_path: Path, s3_bucket: str, s3_options: dict[str, dict[str, str]]
) -> None:
    process = start_matrix(["write_shard"], str(tmp_path), f"s3://{s3_bucket}", json.dumps(s3_options))
    results = answer_of(process)["write_shard"]
    assert results["wrong"] == {}
    assert results["points"] == len(results["calls"]) + 1 == 16
