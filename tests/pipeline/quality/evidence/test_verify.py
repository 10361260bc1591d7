"""`segmint verify` of evidence says what the folder's script says, in any store."""

import hashlib
import shutil
from pathlib import Path

import pytest

from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.pipeline.quality.evidence.verify import is_evidence, verify_evidence
from tests.support.keys import write_keys
from tests.support.locations import location_of


def test_evidence_with_its_key_and_dataset_is_verified(evidence_folder: Path) -> None:
    base = evidence_folder.parent
    assert is_evidence(location_of(evidence_folder))
    assert not is_evidence(location_of(base / "dataset"))
    key, dataset = location_of(base / "key.public.pem"), location_of(base / "dataset")
    sums = hashlib.sha256((evidence_folder / "SHA256SUMS").read_bytes()).hexdigest()
    found = verify_evidence(location_of(evidence_folder), key, dataset, sums)
    assert (found.problems, found.verified, found.not_covered) == ((), True, ())
    assert found.digest is not None
    assert found.lines()[-2:] == [
        f"SHA256SUMS: sha256:{sums}; verified",
        f"dataset digest: sha256:{found.digest[:12]}",
    ]


def test_without_the_auditor_s_sum_the_audit_is_not_verified(evidence_folder: Path) -> None:
    found = verify_evidence(location_of(evidence_folder), location_of(evidence_folder.parent / "key.public.pem"))
    assert (found.problems, found.verified, found.not_covered) == ((), False, None)
    assert found.not_checked[0].startswith("version number, verdict, and the rest of audit.json")
    assert found.lines()[-2].endswith("; the digest is verified, the audit is not")
    found = verify_evidence(location_of(evidence_folder), sums="0" * 64)
    assert (found.verified, found.digest, found.audit_summary) == (False, None, None)


def test_a_changed_byte_another_key_and_another_dataset_are_problems(
    evidence_folder: Path, small_dataset: Path, tmp_path: Path
) -> None:
    _, public = write_keys(tmp_path, "other")
    (problem,) = verify_evidence(location_of(evidence_folder), public).problems
    assert "signed neither the digest nor SHA256SUMS" in problem
    dataset = Path(shutil.copytree(small_dataset, tmp_path / "dataset"))
    commit = dataset / "commits/000001.g1.json"
    commit.rename(dataset / "commits/000001.g2.json")
    found = verify_evidence(location_of(evidence_folder), dataset=location_of(dataset))
    assert (found.problems, found.not_covered) == ((f"{commit}: no such file",), ("commits/000001.g2.json",))
    assert any("grew or was corrected since" in line for line in found.lines())
    copy = Path(shutil.copytree(evidence_folder, tmp_path / "copy"))
    (copy / "audit.json").write_bytes((copy / "audit.json").read_bytes()[:-1])
    found = verify_evidence(location_of(copy), dataset=location_of(dataset))
    assert [problem.split(":")[0] for problem in found.problems] == ["audit.json"]
    assert (found.digest, found.audit_summary) == (None, None)
    (copy / "more").symlink_to("/etc")
    assert verify_evidence(location_of(copy)).problems[0].startswith("more: a link")
    (copy / "more").unlink()
    (copy / "SHA256SUMS").unlink()
    assert is_evidence(location_of(copy))
    assert verify_evidence(location_of(copy)).problems
    with pytest.raises(UsageError, match="is not a segmint dataset"):
        verify_evidence(location_of(evidence_folder), dataset=location_of(tmp_path))


def test_a_private_key_is_refused(evidence_folder: Path) -> None:
    with pytest.raises(UsageError, match="is a private key"):
        verify_evidence(location_of(evidence_folder), location_of(evidence_folder.parent / "key.pem"))


@pytest.mark.s3
def test_evidence_and_its_dataset_in_a_bucket(
    evidence_folder: Path, s3_bucket: str, s3_options: dict[str, dict[str, str]]
) -> None:
    local, base = evidence_folder.parent, Location(Storage(s3_options), f"s3://{s3_bucket}/audited")
    for path in (*local.glob("evidence/**/*"), *local.glob("dataset/**/*")):
        if path.is_file():
            (base / path.relative_to(local).as_posix()).put(path.read_bytes())
    found = verify_evidence(base / "evidence", dataset=base / "dataset")
    assert (found.problems, found.not_covered) == ((), ())
    tar = min((local / "dataset" / "shards").iterdir()).name
    (base / "dataset/shards" / tar).delete()
    (problem,) = verify_evidence(base / "evidence", dataset=base / "dataset").problems
    assert problem == f"{base}/dataset/shards/{tar}: no such file"
