"""An audit's findings by image."""

from segmint.catalogs.findings import Code, Finding, Findings
from segmint.pipeline.quality.audit.result import PrivacyResult, UnredactedRegion
from segmint.pipeline.quality.statistics.values import NearDuplicates, Outlier, SimilarMasks
from segmint.pipeline.quality.view.findings import AuditFindings, ImageFinding, findings_of
from tests.support.statistics import audit_of, statistics_of


def test_everything_that_an_audit_says_of_images_is_found() -> None:
    findings = (
        Finding(Code.MASK_AREA, "masks/x.parquet", "area 5", "6", 0, "mask 20003", 2, 20003),
        Finding(Code.MASK_COUNT, "images/x.parquet", "1", "2", 0, "id 4", 4),
        Finding(Code.BAD_JPEG, "a/b.jpg", "1", "2", 0, "", 8),
        Finding(Code.FILE_SIZE, "masks/x.parquet", "1", "2", 0),
    )
    region = UnredactedRegion(5, "face", "mtcnn", 0.987, 1, 2, 3, 4, 0)
    audit = audit_of(
        findings=Findings({}, findings),
        privacy=PrivacyResult(1, (), (region,), 1, 0),
        statistics=statistics_of(
            outliers=(Outlier(6, 0, "six", "masks", 0.0, "no mask at all"),),
            near_duplicates=NearDuplicates(1, 0.9, 2, 1, (SimilarMasks(7, (70001, 70002), 0.97),)),
        ),
    )
    found = findings_of(audit)
    assert found.elsewhere == 1
    assert found.images == (
        ImageFinding(2, "mask_area", "mask 20003: expected area 5; found 6", mask=20003),
        ImageFinding(4, "mask_count", "id 4: expected 1; found 2"),
        ImageFinding(8, "bad_jpeg", "a/b.jpg: expected 1; found 2"),
        ImageFinding(5, "face_found", "a face found by mtcnn at score 0.99", box=(1.0, 2.0, 3.0, 4.0)),
        ImageFinding(6, "outlier", "no mask at all"),
        ImageFinding(7, "near_duplicate", "masks 70001 and 70002 are near-duplicates: IoU 0.970", mask=70001),
    )


def test_an_audit_of_integrity_alone_is_taken() -> None:
    assert findings_of(audit_of(scope="integrity")) == AuditFindings()
