"""An audit's findings by image."""

import json
from pathlib import Path

import pytest

from segmint.infra.errors import UsageError
from segmint.infra.storage.storage import Storage
from segmint.pipeline.view.findings import AuditFindings, ImageFinding, load_findings
from tests.support.viewed import write_audit

FACE = {"id": 5, "kind": "face", "detector": "mtcnn", "score": 0.987, "x": 1, "y": 2, "w": 3, "h": 4}


def test_everything_that_an_audit_says_of_images_is_found(tmp_path: Path) -> None:
    audit = write_audit(
        tmp_path / "audit.json",
        [{"where": "mask 20003", "expected": "area 5", "found": "6"}, {"where": "id 4", "code": "mask_count"}, {}],
        privacy={
            "found": [{"id": 5, "kind": "face", "detector": "mtcnn", "score": 0.987, "x": 1, "y": 2, "w": 3, "h": 4}]
        },
        statistics={
            "outliers": [{"id": 6, "metric": "masks", "reason": "no mask at all"}],
            "near_duplicates": {"examples": [{"id": 7, "annotation_ids": [70001, 70002], "iou": 0.97}]},
        },
    )
    found = load_findings(Storage(), str(audit))
    assert found.elsewhere == 1
    assert found.images == (
        ImageFinding(2, "mask_area", "mask 20003: expected area 5; found 6", mask=20003),
        ImageFinding(4, "mask_count", "id 4: expected 1; found 2"),
        ImageFinding(5, "face_found", "a face found by mtcnn at score 0.99", box=(1.0, 2.0, 3.0, 4.0)),
        ImageFinding(6, "outlier", "no mask at all"),
        ImageFinding(7, "near_duplicate", "masks 70001 and 70002 are near-duplicates: IoU 0.970", mask=70001),
    )


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"findings": [{}]}', '{"findings": 3}', "[" * 100_000])
def test_what_is_no_audit_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "audit.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="is not an audit"):
        load_findings(Storage(), str(path))


def test_no_such_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.json does not exist"):
        load_findings(Storage(), str(tmp_path / "none.json"))


def test_findings_in_foreign_data_say_their_image(tmp_path: Path) -> None:
    findings = [
        {"where": "mask 20003", "image": 9},
        {"where": "", "file": "a/b.jpg", "code": "bad_jpeg", "image": 8},
        {"where": "mask 20003", "image": None},
    ]
    audit = write_audit(tmp_path / "audit.json", findings, kind="sa1b")
    assert load_findings(Storage(), str(audit)) == AuditFindings(
        (
            ImageFinding(9, "mask_area", "mask 20003: expected 1; found 2", mask=20003),
            ImageFinding(8, "bad_jpeg", "a/b.jpg: expected 1; found 2"),
        ),
        1,
    )


def test_an_audit_of_integrity_alone_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "audit.json"
    path.write_text(json.dumps({"scope": "integrity", "findings": []}))
    assert load_findings(Storage(), str(path)).images == ()
