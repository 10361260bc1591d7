"""The audit of what a dataset is against its recorded versions, and of the index of its tars."""

from collections.abc import Iterator

import pytest

from segmint.catalogs.dataset.commits import write_shards_index
from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.dataset.versions import VersionName, name_now, put_version
from segmint.catalogs.findings import Code
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.pipeline.quality.audit.integrity import audit_integrity
from segmint.pipeline.quality.audit.result import from_json, result_lines, to_json
from segmint.pipeline.quality.audit.versions import audit_index, audit_version
from tests.support.protocol import DatasetPath, two_shards, write


@pytest.fixture
def whole() -> Iterator[Location]:
    """A dataset of two shards with an index and a recorded version."""
    with two_shards() as place:
        write_shards_index(place.location, "protocol")
        put_version(place.location, "build")
        yield place.location


def codes_of(dataset: Location) -> dict[Code, list[str]]:
    """The files of the findings, by code."""
    found: dict[Code, list[str]] = {}
    for finding in audit_integrity(dataset).findings:
        found.setdefault(finding.code, []).append(finding.file)
    return found


def test_the_answer_carries_the_digest(whole: Location) -> None:
    report = audit_integrity(whole)
    assert report.findings.total == 0
    assert report.version == name_now(whole) == VersionName(name_now(whole).digest, 1)
    assert result_lines(report)[1] == f"dataset digest: {report.version}"
    assert from_json(to_json(report), "it").version == report.version


def test_a_deleted_commit_is_a_finding_once_a_version_is_recorded(whole: Location) -> None:
    (whole / "commits/000001.g1.json").delete()
    assert codes_of(whole) == {Code.UNLIKE_VERSION: ["commits/000001.g1.json"], Code.BAD_INDEX: ["shards.json"]}
    (finding,) = (each for each in audit_integrity(whole).findings if each.code is Code.UNLIKE_VERSION)
    assert (finding.shard, finding.found) == (1, "no such file")
    (whole / "versions/1.json").delete()
    (whole / "shards.json").delete()
    assert codes_of(whole) == {}, "nothing says that there was one"


def test_a_generation_that_came_back_is_a_finding(whole: Location) -> None:
    before = (whole / "commits/000001.g1.json").read()
    write(DatasetPath(whole.uri), 1, variant=2, generation=2)
    put_version(whole, "retry")
    (whole / "commits/000001.g2.json").delete()
    (whole / "commits/000001.g1.json").put(before)
    assert codes_of(whole)[Code.UNLIKE_VERSION] == ["commits/000001.g2.json"]


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("path", ["dataset.json", "commits/000000.g1.json"])
def test_every_byte_of_manifest_and_commits_is_covered(whole: Location, path: str, step: int) -> None:
    """A digit of a number, a letter of a word: the JSON stays what it is."""
    data = (whole / path).read()
    changed = 0
    for place in range(0, len(data), step):
        other = bytearray(data)
        other[place] ^= 1
        (whole / path).put(bytes(other))
        try:
            found = audit_version(whole).findings
        except UsageError:  # the manifest cannot be read at all
            assert path == "dataset.json"
            continue
        assert (Code.UNLIKE_VERSION, path) in [(finding.code, finding.file) for finding in found], place
        changed += 1
    assert changed > len(data) / step / 2
    (whole / path).put(data)
    assert codes_of(whole) == {}


def test_every_byte_of_the_index_is_covered(whole: Location) -> None:
    manifest, version, data = load_manifest(whole), name_now(whole), (whole / "shards.json").read()
    for place in range(len(data)):
        other = bytearray(data)
        other[place] ^= 1
        (whole / "shards.json").put(bytes(other))
        (finding,) = audit_index(whole, manifest, [(0, 1), (1, 1)], version)
        assert finding.code is Code.BAD_INDEX


def test_an_index_of_earlier_shards_is_right_until_a_version_is_recorded(whole: Location) -> None:
    (whole / "versions/1.json").delete()
    (whole / "commits/000001.g1.json").delete()
    write_shards_index(whole, "protocol")
    write(DatasetPath(whole.uri), 1)
    assert codes_of(whole) == {}, "a build that committed all shards may not have written its index yet"
    put_version(whole, "build")
    assert codes_of(whole) == {Code.BAD_INDEX: ["shards.json"]}
    (whole / "versions/1.json").delete()
    (whole / "commits/000000.g1.json").delete()
    (finding,) = audit_integrity(whole).findings
    assert "is listed, but no latest commit names it" in finding.found


def test_a_damaged_version_is_a_finding(whole: Location) -> None:
    version = whole / "versions/1.json"
    version.put(version.read().replace(b'"build"', b'"BUILD"'))
    (finding,) = audit_integrity(whole).findings
    assert (finding.code, finding.file) == (Code.BAD_VERSION, "versions/1.json")
    assert "was changed: its checksum is not that of its content" in finding.found


def test_what_is_not_recorded_yet_is_a_note(whole: Location) -> None:
    write(DatasetPath(whole.uri), 1, variant=2, generation=2)
    write_shards_index(whole, "protocol")
    (whole / "commits/000001.g1.json").delete()
    report = audit_integrity(whole)
    assert Code.UNLIKE_VERSION not in report.findings
    assert report.version is not None
    assert report.version.number is None
    assert report.notes == (
        "changed since version 1 was recorded, by an unfinished or running build or correction, or by something else: "
        "commits/000001.g2.json, commits/000001.g1.json",
    )
