"""Sentences of the page that depend on what is known."""

import pytest

from segmint.pipeline.report.page import groups_and_paper, remarks_of
from segmint.pipeline.statistics.statistics import geography
from segmint.pipeline.statistics.values import Cleanup
from tests.support.statistics import statistics_of


@pytest.mark.parametrize(
    ("holes", "islands", "sentence"),
    [
        (
            3,
            9,
            "Clean-up filled holes in 3 masks (1.5 %; SA-1B: about 4 %), removed islands in 9 masks (4.5 %; SA-1B: "
            "about 4 %), and removed 1 mask (0.5 %).",
        ),
        (None, None, "Clean-up filled holes or removed islands in 11 masks (5.5 %), and removed 1 mask (0.5 %)."),
    ],
)
def test_holes_and_islands_are_beside_the_papers_where_they_are_known(
    holes: int | None, islands: int | None, sentence: str
) -> None:
    shares = {"holes_share": holes and holes / 200, "islands_share": islands and islands / 200}
    cleanup = Cleanup(
        cleaned=11,
        removed=1,
        holes=holes,
        islands=islands,
        cleaned_share=0.055,
        removed_share=0.005,
        artifacts=holes,
        artifacts_share=shares["holes_share"],
        **shares,
    )

    remarks = remarks_of(statistics_of(cleanup=cleanup))
    assert sentence in remarks
    assert ("3 masks dropped that traced a redacted region (1.5 %)." in remarks) == (holes == 3)


def test_groups_are_beside_the_paper_s_figures_by_name() -> None:
    found = groups_and_paper(geography({"KE": (3, 300), "JP": (1, 90)}))
    assert [group.name for group, _ in found] == [theirs.name for _, theirs in found]
    (africa, theirs), *_ = found
    assert (africa.images, africa.masks, theirs.images, theirs.masks) == (3, 300, 300_000, 28_000_000)
    for key in ("share", "coco_share", "open_images_share"):
        assert sum(getattr(theirs, key) for _, theirs in found[:5]) == pytest.approx(1, abs=0.002)
        assert sum(getattr(theirs, key) for _, theirs in found[5:]) == pytest.approx(1, abs=0.002)
