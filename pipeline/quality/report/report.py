"""Writer of `segmint report`: a page, plots, numbers, a dataset card, a disclosure, and a Croissant file."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.manifest import is_dataset, require_published
from segmint.catalogs.dataset.outputs import note_output, refuse_inside
from segmint.catalogs.dataset.tables import DatasetTables
from segmint.catalogs.dataset.versions import VersionName
from segmint.catalogs.layout import MANIFEST, REPORT, bytes_sha256
from segmint.catalogs.parquet import table_bytes
from segmint.infra.errors import UnfinishedError, UsageError
from segmint.infra.progress import track
from segmint.infra.storage.location import Location, refuse_existing
from segmint.infra.uris import LOCAL, absolute, join, local_path, scheme
from segmint.infra.wording import counted, some
from segmint.pipeline.quality.audit.audit import AuditOptions, audit_dataset, open_foreign_audit
from segmint.pipeline.quality.audit.result import AuditReport, read_audit, verdict
from segmint.pipeline.quality.audit.versions import check_same_version
from segmint.pipeline.quality.report.comparison import choose_images, comparison_line, draw_pictures, measure_comparison
from segmint.pipeline.quality.report.croissant import croissant_json, disclosure_markdown
from segmint.pipeline.quality.report.facts import Facts, gather_facts
from segmint.pipeline.quality.report.page import ReportImages, card_markdown, images_of, render_page
from segmint.pipeline.quality.report.plots import charts_of, draw_figures
from segmint.pipeline.quality.statistics.comparison import DatasetComparison
from segmint.pipeline.quality.statistics.masks import open_tables
from segmint.pipeline.quality.statistics.ratings import check_sampled, read_score
from segmint.pipeline.quality.statistics.statistics import compute_statistics
from segmint.pipeline.quality.statistics.values import Histogram, Statistics, json_file, json_value

REUSED = "The findings are from an earlier audit. The files weren't checked again."

SAMPLES = 12
"""Number of images in a report's sample."""

FLAGGED = 12
"""Maximum number of images that a report shows because of findings or as outliers."""

NUMBERS = pa.schema(
    [
        pa.field("area", pa.string(), nullable=False),  # key in the statistics, or `dataset` for plain counts
        pa.field("statistic", pa.string(), nullable=False),  # keys below the area, joined by dots
        pa.field("bin", pa.string()),  # bin, step, country, or shard; null for the whole dataset
        pa.field("value", pa.float64(), nullable=False),
    ]
)
"""Schema of `statistics.parquet`. Unknown numbers have no rows."""

_NAMES = ("label", "size", "step", "country", "name", "license", "provider", "shard", "id")

_Number = tuple[str, str | None, float]  # statistic, bin, value


@dataclass(frozen=True)
class Report:
    """Result of writing a report."""

    dataset: str
    output: str
    files: tuple[str, ...]  # relative to `output`
    images: int
    masks: int
    pictures: int
    findings_total: int
    verdict: str  # verdict of the audit
    version: VersionName | None  # None: data that segmint did not write
    note: str | None = None
    beside: DatasetComparison | None = None  # the comparison with another dataset
    not_checked: tuple[str, ...] = ()  # shards that aren't included in the numbers

    def to_dict(self) -> dict[str, Any]:
        value: dict[str, Any] = json_value(self)
        return value

    def lines(self) -> list[str]:
        lines = []
        if self.note is not None:
            lines.append(f"note: {self.note}")
        lines += [
            f"{counted(self.images, 'image')}, {counted(self.masks, 'mask')}, "
            f"{self.verdict}; pictures of {counted(self.pictures, 'image')}",
            f"written: {len(self.files)} files to {self.output}; open {join(self.output, 'index.html')}",
        ]
        if self.beside is not None:
            lines.append(comparison_line(self.beside))
        for each in self.not_checked:
            lines.append(f"not checked: {each}")
        if self.version is not None:
            lines.append(self.version.line())
        return lines


def write_report(
    dataset: Location,
    output: Location | None = None,
    audited: Location | None = None,
    options: AuditOptions = AuditOptions(),  # noqa: B008 (a frozen value)
    study: Location | None = None,
    other: Location | None = None,
) -> Report:
    """Audit a dataset, or read an existing audit from the file `audited`, and write a report.

    `study` is a file with the score of the dataset's privacy study, which the report shows. `other` is another dataset
    or an SA-1B-style folder, whose masks the report compares with the dataset's masks. The report is written to the
    folder or prefix `output`, by default `report/` in the dataset. The same dataset and audit always result in the same
    report.

    Raises `UsageError` if there is no dataset, if the dataset isn't for publication, or if the audit or the study is of
    a different dataset. It's also raised if `output` is missing for foreign data, is elsewhere in the dataset, or
    contains an `index.html` or `README.md` that isn't from a report. Raises `DamagedDatasetError` if commits or
    tombstones are unreadable. Raises `UnfinishedError`, and leaves no files of this report, if a shard is replaced in
    the meantime, because the report may show an image that was taken down.
    """
    if output is None and not is_dataset(dataset):
        raise UsageError(
            f"{dataset} is not a segmint dataset: no {MANIFEST}. Check the path. For an SA-1B-style folder, pass "
            "the report's folder with -o"
        )
    folder = output or dataset / REPORT
    refuse_inside(dataset, folder, "-o")
    if other is not None:
        refuse_inside(other, folder, "-o")
    if not (folder / "statistics.json").exists():  # not the folder of an earlier report
        for name in ("README.md", "index.html"):
            refuse_existing(folder / name)
    score = note = beside = None
    reused = ""
    commits = CommitLog(dataset).committed() if is_dataset(dataset) else {}
    if study is not None:
        score = check_sampled(read_score(study), str(study), dataset)
    with _audited(dataset, audited, options) as (audit, tables):
        if audited is not None:
            reused = REUSED
            note = check_same_version(audit, str(audited), dataset) or REUSED
        statistics = statistics_of(audit, str(audited or "the audit"), tables, options.sample)
        facts = gather_facts(tables)
        if facts.manifest is not None:  # the card and the Croissant file state the photographs' licenses
            require_published(facts.manifest, dataset, "described by a report")
        facts = replace(facts, version=audit.version or facts.version, study=score, reused=reused)
        pictures = pictures_of(tables, facts, audit, statistics)
        if other is not None:
            beside = measure_comparison(tables, statistics, other)
    charts = charts_of(statistics)
    files = {
        **{f"figures/{name}": data for name, data in draw_figures(charts).items()},
        "statistics.json": json_file(statistics.to_dict()),
        "statistics.parquet": table_bytes(numbers_table(statistics), NUMBERS),
        "README.md": card_markdown(audit, statistics, facts, charts).encode(),
        "index.html": render_page(audit, statistics, facts, charts, pictures, beside).encode(),
    }
    if beside is not None:
        files["beside.json"] = json_file(beside.to_dict())
    if facts.ratings is not None:
        files["ratings.json"] = json_file(json_value(facts.ratings))
    if facts.manifest is not None:
        files["disclosure.md"] = disclosure_markdown(audit, statistics, facts).encode()
        root = path_to_dataset(str(folder), str(dataset))
        files["croissant.json"] = croissant_json(facts, root, audit.licenses)
    # A takedown that begins after the last look at the commits finds the note, and deletes the report in the dataset.
    note_output(dataset, "report", folder, {name: bytes_sha256(data) for name, data in files.items()})
    for name, data in files.items():
        (folder / name).put(data)
    if commits and (changed := CommitLog(dataset).replaced_since(commits)):
        for name in files:
            (folder / name).purge()
        raise UnfinishedError(
            f"{dataset} was corrected during the report (shards: {some(changed)}), so images may have "
            "been taken down or redacted. The report was deleted. Run the same command again."
        )
    shown = sum(picture.jpeg is not None for picture in (*pictures.flagged, *pictures.samples))
    return Report(
        dataset=str(dataset),
        output=str(folder),
        files=tuple(files),
        images=facts.images,
        masks=facts.masks,
        pictures=shown,
        findings_total=audit.findings.total,
        verdict=verdict(audit),
        version=facts.version,
        note=note,
        beside=beside,
        not_checked=tuple(f"shard {shard}: its files are damaged" for shard in audit.not_compared),
    )


@contextmanager
def _audited(
    dataset: Location, audited: Location | None, options: AuditOptions
) -> Iterator[tuple[AuditReport, DatasetTables]]:
    """Audit the dataset or read an existing audit, and open the tables of the shards that are intact."""
    if audited is None and not is_dataset(dataset):
        with open_foreign_audit(dataset, options) as found:  # measures foreign data once, for the audit and the report
            yield found
        return
    if audited is None:
        audit = audit_dataset(dataset, options)
    else:
        audit = read_audit(audited)
    with open_tables(dataset, leave_out=frozenset(audit.not_compared)) as tables:
        yield audit, tables


def statistics_of(audit: AuditReport, where: str, tables: DatasetTables, sample: int) -> Statistics:
    """Return the audit's statistics, or compute them if the audit doesn't contain any.

    `where` names the audit in errors. Raises `UsageError` if the audit's numbers of images or masks differ from
    `tables`.
    """
    statistics = audit.statistics
    if statistics is None:
        return compute_statistics(tables, sample)
    if not audit.not_compared:
        for view, audited in (("images", statistics.images), ("masks", statistics.masks)):
            there = int(tables.query(f"SELECT count(*) FROM {view}").column(0)[0].as_py())
            if audited != there:
                raise UsageError(f"{where} counts {audited:,} {view}, {tables.location} {there:,}. Audit it again")
    return statistics


def path_to_dataset(folder: str, dataset_uri: str) -> str:
    """Return the relative path from a report's folder to its dataset, or the dataset's URI if there is no such path."""
    there, here = absolute(dataset_uri), absolute(folder)
    if scheme(there) == scheme(here) == LOCAL:
        return Path(os.path.relpath(local_path(there), local_path(here))).as_posix()
    prefix = f"{there.rstrip('/')}/"
    if here.startswith(prefix):
        return "/".join([".."] * len(here.removeprefix(prefix).strip("/").split("/")))
    return there.rstrip("/")


def pictures_of(tables: DatasetTables, facts: Facts, audit: AuditReport, statistics: Statistics) -> ReportImages:
    """Draw the page's images: findings, outliers, and a sample. Images with remaining detections are never drawn."""
    if not facts.with_images:
        return ReportImages(why="This dataset has only annotations, so there are no images to show.")
    if audit.privacy is not None and audit.privacy.found_total > len(audit.privacy.found):
        return ReportImages(why="The audit doesn't list all remaining detections, so any image may show one.")
    hidden = set[int]()
    if audit.privacy is not None:
        hidden = {region.id for region in audit.privacy.found}
    outliers = [row.id for row in statistics.outliers]
    wanted = dict.fromkeys(id for id in (*images_of(audit.findings), *outliers) if id not in hidden)
    flagged = list(wanted)[:FLAGGED]
    samples = choose_images(tables, SAMPLES, hidden.union(flagged))
    shown = draw_pictures(tables, facts.commits, [*flagged, *samples])
    drawn = {picture.id: picture for picture in track(shown, "pictures", len(flagged) + len(samples))}
    if not drawn:
        return ReportImages(why="There are no images to show.")
    return ReportImages(
        tuple(drawn[id] for id in flagged if id in drawn),
        tuple(drawn[id] for id in samples if id in drawn),
    )


def numbers_table(statistics: Statistics) -> pa.Table:
    """Collect all numbers of the statistics, in order."""
    rows = []
    for field in fields(statistics):
        key, value = field.name, getattr(statistics, field.name)
        area, prefix = key, ""
        if isinstance(value, (int, float)):
            area, prefix = "dataset", key
        for statistic, bin, number in _numbers(prefix, None, value):
            rows.append({"area": area, "statistic": statistic, "bin": bin, "value": number})
    return pa.Table.from_pylist(rows, schema=NUMBERS)


def _numbers(statistic: str, bin: str | None, value: Any) -> Iterator[_Number]:
    if isinstance(value, (int, float)):
        yield statistic or "value", bin, float(value)
    elif isinstance(value, tuple):
        for place, item in enumerate(value):
            yield from _numbers(statistic, _joined(bin, _name(place, item)), item)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _numbers(_below(statistic, key), bin, part)
    elif is_dataclass(value):
        done: tuple[str, ...] = _NAMES
        if isinstance(value, Histogram):
            done = (*_NAMES, "edges", "counts")
            for (low, high), count in zip(pairwise(value.edges), value.counts or (), strict=value.counts is not None):
                yield _below(statistic, "count"), _joined(bin, f"{low:g} to {high:g}"), float(count)
        for field in fields(value):
            if field.name not in done:
                yield from _numbers(_below(statistic, field.name), bin, getattr(value, field.name))


def _name(place: int, item: Any) -> str:
    """Return the name of a tuple's item, or its index if it is unnamed."""
    words = []
    if hasattr(item, "metric"):
        words.append(item.metric)
    for key in _NAMES:
        part = getattr(item, key, None)
        if isinstance(part, str):
            words.append(part)
        elif part is not None:
            words.append(f"{key} {part}")
    return ", ".join(words) or str(place)


def _below(statistic: str, key: str) -> str:
    return f"{statistic}.{key}" if statistic else key


def _joined(bin: str | None, name: str) -> str:
    return name if bin is None else f"{bin}, {name}"
