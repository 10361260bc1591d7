"""What a folder of evidence says of an audit, and where it may be."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from segmint.catalogs.dataset.versions.record import VersionName, name_now
from segmint.infra.errors import UsageError
from segmint.pipeline.quality.audit.result_json import read_audit
from segmint.pipeline.quality.evidence import check
from segmint.pipeline.quality.evidence.evidence import check_target, write_evidence
from tests.support.html import parse_page
from tests.support.locations import location_of
from tests.support.reported import QUICK

FILES = {"evidence.json", "audit.json", "manifest.json", "leaves.txt", "study.json", "check.py", "index.html"}


def test_it_says_what_was_audited_and_by_what(evidence_folder: Path) -> None:
    dataset = location_of(evidence_folder.parent / "dataset")
    assert {path.name for path in evidence_folder.iterdir()} == {*FILES, "versions", "SHA256SUMS"}
    value = json.loads((evidence_folder / "evidence.json").read_text())
    assert (value["dataset"]["digest"], value["dataset"]["version"]) == (name_now(dataset).digest, 1)
    assert value["unsearched"][0]["reason"] == "skipped"
    assert (value["not_checked"], value["unfinished"]) == ([], [])
    assert set(value["detector_files"]["mtcnn"]) == {"onet.pt", "pnet.pt", "rnet.pt"}
    assert set(value["detector_files"]["clp"]) == {"clp_det.onnx"}
    assert {"torch", "segmint", "python"} <= value["software"].keys()
    audit = read_audit(location_of(evidence_folder / "audit.json"))
    assert audit.version == VersionName(name_now(dataset).digest, 1)
    assert str(evidence_folder.parent) not in "".join(path.read_text() for path in evidence_folder.glob("*.json"))


def test_the_page_says_it_to_people(evidence_folder: Path) -> None:
    page = parse_page((evidence_folder / "index.html").read_text())
    verdict = "no image was searched for faces and plates (6 of 6 images (--privacy-sample 0)); 0 findings otherwise"
    assert verdict in page.text
    assert "6 of 6 images: skipped" in page.text
    assert (
        "The pixels of 2 of 6 JPEGs and 4 of 19 masks: only hashes, sizes, metadata, and run lengths were checked"
        in page.text
    )
    assert "Whether the recorded licenses are true, and whether they allow commercial use" in page.text
    assert "Every image was searched" not in page.text
    assert "face 1 1 59%" in page.text
    assert not page.all("script")


def test_only_an_empty_folder_outside_of_the_dataset_is_taken(evidence_folder: Path, tmp_path: Path) -> None:
    dataset = location_of(evidence_folder.parent / "dataset")
    with pytest.raises(UsageError, match="already contains files"):
        check_target(dataset, location_of(evidence_folder))
    for inside in (dataset / "evidence", dataset / "report/evidence"):
        with pytest.raises(UsageError, match="is inside the dataset"):
            check_target(dataset, inside)
    with pytest.raises(UsageError, match="is not a segmint dataset"):
        check_target(location_of(tmp_path), location_of(tmp_path / "evidence"))
    check_target(dataset, location_of(tmp_path / "evidence"))
    (location_of(tmp_path) / "evidence/versions/1.sig").put(b"of another run")
    with pytest.raises(UsageError, match="already contains files"):
        check_target(dataset, location_of(tmp_path / "evidence"))


def test_a_dataset_that_changed_meanwhile_has_no_evidence(evidence_folder: Path, tmp_path: Path) -> None:
    dataset = location_of(evidence_folder.parent / "dataset")
    report = read_audit(location_of(evidence_folder / "audit.json"))
    before = replace(report, version=VersionName("0" * 64, 1))
    with pytest.raises(UsageError, match="changed during the audit"):
        write_evidence(dataset, before, QUICK, location_of(tmp_path / "evidence"))
    assert not (tmp_path / "evidence").exists()


def test_of_two_runs_into_one_folder_the_second_writes_nothing(evidence_folder: Path, tmp_path: Path) -> None:
    dataset = location_of(evidence_folder.parent / "dataset")
    report = read_audit(location_of(evidence_folder / "audit.json"))
    (tmp_path / "evidence.json").write_text("{}")
    with pytest.raises(UsageError, match=r"another run wrote evidence\.json\. Pass an empty folder"):
        write_evidence(dataset, report, QUICK, location_of(tmp_path))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("evidence.json", "{}")]


def test_only_valid_signatures_of_the_digest_are_listed(evidence_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(evidence_folder.parent / "dataset", tmp_path / "dataset")
    dataset, folder = location_of(tmp_path / "dataset"), location_of(tmp_path / "evidence")
    (signed,) = (path.name for path in (tmp_path / "dataset/versions").glob("1.*.sig"))
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    of_another = key.sign(check.signed_bytes(check.DIGEST_NAMESPACE, check.digest_line("0" * 64)))
    copied, garbage = check.key_id(public), "0" * 16
    (dataset / f"versions/1.{copied}.sig").put(check.signature_file(public, check.DIGEST_NAMESPACE, of_another))
    (dataset / f"versions/1.{garbage}.sig").put(b"garbage")
    write_evidence(dataset, read_audit(location_of(evidence_folder / "audit.json")), QUICK, folder)
    value = json.loads((folder / "evidence.json").read())
    assert [each["file"] for each in value["signatures"]] == [f"versions/{signed}"]
    page = parse_page((folder / "index.html").read().decode())
    invalid = ", ".join(sorted([copied, garbage]))
    assert f"Signed by the keys {signed[2:18]}; invalid signature files of the keys {invalid}" in page.text
