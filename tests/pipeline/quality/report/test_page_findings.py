"""Findings by area, and the images that they are about."""

from segmint.catalogs.findings import Code, Finding, Findings
from segmint.pipeline.quality.report.page import groups_of, images_of


def finding(code: Code = Code.MASK_AREA, image: int | None = 1) -> Finding:
    return Finding(code, "f", "1", "2", 0, "id 1", image)


def test_images_come_once_in_the_order_of_findings() -> None:
    assert images_of([finding(image=image) for image in (9, None, 2, 9)]) == [9, 2]


def test_every_code_has_an_area() -> None:
    everything = Findings(dict.fromkeys(Code, 1), tuple(map(finding, Code)))
    groups = {area: groups_of(everything, area) for area in ("integrity", "licenses", "privacy", "duplicates")}
    assert sorted(group.code for each in groups.values() for group in each) == sorted(map(str, Code))
    integrity = {group.code for group in groups["integrity"]}
    assert {"file_digest", "mask_area"} <= integrity
    assert all(groups.values())


def test_findings_are_counted_though_the_first_alone_are_listed() -> None:
    found = Findings({Code.MASK_AREA: 101, Code.STILL_DETECTED: 3}, (finding(),))
    (group,) = groups_of(found, "integrity")
    assert (group.code, group.total, [row.image for row in group.rows], group.more) == ("mask_area", 101, [1], 100)
    assert group.sentence == Code.MASK_AREA.sentence
    (unlisted,) = groups_of(found, "privacy")
    assert (unlisted.total, unlisted.rows) == (3, ())
