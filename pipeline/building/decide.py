"""Decides which rows of a catalog to reject, and draws a sample that follows given distributions."""

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from segmint.catalogs.findings import Reason
from segmint.catalogs.licenses import LicensePolicy, asks_for_attribution
from segmint.catalogs.source.check import SameFiles
from segmint.catalogs.source.files import NormalizedRows
from segmint.infra.arrays import Bools, Bytes, Floats, Ints
from segmint.infra.errors import UsageError
from segmint.infra.scratch import ScratchFolder
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.wording import number
from segmint.operators.curate import FEATURES, MEASURES, PART_ROWS, CurateConfig, part_name
from segmint.operators.similar.clusters import NONE, ImageRows, find_copies, first_of_equal_bytes
from segmint.operators.similar.near import VIEWS, mapped_zeros

Limit = tuple[float | None, float | None]
"""Minimum and maximum allowed value, or None for no limit."""

Limits = Mapping[str, Limit]

CATALOG_OPT_OUT = "the catalog says that the rights holder has opted this image out"
"""Detail of a row whose `opt_out` is true."""

MOST_CREDITED = 8192
"""Maximum number of characters of duplicates' attributions to append to the kept row's attribution. Attributions beyond
the limit are only counted."""

_THREADS = 8
_TERMS = ("license", "redistributable", "valid_until")


@dataclass(frozen=True)
class ImageFeatures:
    """Features of a catalog's N images, indexed by row."""

    sources: NDArray[np.uint64]  # (N, 2), the first 16 bytes of the SHA-256; 0 where unread
    hashes: NDArray[np.uint64]  # (N, VIEWS)
    pixels: Ints  # of the source
    values: Mapping[str, Floats]  # measures and scores by name; NaN if absent
    opt_outs: Mapping[int, str]  # opt-outs in images' metadata, by ordinal
    unread: Mapping[str, int]  # number of rows without features, by reason


@dataclass(frozen=True)
class CurationDecision:
    """Rejected rows by ordinal, and the extended attributions of rows that are kept in place of their duplicates."""

    refused: Mapping[int, tuple[Reason, str]]
    attributions: Mapping[int, str]

    @property
    def counts(self) -> dict[str, int]:
        """Number of rejected rows by reason."""
        return dict(sorted(Counter(str(reason) for reason, _ in self.refused.values()).items()))


def read_features(folder: Location, rows: int, config: CurateConfig) -> ImageFeatures:
    """Read the features of all rows, without thumbnails."""
    names = [*MEASURES, *(scorer.name for scorer in config.scorers)]
    opt_outs: dict[int, str] = {}
    unread: Counter[str] = Counter()
    found = ImageFeatures(
        mapped_zeros((rows, 2), np.uint64),
        mapped_zeros((rows, VIEWS), np.uint64),
        mapped_zeros(rows, np.int64),
        {name: mapped_zeros(rows, np.float64) for name in names},
        opt_outs,
        unread,
    )
    for values in found.values.values():
        values[:] = np.nan
    columns = [name for name in FEATURES.names if name != "thumbnail"]
    for first, table in _parts(folder, range(0, rows, PART_ROWS), columns):
        part = slice(first, first + table.num_rows)
        seen = pc.is_null(table["unread"]).to_numpy(zero_copy_only=False)
        unread.update(table["unread"].drop_null().to_pylist())
        there = np.arange(first, first + table.num_rows)[seen]
        digests = b"".join(table["sha256"].drop_null().to_pylist())
        found.sources[there] = np.frombuffer(digests, ">u8").reshape(-1, 4)[:, :2]
        found.hashes[there] = _lists(table, "hashes").reshape(len(there), VIEWS)
        width, height = (table[name].cast(pa.int64()).fill_null(0).to_numpy() for name in ("width", "height"))
        found.pixels[part] = width * height
        for name in MEASURES:
            found.values[name][part] = table[name].to_numpy()
        scores = _lists(table, "scores").reshape(len(there), len(config.scorers))
        for place, scorer in enumerate(config.scorers):
            found.values[scorer.name][there] = scores[:, place]
        sentences = zip(table["ordinal"].to_pylist(), table["opt_out"].to_pylist(), strict=True)
        opt_outs.update((ordinal, sentence) for ordinal, sentence in sentences if sentence is not None)
    return found


def decide(
    catalog: NormalizedRows,
    normalized: Path,
    folder: Location,
    features: ImageFeatures,
    config: CurateConfig,
    policy: LicensePolicy,
) -> CurationDecision:
    """Decide which rows to reject, in this order: opted out, unfit, duplicate of a kept row.

    Among duplicates, `decide` keeps one image that is fit and has an allowed license: the image with the most pixels,
    or the first of several with equally many. If no image of a group qualifies, no row is marked as a duplicate,
    because a build rejects all of them anyway. Rows that the catalog already rejects don't change. However, if the
    catalog rejects a row as opted out, its duplicates are rejected as well.

    An opt-out applies to all rows with the same bytes, URI, or image_id. Unread rows are compared by the SHA-256 in the
    catalog. `normalized` is the local catalog file, and `folder` contains the parts.
    """
    rows = catalog.ordinals[1]
    out = dict(features.opt_outs)
    opted_out, allowed = np.zeros(rows, bool), np.zeros(rows, bool)
    settled: set[int] = set()
    sources, first_ids = _where(np.ones(rows, bool), features.sources), np.arange(rows)
    is_allowed = cache(lambda *terms: policy.judge(*terms) is None)
    for batch in catalog.batches([name for name in _WANTED if name in catalog.names], 65_536):
        ordinals = batch.column("ordinal").to_numpy()
        terms = zip(*(batch.column(name).to_pylist() for name in _TERMS), strict=True)
        allowed[ordinals] = [is_allowed(*each) for each in terms]
        first_ids[ordinals] = batch.column("duplicate_of").fill_null(batch.column("ordinal")).to_numpy()
        unread = np.flatnonzero(~sources[ordinals].any(axis=1))
        digests = batch.column("sha256").take(pa.array(unread)).to_pylist()
        for ordinal, digest in zip(ordinals[unread].tolist(), digests, strict=True):
            if digest is not None:
                sources[ordinal] = int(digest[:16], 16), int(digest[16:32], 16)
        if config.opt_outs and "opt_out" in batch.schema.names:
            says_so = batch.column("opt_out").fill_null(False).to_numpy(zero_copy_only=False)
            out |= dict.fromkeys(ordinals[says_so].tolist(), CATALOG_OPT_OUT)
        if "refused_reason" in batch.schema.names:
            reasons = batch.column("refused_reason").to_pylist()
            settled |= {int(o) for o, reason in zip(ordinals, reasons, strict=True) if reason is not None}
            opted_out[[o for o, r in zip(ordinals, reasons, strict=True) if r == Reason.OPTED_OUT]] = True
    opted_out[list(out)] = True
    inert = first_ids != np.arange(rows)  # rows that are never kept: already rejected, or with a repeated image_id
    inert[list(settled)] = True
    same: dict[str, Ints] = {}
    if opted_out.any():
        equal_bytes = first_of_equal_bytes(sources, np.arange(rows))
        same = {"bytes": equal_bytes, "uri": same_uris(normalized, rows), "image_id": first_ids}
        out |= spread(opted_out, same)
    unfit = dict(_unfit(features.values, config.limits()))
    allowed[list(unfit)] = False
    refused = {ordinal: (Reason.UNFIT, detail) for ordinal, detail in unfit.items()}
    refused |= {ordinal: (Reason.OPTED_OUT, detail) for ordinal, detail in out.items()}
    attributions: dict[int, str] = {}
    if config.duplicates.enabled or opted_out.any():
        distance = config.duplicates.distance
        used = opted_out | ~inert
        hashes = _where(used, features.hashes)
        images = ImageRows(_where(used, features.sources), hashes, features.pixels, allowed, opted_out)
        found = find_copies(images, lambda ordinals: read_thumbnails(folder, ordinals), distance)
        copies: dict[int, list[int]] = {}
        alike: dict[int, str] = {}
        for ordinal in np.flatnonzero(found.kept != NONE).tolist():
            kept = int(found.kept[ordinal])
            how = "has the bytes of" if found.exact[ordinal] else "looks like"
            if opted_out[kept]:
                if not opted_out[ordinal]:
                    alike[ordinal] = f"it {how} row {kept + 1}, which is opted out"
            elif config.duplicates.enabled and ordinal not in refused and allowed[kept]:
                refused[ordinal] = (Reason.DUPLICATE_IMAGE, f"it {how} row {kept + 1}, which is kept")
                copies.setdefault(kept, []).append(ordinal)
        opted_out[list(alike)] = True
        alike |= spread(opted_out, same)
        refused |= {ordinal: (Reason.OPTED_OUT, detail) for ordinal, detail in alike.items()}
        attributions = new_attributions(catalog, {kept: rows for kept, rows in copies.items() if kept not in settled})
    return CurationDecision({o: verdict for o, verdict in sorted(refused.items()) if o not in settled}, attributions)


_WANTED = ("ordinal", *_TERMS, "sha256", "duplicate_of", "opt_out", "refused_reason")


def _where(used: Bools, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Copy (N, n) values to a temporary file. Rows that aren't `used`, shape (N,), are set to zero."""
    found = mapped_zeros(values.shape, values.dtype)
    for low in range(0, len(used), _ROWS):
        found[low : low + _ROWS] = values[low : low + _ROWS] * used[low : low + _ROWS, None]
    return found


def _unfit(values: Mapping[str, Floats], limits: Limits) -> Iterator[tuple[int, str]]:
    """Yield each row that violates a limit, with a description of the first violation."""
    seen: set[int] = set()
    for name, (least, most) in limits.items():
        for limit, sign, words in ((least, 1, "under the least"), (most, -1, "over the most")):
            if limit is None:
                continue
            for ordinal in np.flatnonzero(sign * values[name] < sign * limit).tolist():
                if ordinal not in seen:
                    seen.add(ordinal)
                    yield ordinal, f"{name} {number(float(values[name][ordinal]))} is {words} of {number(limit)}"


def new_attributions(catalog: NormalizedRows, copies: Mapping[int, Sequence[int]]) -> dict[int, str]:
    """Return new attributions for kept rows that must credit the authors of their duplicates."""
    wanted = sorted({*copies, *(row for rows in copies.values() for row in rows)})
    rows = catalog.take(wanted, ["license", "attribution"])
    asks = {license: asks_for_attribution(license) for license in rows["license"].unique().to_pylist()}
    columns = (rows[name].to_pylist() for name in ("license", "attribution"))
    credited = dict(zip(wanted, zip(*columns, strict=True), strict=True))
    found: dict[int, str] = {}
    for kept, others in copies.items():
        own = credited[kept][1]
        credits = [text for license, text in (credited[other] for other in others) if asks[license]]
        joined = _joined(own, list(dict.fromkeys(text for text in credits if text and text != own)), kept)
        if joined and joined != own:
            found[kept] = joined
    return found


def _joined(own: str | None, others: Sequence[str], kept: int) -> str:
    """Join credits up to the size limit. If some don't fit, add a note that says where the catalog lists them."""
    lengths = np.cumsum([len(text) for text in others])
    number = int(np.searchsorted(lengths, MOST_CREDITED, "right"))
    credits = [own] if own else []
    credits += others[:number]
    if number < len(others):
        left = f"{len(others) - number:,} more"
        credits.append(f"and {left}, in the catalog's rows that are refused as copies of row {kept + 1}")
    return "; ".join(credits)


def read_thumbnails(folder: Location, ordinals: Ints) -> Bytes:
    """Return the thumbnails of the rows `ordinals`, (n, 64, 64) gray. `ordinals` must be ascending and unique."""
    found = np.zeros((len(ordinals), 64, 64), np.uint8)
    wanted = np.unique(ordinals // PART_ROWS * PART_ROWS).tolist()
    for first, table in _parts(folder, wanted, ["thumbnail"]):
        start, stop = np.searchsorted(ordinals, [first, first + PART_ROWS])
        inside = table["thumbnail"].combine_chunks().take(pa.array(ordinals[start:stop] - first))
        for place, data in enumerate(inside.to_pylist(), int(start)):
            if data is not None:
                found[place] = np.frombuffer(data, np.uint8).reshape(64, 64)
    return found


def _parts(folder: Location, firsts: Iterable[int], columns: list[str]) -> Iterator[tuple[int, pa.Table]]:
    def read(first: int) -> tuple[int, pa.Table]:
        try:
            stream = (folder / part_name(first)).open()
        except NotFoundError:
            stream = (folder / part_name(first, suspect=True)).open()
        with stream:
            return first, pq.read_table(stream, columns=columns)

    yield from map_ahead(read, firsts, _THREADS, 2 * _THREADS, "features")


def _lists(table: pa.Table, name: str) -> NDArray[Any]:
    """Concatenate the lists in a column."""
    values: NDArray[Any] = table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values


Firsts = Ints
"""Array (N,) that maps each row to the first row with the same image, which may be the row itself."""

_ROWS = 65_536  # rows to search at once


def same_uris(normalized: Path, rows: int) -> Firsts:
    """Map each row of a normalized catalog to the first row with the same URI."""
    first = np.arange(rows)
    with ScratchFolder() as name, SameFiles(normalized, Path(name)) as same:
        for start in range(0, rows, _ROWS):
            for ordinal, numbers in same.between(start, start + _ROWS).items():
                for number in numbers:
                    if number < 0:  # a URI
                        first[ordinal] = -number - 1
    return first


def spread(opted_out: Bools, same: Mapping[str, Firsts]) -> dict[int, str]:
    """Mark all rows that share an image with an opted-out row, in place. Return the reason for each newly marked row.

    `opted_out` has the shape (N,). `same` maps the name of a property, as it appears in the reasons, to the property's
    `Firsts`. Marks are transitive.
    """
    rows = len(opted_out)
    found: dict[int, str] = {}
    while True:
        before = len(found)
        for shared, first in same.items():
            there = np.flatnonzero(opted_out)
            lowest = np.full(rows, rows)
            np.minimum.at(lowest, first[there], there)
            of = lowest[first]
            new = np.flatnonzero((of < rows) & ~opted_out)
            opted_out[new] = True
            found |= {int(row): f"it has the {shared} of row {of[row] + 1}, which is opted out" for row in new}
        if len(found) == before:
            return found


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


def _draw_histogram(axes: Any, key: str, values: Floats, limits: tuple[float | None, float | None]) -> None:
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


def _draw_examples(axes: Any, values: Floats, folder: Location) -> None:
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


def _at_percentiles(values: Floats) -> list[tuple[float, int]]:
    """Return each percentile with the row that has this percentile's value. Skip rows without a value."""
    rows = np.flatnonzero(np.isfinite(values))
    order = rows[np.argsort(values[rows], kind="stable")]
    return [(percentile, int(order[round((len(order) - 1) * percentile / 100)])) for percentile in PERCENTILES]
