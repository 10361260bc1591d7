"""Findings by area, and the images that they are about."""

from segmint.catalogs.findings import Code
from segmint.pipeline.report.findings import area_of, groups_of, images_of


def test_images_come_once_in_the_order_of_findings() -> None:
    assert images_of([{"image": image} for image in (9, None, 2, 9)]) == [9, 2]


def test_every_code_has_an_area() -> None:
    areas = {str(code): area_of(str(code)) for code in Code}
    assert areas["file_digest"] == "integrity"
    assert areas["mask_area"] == "integrity"
    assert set(areas.values()) == {"integrity", "licenses", "privacy", "duplicates"}


def test_findings_are_counted_though_the_first_alone_are_listed() -> None:
    place = {"shard": 0, "file": "f", "where": "id 1", "image": 1}
    finding = {"code": "mask_area", **place, "expected": "1", "found": "2"}
    audit = {"findings": [finding], "findings_by_code": {"mask_area": 101, "still_detected": 3}}
    (group,) = groups_of(audit, "integrity")
    assert (group.code, group.total, [row.image for row in group.rows], group.more) == ("mask_area", 101, [1], 100)
    assert group.sentence.startswith("A mask has another area")
    (unlisted,) = groups_of(audit, "privacy")
    assert (unlisted.total, unlisted.rows) == (3, ())
