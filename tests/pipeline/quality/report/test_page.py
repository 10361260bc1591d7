"""Sentences of the page that depend on what is known."""

from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from segmint.catalogs.findings import Code, Findings
from segmint.pipeline.quality.audit.result import CheckedCounts, Duplicates, Licenses
from segmint.pipeline.quality.report.comparison import ReportImage
from segmint.pipeline.quality.report.facts import Facts
from segmint.pipeline.quality.report.page import (
    ORDERED_AREAS,
    ReportImages,
    VerdictLine,
    groups_and_paper,
    groups_of,
    leading_aspect,
    remarks_of,
    verdict_of,
)
from segmint.pipeline.quality.statistics.statistics import geography
from segmint.pipeline.quality.statistics.values import Cleanup
from tests.support.statistics import audit_of, statistics_of

_FACTS = Facts("x", "sa1b", None, None, None, (), 0, 0, None, None, (), (), 0, (), (), None, None)


def test_holes_and_islands_are_beside_the_papers() -> None:
    cleanup = Cleanup(
        cleaned=11,
        removed=1,
        holes=3,
        islands=9,
        cleaned_share=0.055,
        removed_share=0.005,
        holes_share=0.015,
        islands_share=0.045,
        artifacts=3,
        artifacts_share=0.015,
    )

    remarks = remarks_of(statistics_of(cleanup=cleanup))
    assert (
        "In the build, cleanup filled holes in 3 masks (1.5%; SA-1B: about 4%), removed islands in 9 masks (4.5%; "
        "SA-1B: about 4%), and removed 1 mask (0.5%)."
    ) in remarks
    assert "3 masks dropped for tracing a redacted region (1.5%)." in remarks


def test_the_top_says_what_is_left_of_takedowns_and_which_licenses_are_noncommercial() -> None:
    facts = replace(_FACTS, taken_down=2, licenses=(("CC-BY-NC-4.0", 3), (None, 1)))

    def line(name: str, **known: Any) -> VerdictLine:
        audit = audit_of(**known)
        groups = {area: groups_of(audit.findings, area) for area in ORDERED_AREAS}
        return next(each for each in verdict_of(audit, statistics_of(), facts, groups).areas if each.name == name)

    text = "2 catalog rows taken down. Exports and other copies weren't checked."
    assert line("Takedowns") == VerdictLine("Takedowns", "integrity", "no findings", "good", text)
    left = line("Takedowns", findings=Findings({Code.STILL_THERE: 3}, ()))
    assert (left.word, left.state) == ("3 findings of data that remains", "bad")
    nobody = Licenses(date(2026, 11, 20), (), (), 0, 0, 0)
    assert line("Licenses", licenses=nobody).word == "not audited"
    assert line("Duplicates", duplicates=Duplicates(0, 2, 0, 0)).word == "not audited"
    checked = CheckedCounts(images=2)
    assert line("Duplicates", duplicates=Duplicates(2, 2, 0, 0), checked=checked).word == "no findings"
    assert line("Licenses").text == (
        "Images by license: CC-BY-NC-4.0 3, none 1. Whether licenses permit commercial use wasn't checked; "
        "3 images with a noncommercial (NC) one."
    )


def test_groups_are_beside_the_paper_s_figures_by_name() -> None:
    found = groups_and_paper(geography({"KE": (3, 300), "JP": (1, 90)}))
    assert [group.name for group, _ in found] == [theirs.name for _, theirs in found]
    (africa, theirs), *_ = found
    assert (africa.images, africa.masks, theirs.images, theirs.masks) == (3, 300, 300_000, 28_000_000)
    for key in ("share", "coco_share", "open_images_share"):
        assert sum(getattr(theirs, key) for _, theirs in found[:5]) == pytest.approx(1, abs=0.002)
        assert sum(getattr(theirs, key) for _, theirs in found[5:]) == pytest.approx(1, abs=0.002)


@pytest.mark.parametrize(
    ("masks", "leading"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [3, 7, 11]),
        ([0, 8], [8]),
        ([2, 5], [2, 5]),
        ([], []),
    ],
)
def test_pictures_under_the_verdict_are_from_all_of_the_sample(masks: list[int], leading: list[int]) -> None:
    pictures = ReportImages(samples=tuple(picture(many) for many in masks))
    assert [each.masks for each in pictures.leading] == leading
    assert sorted(each.masks for each in (*pictures.leading, *pictures.others)) == masks
    assert not ReportImages(samples=(picture(5, jpeg=None),)).leading


def test_a_panorama_leaves_room_for_the_others() -> None:
    assert [leading_aspect(picture(1, width=width)) for width in (300, 50, 2000, 0)] == [1.5, 0.7, 2.2, 0.7]


def picture(masks: int, jpeg: bytes | None = b"jpeg", width: int = 300) -> ReportImage:
    return ReportImage(masks, None, masks, width, 200, None, None, None, None, jpeg)
