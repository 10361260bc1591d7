"""The stubs give what real stages could have given: a dataset of theirs has nothing that the audit finds."""

from pathlib import Path

import pytest

from benchmarks.building.driver import set_pace
from benchmarks.building.pace import EVENTS, PACE
from benchmarks.building.scale import write_build
from benchmarks.building.stubs import MASKS, RELEASE_BYTES, StubbedSegment, released
from segmint.pipeline.quality.audit.integrity import audit_integrity
from tests.support.locations import location_of
from tests.support.stubbed import write_dataset


@pytest.mark.usefixtures("weights")
def test_a_dataset_of_stubs_is_a_dataset(tmp_path: Path) -> None:
    results = write_dataset(write_build(tmp_path, 120, images_per_shard=50))
    assert [result.status for result in results] == ["committed"] * 3
    assert [result.counts["images"] for result in results] == [49, 49, 20]
    assert [result.counts["rejected:license_not_allowed"] for result in results[:2]] == [1, 1]
    assert [result.counts["masks"] for result in results] == [49 * MASKS, 49 * MASKS, 20 * MASKS]
    report = audit_integrity(location_of(tmp_path / "dataset"))
    assert not report.findings.counts


def test_images_are_as_large_as_they_are_asked_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    small = released(1)
    assert released(2) == small
    monkeypatch.setenv(RELEASE_BYTES, "100000")
    assert len(released(1)) == len(released(2)) == 100_000
    assert released(1) == released(1) != released(2)
    assert released(1).startswith(small)


def test_the_pace_of_segment_actors_may_change_during_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("benchmarks.building.stubs.time.sleep", slept.append)
    monkeypatch.setenv(PACE, str(tmp_path / "pace"))
    monkeypatch.setenv(EVENTS, str(tmp_path / "events"))
    segment = object.__new__(StubbedSegment)
    for seconds in (0.5, 0.25):
        set_pace(tmp_path, seconds)
        assert list(segment._find(["an image", None])) == ["an image"]
    assert slept == [0.5, 0.25]
    assert (tmp_path / "events").read_text().count(" image ") == 2
