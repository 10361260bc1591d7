"""The plots as PNG files: pictures that are there, not empty, and the same each time."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmint.catalogs.layout import REPORT, is_known
from segmint.pipeline.quality.report.plots import charts_of, draw_figures
from segmint.pipeline.quality.statistics.values import (
    BinImages,
    Centers,
    Geography,
    GroupImages,
    Histogram,
    LabelMasks,
    MasksPerImage,
    ProviderImages,
)
from tests.support.statistics import statistics_of

STATISTICS = statistics_of(
    masks_per_image=MasksPerImage(None, None, (BinImages("<=10", 3), BinImages("11-50", 1))),
    relative_size=Histogram((0, 0.5, 1), (4, 1), 0.25),
    aspect_ratio=Histogram((0.25, 1, 4, 32), (4, 1, 2), 1.5),
    centers=Centers(2, ((1, 2), (3, 4))),
    labels=(LabelMasks("cup", 2), LabelMasks(None, 3)),
    providers=(ProviderImages("Acme $tock$ ^_ pictures {", 3),),
    geography=Geography(1, 0, (), (GroupImages("Africa", 1, 1.0, 2.0, 0.028, 2, 1),), ()),
)


@pytest.fixture(scope="module")
def figures() -> dict[str, bytes]:
    return draw_figures(charts_of(STATISTICS))


def test_each_plot_is_a_picture(figures: dict[str, bytes]) -> None:
    names = ("masks_per_image", "relative_size", "scores", "centers", "labels", "providers", "regions")
    assert set(figures) == {f"{name}.png" for name in names}
    assert all(is_known(f"{REPORT}/figures/{name}") for name in figures)
    for data in figures.values():
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == "PNG"
            assert min(image.size) > 150
            assert np.asarray(image.convert("L")).std() > 10


def test_they_are_the_same_each_time(figures: dict[str, bytes]) -> None:
    assert draw_figures(charts_of(STATISTICS)) == figures


def test_nothing_known_is_nothing_drawn(report_folder: Path) -> None:
    assert draw_figures(charts_of(statistics_of())) == {}
    assert not (report_folder / "figures" / "funnel.png").exists()


def test_settings_of_matplotlib_elsewhere_change_nothing(figures: dict[str, bytes]) -> None:
    import matplotlib as mpl

    with mpl.rc_context({"font.family": "monospace", "axes.grid": True, "lines.linewidth": 9}):
        assert draw_figures(charts_of(STATISTICS)) == figures
