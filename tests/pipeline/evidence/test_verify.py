"""`segmint verify` of evidence says what the folder's script says, in any store."""

import shutil
from pathlib import Path

import pytest

from segmint.infra.errors import UsageError
from segmint.pipeline.evidence.verify import is_evidence, verify_evidence
from tests.support.keys import write_keys
from tests.support.locations import location_of


def test_evidence_with_its_key_and_dataset_is_verified(evidence_folder: Path) -> None:
    base = evidence_folder.parent
    assert is_evidence(location_of(evidence_folder))
    assert not is_evidence(location_of(base / "dataset"))
    key, dataset = location_of(base / "key.public.pem"), location_of(base / "dataset")
    found = verify_evidence(location_of(evidence_folder), key, dataset)
    assert (found.problems, found.notes) == ((), ())
    assert found.version is not None
    assert found.lines()[-1] == found.version.line()
    notes = verify_evidence(location_of(evidence_folder)).notes
    assert [note.split(":")[-1] for note in notes] == [" name one with --key", " name it with --dataset"]


def test_a_changed_byte_another_key_and_another_dataset_are_problems(
    evidence_folder: Path, minted: Path, tmp_path: Path
) -> None:
    _, public = write_keys(tmp_path, "other")
    (problem,) = verify_evidence(location_of(evidence_folder), public).problems
    assert "did not sign the digest" in problem
    dataset = Path(shutil.copytree(minted, tmp_path / "dataset"))
    (dataset / "commits/000001.g1.json").unlink()
    problems = verify_evidence(location_of(evidence_folder), dataset=location_of(dataset)).problems
    assert "audited was sha256:" in problems[-1]
    copy = Path(shutil.copytree(evidence_folder, tmp_path / "copy"))
    (copy / "audit.json").write_bytes((copy / "audit.json").read_bytes()[:-1])
    found = verify_evidence(location_of(copy), dataset=location_of(dataset))
    assert [problem.split(":")[0] for problem in found.problems] == ["audit.json"]
    assert (found.verdict, found.version) == (None, None)
    (copy / "SHA256SUMS").unlink()
    assert is_evidence(location_of(copy))
    assert verify_evidence(location_of(copy)).problems


def test_a_private_key_is_refused(evidence_folder: Path) -> None:
    with pytest.raises(UsageError, match="is a private key"):
        verify_evidence(location_of(evidence_folder), location_of(evidence_folder.parent / "key.pem"))
