"""Comparison of a report's dataset with another one: measurements, plots, and table."""

from dataclasses import dataclass

from segmint.catalogs.dataset.manifest import load_manifest, name_of
from segmint.catalogs.dataset.tables import DatasetTables
from segmint.infra.storage.location import Location
from segmint.infra.wording import count, number, share
from segmint.pipeline.quality.report.plots import Bar, Bars, HeatMap, StepHistogram, heat_map, shares_of
from segmint.pipeline.quality.statistics.comparison import (
    ComparedDataset,
    DatasetComparison,
    DatasetMeasures,
    compare,
    concavity_by_size,
)
from segmint.pipeline.quality.statistics.open_tables import open_tables
from segmint.pipeline.quality.statistics.statistics import compute_statistics
from segmint.pipeline.quality.statistics.values import Histogram, Statistics

THIS = "this dataset"


@dataclass(frozen=True)
class ComparisonCharts:
    """Plots that compare two datasets. A plot is None if one dataset lacks the data."""

    masks_per_image: Bars | None
    relative_size: StepHistogram | None
    concavity: StepHistogram | None  # at equal mask sizes
    centers: tuple[HeatMap, ...]


def measure_comparison(tables: DatasetTables, statistics: Statistics, other: Location) -> DatasetComparison:
    """Compare the dataset of `tables` and `statistics` with the dataset at `other`, whose masks are read here.

    Raises `UsageError` if there is no dataset at `other`, and `DamagedDatasetError` if one of its files is unreadable.
    """
    ours = measured(tables, statistics)
    with open_tables(other) as theirs:
        return compare(ours, measured(theirs, compute_statistics(theirs, 0)))


def measured(tables: DatasetTables, statistics: Statistics) -> DatasetMeasures:
    """Collect the measurements of a dataset that a comparison needs."""
    manifest = None
    if tables.kind == "segmint":
        manifest = load_manifest(tables.location)
    name = name_of(manifest, tables.location.uri)
    return DatasetMeasures(name, tables.location.uri, statistics, concavity_by_size(tables.connection))


def other_name(beside: DatasetComparison) -> str:
    """Return the other dataset's name for the page. If both datasets have the same name, this is its URI."""
    if beside.theirs.name == beside.ours.name:
        return beside.theirs.dataset
    return beside.theirs.name


def comparison_charts(beside: DatasetComparison) -> ComparisonCharts:
    """Create the plots of two datasets. The other dataset is the second bar or line."""
    ours, theirs, name = beside.ours, beside.theirs, other_name(beside)
    at_sizes = ours.concavity_at_same_sizes, theirs.concavity_at_same_sizes
    concavity = None
    if at_sizes[0].shares:
        concavity = StepHistogram(
            "Concavity at the same sizes",
            "1 − area / area of the convex hull",
            "share of masks, weighted",
            beside.concavity_edges,
            at_sizes[0].shares,
            at_sizes[0].mean,
            other=at_sizes[1].shares,
            other_name=name,
        )
    centers = (
        heat_map(ours.centers, f"Mask centers of {THIS}"),
        heat_map(theirs.centers, f"Mask centers of {name}"),
    )
    return ComparisonCharts(
        _masks_per_image(ours, theirs, name),
        _two_lines(ours.relative_size, theirs.relative_size, name),
        concavity,
        tuple(each for each in centers if each is not None),
    )


def comparison_rows(beside: DatasetComparison) -> list[tuple[str, str, str]]:
    """Return the rows of the table: label, value of this dataset, and value of the other dataset."""
    ours, theirs = _column(beside.ours), _column(beside.theirs)
    return [(name, value, theirs[name]) for name, value in ours.items()]


def _column(side: ComparedDataset) -> dict[str, str]:
    """Return a dataset's values by label."""
    column = {
        "Images": count(side.images),
        "Masks": count(side.masks),
        "Masks per image, mean": number(side.masks_per_image.mean),
        "Masks per image, median": number(side.masks_per_image.median),
        "Relative size, mean": number(side.relative_size.mean),
        "Concavity, mean of all masks": number(side.concavity.mean),
    }
    for masks in side.concavity.by_size:
        column[f"Concavity, mean of {masks.size} masks"] = number(masks.mean)
    column["Concavity, mean at the same sizes"] = number(side.concavity_at_same_sizes.mean)
    return column


def comparison_values(beside: DatasetComparison) -> dict[str, object]:
    """Return a comparison's values for the page's template, by their names in the template."""
    return {
        "other_name": other_name(beside),
        "beside_rows": comparison_rows(beside),
        "beside_charts": comparison_charts(beside),
    }


def comparison_line(beside: DatasetComparison) -> str:
    """Summarize the comparison in one line."""
    texts = []
    for name, side in ((THIS, beside.ours), (other_name(beside), beside.theirs)):
        mean, concavity = number(side.masks_per_image.mean), number(side.concavity_at_same_sizes.mean)
        texts.append(f"{name}: {mean} masks per image, concavity at the same sizes {concavity}")
    return "; ".join(texts)


def _masks_per_image(ours: ComparedDataset, theirs: ComparedDataset, name: str) -> Bars | None:
    if not ours.images or not theirs.images:
        return None
    shares = [shares_of([bin.images for bin in side.masks_per_image.bins]) for side in (ours, theirs)]
    rows = []
    for bin, mine, other in zip(ours.masks_per_image.bins, *shares, strict=True):
        label = bin.label.replace("<=", "≤ ").replace(">", "> ")
        rows.append(Bar(label, mine, f"{count(bin.images)} ({share(mine)})", other))
    return Bars("Masks", "Images", tuple(rows), has_paper=True, paper=name)


def _two_lines(ours: Histogram, theirs: Histogram, name: str) -> StepHistogram | None:
    if not sum(ours.counts or ()) or not sum(theirs.counts or ()):
        return None
    return StepHistogram(
        "Relative size",
        "√(mask's area / image's area)",
        "share of masks",
        ours.edges,
        shares_of(ours.counts or ()),
        ours.mean,
        other=shares_of(theirs.counts or ()),
        other_name=name,
    )
