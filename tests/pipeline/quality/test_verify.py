"""A dataset is verified: no file of it can change, or be gone, without a problem that names it."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from segmint.catalogs.dataset import commits, digest
from segmint.catalogs.dataset.commits import write_shards_index
from segmint.catalogs.dataset.outputs import read_notes
from segmint.catalogs.dataset.tombstones import RemovedImage, TakedownRequest, Tombstone, put_tombstone
from segmint.catalogs.dataset.versions import VersionName, name_now, put_version, read_version, version_numbers
from segmint.catalogs.findings import Code
from segmint.catalogs.layout import data_path
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.pipeline.quality import verify
from segmint.pipeline.quality.audit.integrity import audit_integrity
from segmint.pipeline.quality.signatures import sign_version
from segmint.pipeline.quality.verify import VerifyResult, verify_dataset
from tests.support.committed import sum_commits
from tests.support.history_commands import import_mask
from tests.support.locations import location_of
from tests.support.planting import change_commit
from tests.support.protocol import ROWS, DatasetPath, two_shards, write

FLIPS = 4
"""Bits that are flipped in each file, spread over it at random."""


@pytest.fixture
def whole() -> Iterator[Location]:
    """A dataset of two shards with a tombstone, an index and a recorded version."""
    with two_shards() as place:
        image = RemovedImage(ordinal=7, id=8, image_id="image-7", uri="photo_7.jpg", sha256=None)
        tombstone = Tombstone(request=TakedownRequest(ids=("8",)), reason="asked", when="now", images=(image,))
        put_tombstone(place.location, tombstone)
        write_shards_index(place.location, "protocol")
        put_version(place.location, "takedown", applied=[tombstone.name])
        yield place.location


def paths_of(dataset: Location) -> list[str]:
    return sorted(entry.name for entry in dataset.walk())


def test_a_whole_dataset(whole: Location) -> None:
    name = name_now(whole)
    found = verify_dataset(whole)
    # dataset.json, a part, a tombstone, and two shards of five files: shards.json and versions/ are compared, not named
    assert found == VerifyResult(str(whole), VersionName(name.digest, 1), (), (), 13, found.bytes, (), None)
    assert found.bytes == sum(
        entry.size for entry in whole.walk() if entry.name != "shards.json" and "versions/" not in entry.name
    )
    assert found.lines()[-1] == f"dataset digest: sha256:{name.digest[:12]} (version 1)"
    assert found.lines()[-2].startswith("read 13 files (")
    assert found.lines()[-2].endswith("; verified; compared with the dataset's own records only")
    assert found.to_dict()["verified"]
    for folder in ("tombstones", "outputs", "marks", "reservations", "summaries", "versions"):
        (whole / folder / ".DS_Store").put(b"\0\0\0\1Bud1")
    beside = verify_dataset(whole)
    assert (beside.problems, beside.version, read_notes(whole)) == ((), found.version, [])


def test_an_unreadable_manifest_makes_no_other_file_missing(whole: Location) -> None:
    (whole / "dataset.json").put(b"{")
    (whole / data_path("masks", 0, "0" * 64)).put(b"left over")
    assert {problem.partition(" ")[0].rstrip(":") for problem in verify_dataset(whole).problems} == {"dataset.json"}


def test_no_bit_of_any_file_changes_unseen(whole: Location) -> None:
    draw = random.Random(1)
    paths = paths_of(whole)
    assert {path.partition("/")[0] for path in paths} == {
        "catalog", "commits", "dataset.json", "images", "masks", "rejects", "shards", "shards.json", "tombstones",
        "versions",
    }  # fmt: skip
    for path in paths:
        data = (whole / path).read()
        for _ in range(FLIPS):
            changed = bytearray(data)
            place, bit = draw.randrange(len(data)), draw.randrange(8)
            changed[place] ^= 1 << bit
            (whole / path).put(bytes(changed))
            found = verify_dataset(whole)
            assert any(path in problem for problem in found.problems), f"{path}: bit {bit} of byte {place}"
            assert not found.to_dict()["verified"]
        (whole / path).put(data)
    assert verify_dataset(whole).problems == ()


def test_no_file_disappears_unseen(whole: Location) -> None:
    for path in paths_of(whole):
        data = (whole / path).read()
        (whole / path).delete()
        if path == "dataset.json":
            with pytest.raises(UsageError, match=r"has no dataset\.json, but .*Run `segmint repair"):
                verify_dataset(whole)
        elif path == "versions/1.json":  # nothing else names the newest version
            assert verify_dataset(whole).problems == ()
        else:
            assert any(path in problem for problem in verify_dataset(whole).problems), path
        (whole / path).put(data)


def test_what_nobody_recorded_is_a_problem(whole: Location) -> None:
    place = DatasetPath(whole.uri)
    write(place, 1, variant=2, generation=2)
    found = verify_dataset(whole)
    assert (found.problems, found.not_checked[0].partition(",")[0]) == ((), "1 file"), "a build may be running"
    os.utime(Path(whole.uri, "commits/000001.g2.json"), (1, 1))
    found = verify_dataset(whole)
    assert found.version == VersionName(name_now(whole).digest, None)
    assert [problem.partition(":")[0] for problem in found.problems] == [
        "commits/000001.g1.json", "shards.json", "commits/000001.g1.json", "commits/000001.g2.json",
    ]  # fmt: skip
    os.utime(Path(whole.uri, "commits/000001.g2.json"))
    write_shards_index(whole, "protocol")
    put_version(whole, "retry")
    assert verify_dataset(whole).problems == ()
    earlier = verify_dataset(whole, 1)  # its files are still there
    assert (earlier.problems, earlier.version) == ((), read_version(whole, 1).name)
    assert earlier.lines()[-2].endswith("; not read: the current state (version 2) and files that version 1 lacks")
    pinned = f"sha256:{earlier.version.digest}"
    now = verify_dataset(whole, pinned, require_pinned=True)
    assert (now.left_out, now.files, len(now.problems)) == (None, 13, 1)
    assert now.problems[0].endswith(f"its digest is sha256:{now.version.digest}, expected {pinned}")
    (whole / "commits/000001.g1.json").delete()
    problems = verify_dataset(whole, 1).problems
    assert "version 2 (retry of " in problems[0]
    assert problems[1:] == ("commits/000001.g1.json: no such file",)


def test_only_a_pinned_digest_reveals_a_writer_who_makes_all_records_match(whole: Location) -> None:
    pinned = f"sha256:{verify_dataset(whole).version.digest}"
    (whole / "commits/000001.g1.json").delete()
    (whole / "versions/1.json").delete()
    write(DatasetPath(whole.uri), 1, variant=2)
    write_shards_index(whole, "protocol")
    put_version(whole, "takedown", applied=[entry.name for entry in (whole / "tombstones").list()])
    assert verify_dataset(whole).to_dict()["verified"]
    assert [finding.line() for finding in audit_integrity(whole).findings] == []
    (problem,) = verify_dataset(whole, pinned).problems
    assert problem.endswith(f"expected {pinned}")


def test_a_file_that_is_named_like_a_signature_is_one(whole: Location, tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes(Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    signature = sign_version(whole, location_of(key)).file
    assert verify_dataset(whole).problems == ()
    data = (whole / signature).read()
    for other in (b"", b"an original", data[:-1], data[: len(data) // 2], data * 2, data * 10_000):
        (whole / signature).put(other)
        assert verify_dataset(whole).problems == (f"{signature}: not a signature by the key in its name",)
    (whole / f"versions/1.{'0' * 16}.sig").put(data)
    assert f"versions/1.{'0' * 16}.sig: not a signature by the key in its name" in verify_dataset(whole).problems


def test_a_version_that_is_gone_or_does_not_follow_is_a_problem(whole: Location) -> None:
    place = DatasetPath(whole.uri)
    for number, variant in ((2, 1), (3, 2)):
        write(place, 1, variant=variant, generation=number)
        write_shards_index(whole, "protocol")
        put_version(whole, "retry")
    assert verify_dataset(whole).problems == ()
    second = (whole / "versions/2.json").read()
    (whole / "versions/2.json").delete()
    assert verify_dataset(whole).problems == (
        "versions/2.json: expected version 2, because later ones exist; found no such file",
    )
    forged = read_version(whole, 1).model_copy(update={"number": 2, "before": "0" * 64})
    (whole / "versions/2.json").put(forged.to_json())
    found = verify_dataset(whole).problems
    assert [problem.partition(":")[0] for problem in found] == ["versions/2.json", "versions/3.json"]
    (whole / "versions/2.json").put(second)
    assert verify_dataset(whole).problems == ()
    (whole / f"versions/{10**17}.json").put(second)
    found = verify_dataset(whole).problems
    assert found[0] == (
        f"versions/4.json: expected versions 4 to {10**17 - 1}, because later ones exist; found no such file"
    )
    assert [problem.partition(":")[0] for problem in found[1:]] == [f"versions/{10**17}.json"]


def test_damaged_versions_are_problems_and_the_others_are_found(whole: Location) -> None:
    write(DatasetPath(whole.uri), 1, variant=2, generation=2)
    write_shards_index(whole, "protocol")
    second = put_version(whole, "retry")
    (whole / "versions/1.json").put(b"{}")
    for wanted in (None, 1, 2, second.digest[:8], "000000"):
        found = verify_dataset(whole, wanted)
        assert [problem.partition(":")[0] for problem in found.problems] == ["versions/1.json"], wanted
        assert found.version == second
    (whole / "versions/2.json").put(b"{}")
    assert "no intact version is recorded" in verify_dataset(whole).not_checked[0]


def test_a_correction_that_ends_meanwhile_is_not_damage(whole: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    place, read_shards = DatasetPath(whole.uri), verify.read_shards
    runs: list[str] = []

    def read(*given: Any, **how: Any) -> None:
        if len(runs) < 2:  # the first one ends between the shards, the second one before them
            runs.append("import")
            if len(runs) == 1:
                read_shards(given[0], given[1][:1], **how)
                given = (given[0], given[1][1:])
            for ordinal in (0, ROWS):
                assert import_mask(place, ordinal, len(runs))
        read_shards(*given, **how)

    monkeypatch.setattr(verify, "read_shards", read)
    found = verify_dataset(whole)
    assert (found.problems, found.not_checked, len(runs)) == ((), (), 2)
    assert found.version == read_version(whole, version_numbers(whole)[-1]).name


def test_an_index_may_be_missing_until_all_shards_are_recorded(whole: Location) -> None:
    (whole / "shards.json").delete()
    assert verify_dataset(whole).problems == (
        "shards.json: no such file, but all shards are committed: run the same build again",
    )
    (whole / "versions/1.json").delete()
    assert verify_dataset(whole).problems == ()


def test_files_that_are_not_opened_are_named(whole: Location) -> None:
    for path in ("annotations/0/0.1.json", "report/figures/funnel.png"):
        (whole / path).put(b"an original")
    found = verify_dataset(whole)
    assert (found.problems, found.notes) == ((), ("not opened: the files in annotations/ and report/",))


def test_the_last_version_is_missed_by_its_signature_and_by_takedowns(whole: Location) -> None:
    (whole / f"versions/1.{'0' * 16}.sig").put(b"its signature")
    (whole / "versions/1.json").delete()
    found = verify_dataset(whole)
    assert found.problems == (
        "versions/1.json: expected version 1, because its signature exists; found no such file",
        f"versions/1.{'0' * 16}.sig: not a signature by the key in its name",
    )
    (whole / f"versions/1.{'0' * 16}.sig").delete()
    image = RemovedImage(ordinal=6, id=7, image_id="image-6", uri="photo_6.jpg", sha256=None)
    before = name_now(whole).digest
    asked = TakedownRequest(ids=("7",))
    put_tombstone(whole, Tombstone(request=asked, reason="asked", when="now", version_before=before, images=(image,)))
    (problem,) = verify_dataset(whole).problems
    assert problem.startswith("versions/: expected a version, because the takedown of tombstones/")
    assert Code.BAD_VERSION in {each.code for each in audit_integrity(whole).findings}


def test_a_dataset_without_a_version_is_compared_with_its_commits(whole: Location) -> None:
    (whole / "versions/1.json").delete()
    found = verify_dataset(whole)
    assert (found.problems, found.version.number) == ((), None)
    assert found.not_checked == (
        "the commits and the catalog: no version is recorded. The other files were compared with them",
    )
    assert "; not verified; compared with the dataset's own records only" in found.lines()[-2]
    with pytest.raises(UsageError, match="has no version 1: none is recorded"):
        verify_dataset(whole, 1)
    path = next(path for path in paths_of(whole) if path.startswith("masks/"))
    (whole / path).put(b"x")
    assert path in verify_dataset(whole).problems[0]


def test_settings_and_takedowns_that_were_changed_before_the_first_version_are_problems(dataset: Path) -> None:
    location = location_of(dataset)
    image = RemovedImage(ordinal=99, id=100, image_id="x", uri="x.jpg", sha256=None)
    asked = Tombstone(request=TakedownRequest(ids=("x",)), reason="r", when="2026-01-01T00:00:00Z", images=(image,))
    put_tombstone(location, asked)
    put_version(location, "build")
    assert verify_dataset(location).problems == ()
    tombstone = f"tombstones/{asked.name}"
    (location / tombstone).put((location / tombstone).read().replace(b"x.jpg", b"y.jpg"))
    change_commit(dataset, 1, build_sha256="ab" * 32)
    (location / "versions/1.json").delete()
    put_version(location, "build")
    commit, changed = sorted(verify_dataset(location).problems, key=lambda line: tombstone in line)
    assert commit == "commits/000001.g1.json: its build_sha256 isn't the manifest's"
    assert f"{tombstone} was changed" in changed


def test_nothing_is_taken_from_summaries(whole: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "SUMMARY_SHARDS", 2)
    monkeypatch.setattr(commits, "SUMMARY_SHARDS", 2)
    monkeypatch.setattr(verify, "SUMMARY_SHARDS", 2)
    put_version(whole, "build")
    sum_commits(whole)
    leaves, sums = sorted(Path(whole.uri, "summaries").iterdir(), reverse=True)
    assert leaves.name.startswith("leaves-")
    commit = whole / "commits/000001.g1.json"
    data = commit.read()
    time = Path(commit.uri).stat().st_mtime
    commit.put(data.replace(b'"masks":4', b'"masks":5'))
    os.utime(commit.uri, (time, time))
    assert name_now(whole).number == 1, "a reader takes the saved hash"
    assert any(
        "commits/000001.g1.json: its bytes differ from those recorded" in problem
        for problem in verify_dataset(whole).problems
    )
    commit.put(data)
    os.utime(commit.uri, (time, time))
    assert verify_dataset(whole).problems == ()
    sums.write_bytes(sums.read_bytes().replace(b'"images":4', b'"images":3'))
    (problem,) = verify_dataset(whole).problems
    assert problem == f"summaries/{sums.name}: its sums differ from its commits. Delete it"


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a segmint dataset"):
        verify_dataset(location_of(tmp_path))
