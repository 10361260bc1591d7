"""Plots of the distributions of a catalog's image measures, to help choose limits."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.wording import number
from segmint.operators.curate.fitness import MEASURES
from segmint.pipeline.building.curate.decide import ImageFeatures, Limits, read_thumbnails

FORMATS = ("png", "svg", "pdf")
"""File formats of distributions, by file extension."""

PERCENTILES = (0.1, 1, 5, 25, 50, 75, 95, 99, 99.9)
"""Percentiles to label and to illustrate with an example image's thumbnail."""

_BINS = 60
_BLUE, _VERMILION, _GRAY = "#0b5a9c", "#a8480b", "#8a9098"  # color-blind safe (Okabe and Ito)


def ending(name: str) -> str:
    """Return the format of a distributions file. Raises `UsageError` for an unknown extension."""
    found = name.lower().rpartition(".")[2]
    if found not in FORMATS:
        raise UsageError(f"{name}: expected a name that ends in one of {', '.join(FORMATS)}")
    return found


def draw(features: ImageFeatures, folder: Location, limits: Limits, name: str) -> bytes:
    """Draw a histogram of each measure and scorer, with example images at its percentiles, and return the file's bytes.

    `limits` contains the configured limits. Each histogram marks its limits and the fraction of images beyond them.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    measured = {key: values for key, values in features.values.items() if np.isfinite(values).any()}
    with style.context("default"):
        plots = max(1, len(measured))
        figure = Figure(figsize=(11, 0.6 + 3.1 * plots), layout="constrained")
        figure.suptitle(f"{len(features.pixels):,} rows of the catalog", x=0.01, ha="left", fontsize=10, color=_GRAY)
        grid = figure.add_gridspec(2 * plots, 1, height_ratios=[2, 1] * plots)
        for place, (key, values) in enumerate(measured.items()):
            axes = figure.add_subplot(grid[2 * place])
            _draw_histogram(axes, key, values[np.isfinite(values)], limits.get(key, (None, None)))
            _draw_examples(figure.add_subplot(grid[2 * place + 1]), values, folder)
        sink = io.BytesIO()
        figure.savefig(sink, format=ending(name), dpi=110, metadata=_NO_DATE[ending(name)])
    return sink.getvalue()


_NO_DATE: Mapping[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def _draw_histogram(
    axes: Any, key: str, values: NDArray[np.float64], limits: tuple[float | None, float | None]
) -> None:
    low, high = np.percentile(values, (0, 99.5)) if key == "sharpness" else (values.min(), values.max())
    axes.hist(values.clip(low, high), bins=_BINS, color=_BLUE, log=True)
    axes.set_title(f"{key}: {MEASURES.get(key, 'a scorer')}", loc="left", fontsize=10)
    axes.set_ylabel("images")
    axes.spines[["top", "right"]].set_visible(False)
    for limit, beyond in zip(limits, (np.less, np.greater), strict=True):
        if limit is not None:
            count = int(beyond(values, limit).sum())
            axes.axvline(limit, color=_VERMILION)
            axes.annotate(
                f"{number(limit)}: {count:,} beyond it ({number(100 * count / len(values))}%)",
                (limit, 1),
                xycoords=("data", "axes fraction"),
                fontsize=8,
                color=_VERMILION,
                va="top",
            )


def _draw_examples(axes: Any, values: NDArray[np.float64], folder: Location) -> None:
    """Draw the thumbnails of the images at the percentiles, side by side."""
    found = _at_percentiles(values)
    ordinals = np.array([ordinal for _, ordinal in found])
    unique, places = np.unique(ordinals, return_inverse=True)
    thumbnails = read_thumbnails(folder, unique)[places]
    side = thumbnails.shape[1]
    gap = np.full((len(thumbnails), side, side // 2), 255, np.uint8)
    strip = np.concatenate(list(np.concatenate([thumbnails, gap], axis=2)), axis=1)
    axes.imshow(strip, cmap="gray", vmin=0, vmax=255)
    axes.set_axis_off()
    for place, (percentile, ordinal) in enumerate(found):
        text = f"{percentile:g}%: {number(float(values[ordinal]))}\nrow {ordinal + 1}"
        axes.text(place * (side + side // 2) + side / 2, -6, text, fontsize=7, ha="center", va="bottom")


def _at_percentiles(values: NDArray[np.float64]) -> list[tuple[float, int]]:
    """Return each percentile with the row that has this percentile's value. Skip rows without a value."""
    rows = np.flatnonzero(np.isfinite(values))
    order = rows[np.argsort(values[rows], kind="stable")]
    return [(percentile, int(order[round((len(order) - 1) * percentile / 100)])) for percentile in PERCENTILES]
