"""The plots as PNG files: pictures that are there, not empty, and the same each time."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from segmint.pipeline.report.charts import charts_of
from segmint.pipeline.report.figures import draw_figures

STATISTICS = {
    "masks_per_image": {"bins": [{"label": "<=10", "images": 3}, {"label": "11-50", "images": 1}]},
    "relative_size": {"edges": [0, 0.5, 1], "counts": [4, 1], "mean": 0.25},
    "aspect_ratio": {"edges": [0.25, 1, 4, 32], "counts": [4, 1, 2], "mean": 1.5},
    "centers": {"bins": 2, "counts": [[1, 2], [3, 4]]},
    "providers": [{"provider": "Acme $tock$ ^_ pictures {", "images": 3}],
    "geography": {"regions": [{"name": "Africa", "images": 1, "share": 1, "masks_per_image": 2, "paper_share": 0.028}]},
}


def test_each_plot_is_a_picture() -> None:
    figures = draw_figures(charts_of(STATISTICS))
    assert set(figures) == {
        f"{name}.png" for name in ("masks_per_image", "relative_size", "scores", "centers", "providers", "regions")
    }
    for data in figures.values():
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == "PNG"
            assert min(image.size) > 150
            assert np.asarray(image.convert("L")).std() > 10


def test_they_are_the_same_each_time() -> None:
    assert draw_figures(charts_of(STATISTICS)) == draw_figures(charts_of(STATISTICS))


def test_nothing_known_is_nothing_drawn(report_folder: Path) -> None:
    assert draw_figures(charts_of({})) == {}
    assert not (report_folder / "figures" / "funnel.png").exists()
