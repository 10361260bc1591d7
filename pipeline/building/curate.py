"""Curation of a catalog before a build: marks duplicates, unfit images, and opted-out images as rejected.

catalog -> inspect each image (parts) -> decide on all rows -> the same catalog, with the rejections
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.exceptions

from segmint.catalogs.parquet import ROW_GROUP_ROWS, SOURCE, RowGroupWriter
from segmint.catalogs.source.conform import shown
from segmint.catalogs.source.files import NormalizedRows, catalog_sha256, require_catalog, unchanged
from segmint.catalogs.source.normalize import MOST_WAITING, NormalizedCatalog, normalize, open_database
from segmint.catalogs.source.sampling import WholeCatalog
from segmint.infra.errors import SegmintError, UnfinishedError, UsageError, last_line
from segmint.infra.log import get_logger
from segmint.infra.progress import Progress
from segmint.infra.ray_session import Cluster, ray_session
from segmint.infra.scratch import ScratchFolder
from segmint.infra.stopping import check_stopping
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location, put_new_file, refuse_existing
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import (
    ALONE,
    LOCAL,
    absolute,
    absolute_catalog,
    catalog_folder,
    is_below,
    is_catalog_folder,
    local_path,
    only_path,
    scheme,
)
from segmint.infra.wording import counted, not_checked_lines, size
from segmint.operators.annotations.image import BoxFile, label_text
from segmint.operators.curate import (
    PART_ROWS,
    SKIPPED,
    CurateConfig,
    CurateTask,
    InspectImages,
    InspectionConfig,
    load_scorers,
    part_name,
)
from segmint.pipeline.building.decide import CurationDecision, ImageFeatures, decide, read_features
from segmint.pipeline.building.execution.accounting import resumable
from segmint.pipeline.building.execution.actors import map_tables
from segmint.pipeline.config.config import Config, ResourcesConfig


def check_output(source: Location, target: Location) -> None:
    """Raise `UsageError` if the catalog `source` doesn't exist, or if `target` can't be a catalog made from it."""
    if not target.uri.lower().endswith(".parquet"):
        raise UsageError(f"{target}: the new catalog is a Parquet file; expected a name that ends in .parquet")
    if target.uri == source.uri:
        raise UsageError(f"{target} is the source catalog: choose another file with -o")
    require_catalog(source)
    if is_catalog_folder(source.uri) and is_below(target.uri, source.uri):
        raise UsageError(f"{target} would become a part of the catalog {source}: choose a file outside its folder")


def check_rows(source: Location, target: Location, normalized: NormalizedCatalog) -> None:
    """Raise `UsageError` if the catalog has no rows, or if a URI would resolve to another file at the target."""
    if normalized.rows == 0:
        raise UsageError(f"the catalog {source} has no rows")
    if catalog_folder(source.uri) == catalog_folder(target.uri):
        return
    with pq.ParquetFile(normalized.path) as file:
        for batch in file.iter_batches(columns=["ordinal", "uri"]):
            uris = batch.column("uri")
            moved = pc.invert(pc.match_substring_regex(uris, ALONE))
            if scheme(target.uri) != LOCAL:
                moved = pc.or_(moved, pc.match_substring_regex(uris, "^(/|file://)"))
            first = pc.index(moved, True).as_py()
            if first >= 0:
                row, uri = batch.column("ordinal")[first].as_py() + 1, shown(uris[first].as_py())
                raise UsageError(
                    f"{source}, row {row}, column uri: found {uri}, which would be another file in {target}; write "
                    "the new catalog to the folder of the source catalog's file, or use absolute URIs"
                )


FEATURES_VERSION = 4
"""Version of the inspection's results. A run doesn't reuse parts of a different version."""

_LIBRARIES = (
    "numpy", "opencv-python-headless", "pillow", "simplejpeg", "scipy", "c2pa-python", "pyarrow",
)  # fmt: skip
_KEY = b"segmint.curate"

WINDOW_PARTS = 512
"""Number of parts per Ray Data execution. The driver keeps the rows of all these parts in memory."""

MOST_STALLED_ROUNDS = 3
"""A run ends unfinished after this many consecutive rounds without a new part."""

STAGES = {"InspectImages": "look"}
"""Name of the stage in the progress bar, keyed by a part of its operator's name in Ray Data."""


@dataclass
class InspectionRun:
    """Parts and bytes that a run has read, and the failures so far."""

    parts: int = 0
    bytes: int = 0
    seconds: float = 0.0
    faults: dict[int, str] = field(default_factory=dict)  # error by the part's first ordinal
    suspects: set[int] = field(default_factory=set)  # parts that only this run uses; the next run retries them
    died: set[int] = field(default_factory=set)  # parts that are missing because the child process died on an image

    def missing(self, folder: Location, rows: int) -> list[int]:
        """Return the first ordinal of each part that is missing from the folder."""
        there = {entry.name for entry in folder.list()} | {part_name(first) for first in self.suspects}
        return [first for first in range(0, rows, PART_ROWS) if part_name(first) not in there]


def inspect_images(
    task: CurateTask, catalog: Location, rows: int, resources: ResourcesConfig, retry_wait_s: float
) -> InspectionRun:
    """Inspect the images in the missing parts of the normalized catalog, and return the run's record.

    `catalog` is a local file. Failures are retried, including images that a child process died on. If a child process
    dies on the same image again, the image gets no features. Raises `UnfinishedError` if parts are still missing at the
    end because a store or Ray fails.
    """
    looked = InspectionRun()
    missing = looked.missing(task.folder, rows)
    if not missing:
        return looked
    started, stalled = time.monotonic(), 0
    get_logger("curate").info("looking at images", rows=rows, parts=len(missing))
    with (
        ray_session(resources.address, object_store_memory=resources.object_store_memory) as cluster,
        NormalizedRows(catalog) as source,
        Progress() as progress,
    ):
        while missing and stalled < MOST_STALLED_ROUNDS:
            looked.faults.clear()
            before = len(missing)
            for start in range(0, before, WINDOW_PARTS):
                window = missing[start : start + WINDOW_PARTS]
                try:
                    inspect_window(task, source, window, cluster, progress, looked)
                except ray.exceptions.RayError as error:
                    check_stopping()  # an interrupt may have caused the error
                    looked.faults[window[0]] = f"Ray failed: {last_line(error)}"
            task = replace(task, again=frozenset(looked.died))
            missing = looked.missing(task.folder, rows)
            stalled = 0 if len(missing) < before else stalled + 1
            if missing and stalled < MOST_STALLED_ROUNDS:
                time.sleep(retry_wait_s * 2**stalled)
    looked.seconds = time.monotonic() - started
    if missing:
        why = [looked.faults[first] for first in missing if first in looked.faults][:5]
        why = why or [f"workers wrote them, but they are not in {task.folder}: all nodes must share this folder"]
        raise UnfinishedError(
            f"{len(missing)} parts of {PART_ROWS} rows could not be inspected. Nothing is lost; run the same command "
            "again to resume:" + "".join(f"\n  {each}" for each in why)
        )
    return looked


def inspect_window(
    task: CurateTask,
    source: NormalizedRows,
    window: Sequence[int],
    cluster: Cluster,
    progress: Progress,
    looked: InspectionRun,
) -> None:
    """Inspect the parts that begin with these ordinals, and add the results to `looked`."""
    tables = list(part_tables(source, window))
    for done in map_tables(InspectImages, (task,), tables, cluster.most_workers, progress, STAGES):
        for each in done.to_pylist():
            if each["fault"] is not None:
                looked.faults[each["first"]] = each["fault"]
                if each["suspect"]:
                    looked.died.add(each["first"])
                continue
            looked.parts += 1
            looked.bytes += each["bytes"]
            if each["suspect"]:
                looked.suspects.add(each["first"])


def part_tables(source: NormalizedRows, window: Sequence[int]) -> Iterator[object]:
    """Yield the rows of each part in the window.

    In a large catalog, the window's parts may be far apart. Therefore, only their own rows are kept in memory, and each
    row group is read once.
    """
    rows = source.take(np.concatenate([np.arange(first, first + PART_ROWS) for first in window]))
    for place in range(len(window)):
        yield rows.slice(place * PART_ROWS, PART_ROWS).combine_chunks()


@dataclass(frozen=True)
class CurationResult:
    """Result of a curation: the rejections, and the files that it wrote."""

    catalog: str
    output: str
    rows: int
    refused: Mapping[str, int] = field(default_factory=dict)  # by reason
    attributions: int = 0  # kept rows that also credit the authors of their duplicates
    unread: Mapping[str, int] = field(default_factory=dict)  # rows without features, by reason
    read_bytes: int = 0  # by this run
    seconds: float = 0.0  # spent inspecting images
    drawn: str | None = None  # file of distributions, if the run drew nothing else
    written: bool = True  # true if this run wrote the output

    def lines(self) -> list[str]:
        if self.drawn is not None:
            return [f"{self.drawn}: distributions of {counted(self.rows, 'row')}", *self._unread_lines()]
        if not self.written:
            return [f"nothing to do: {self.output} is this catalog, curated with the same configuration"]
        refused = sum(self.refused.values())
        lines = [
            f"{self.output}: {counted(self.rows, 'row')}, {refused:,} of them newly rejected",
            *(f"  {reason:<24} {count:>8,}" for reason, count in self.refused.items()),
        ]
        if self.attributions:
            lines.append(f"added the attributions of duplicates to {counted(self.attributions, 'kept row')}")
        lines += self._unread_lines()
        if self.seconds:
            lines.append(f"read {size(self.read_bytes)} in {self.seconds:,.1f} s")
        return lines

    def _unread_lines(self) -> list[str]:
        verdicts = {why: count for why, count in self.unread.items() if why != SKIPPED}
        rows = counted(sum(verdicts.values()), "row")
        lines = [f"{rows} could not be read or decoded; a build will decide on those that are kept:"]
        lines += [f"  {why:<24} {count:>8,}" for why, count in sorted(verdicts.items())]
        return lines if verdicts else []


@resumable()
def run_curate(config: Config, catalog: str, output: str, *, distributions: str | None = None) -> CurationResult:
    """Write the catalog with the rejections of `config.curate` to `output`, and return the result.

    If a run is killed, the next run only inspects the remaining images and produces the same bytes. With
    `distributions`, the run inspects the images and only plots the distributions of their measures to that file. A
    later run that writes the output then reads no image again.

    Raises `UsageError` before any work starts if the catalog, the output, or a scorer is invalid, and `UnfinishedError`
    if some images can't be read at the moment.
    """
    curate = config.curate
    catalog, output = absolute_catalog(catalog), absolute(output)
    storage = Storage(config.storage)
    source, target = Location(storage, catalog), Location(storage, output)
    check_output(source, target)
    whole_catalog = WholeCatalog(source)  # also validates the columns
    load_scorers(curate.scorers, storage, config.assets)  # only to validate the scorers
    with ScratchFolder() as name:
        local = Path(name)
        source_sha256 = catalog_sha256(source)
        normalized = normalize(source, local / "catalog.parquet")
        check_rows(source, target, normalized)
        look = InspectionConfig(config.ingest, curate.duplicates.mirror, curate.opt_outs, curate.scorers)
        seen = _digest(_inspection_identity(normalized, look))
        whole = _digest([seen, source_sha256, _decision_identity(config, curate)])  # the output has all columns
        work = Location(Storage(config.storage, outage_s=config.outage_timeout_s), f"{output}.curate")
        if distributions is None and _is_written(target, whole):
            _remove(work)
            return CurationResult(catalog, output, normalized.rows, written=False)
        folder = work / seen[:12]
        policy_date = _pinned_date(folder, config.license.policy_date)
        task = CurateTask(look, work.storage, catalog, folder, config.assets)
        rows_file = Location(Storage(), str(normalized.path))
        looked = inspect_images(task, rows_file, normalized.rows, config.resources, config.retry_wait_s)
        try:
            features = read_features(folder, normalized.rows, curate)
            if distributions is not None:
                return _drawn(Location(storage, absolute(distributions)), folder, features, curate, source, looked)
            with NormalizedRows(rows_file) as rows:
                decision = decide(rows, normalized.path, folder, features, curate, config.license.policy(policy_date))
        except NotFoundError as error:  # another run with the same output has finished and removed all parts
            if distributions is None and _is_written(target, whole):
                return CurationResult(catalog, output, normalized.rows, written=False)
            raise UnfinishedError(
                f"{work} was removed by another run, which wrote {target}: run one at a time"
            ) from error
        result = local / "curated.parquet"
        write_curated(whole_catalog, result, decision, whole)
        if catalog_sha256(source) != source_sha256:
            raise UsageError(f"{source} was changed while its images were inspected: run the same command again")
        if not target.put_file_if_absent(result):
            raise UsageError(_taken(target))
    _remove(work)
    return CurationResult(
        catalog,
        output,
        normalized.rows,
        decision.counts,
        len(decision.attributions),
        dict(features.unread),
        looked.bytes,
        looked.seconds,
    )


def _drawn(
    file: Location,
    folder: Location,
    features: ImageFeatures,
    curate: CurateConfig,
    source: Location,
    looked: InspectionRun,
) -> CurationResult:
    from segmint.pipeline.building.decide import draw

    file.put(draw(features, folder, curate.limits(), file.name))
    return CurationResult(
        catalog=source.uri,
        output="",
        rows=len(features.pixels),
        unread=dict(features.unread),
        read_bytes=looked.bytes,
        seconds=looked.seconds,
        drawn=file.uri,
        written=False,
    )


def _inspection_identity(normalized: NormalizedCatalog, look: InspectionConfig) -> Any:
    return {
        "version": FEATURES_VERSION,
        "catalog": normalized.sha256,
        "ingest": look.ingest.model_dump(mode="json", exclude={"timeout_s"}) | {"formats": list(look.ingest.decoded)},
        "mirror": look.mirror,
        "opt_outs": look.opt_outs,
        "scorers": [[scorer.name, scorer.sha256] for scorer in look.scorers],
        "libraries": {name: version(name) for name in (*_LIBRARIES, *(["torch"] if look.scorers else []))},
    }


def _decision_identity(config: Config, curate: CurateConfig) -> Any:
    return {
        "curate": curate.model_dump(mode="json", exclude={"scorers": {"__all__": {"file"}}}),
        "license": config.license.model_dump(mode="json"),
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _is_written(target: Location, digest: str) -> bool:
    """Return whether this run's output already exists. Raises `UsageError` if the target contains another output."""
    if not target.exists():
        return False
    with suppress(pa.ArrowException), target.open() as stream:
        if (pq.read_schema(stream).metadata or {}).get(_KEY) == digest.encode():
            return True
    raise UsageError(_taken(target))


def _taken(target: Location) -> str:
    return (
        f"{target} already exists, and this catalog and configuration produce different content: choose another file "
        "with -o, or delete it"
    )


def _pinned_date(folder: Location, given: date | None) -> date:
    """Return the date that licenses must be valid on: `given`, or the date of the run's first start."""
    if given is not None:
        return given
    begun = folder / "begun.json"
    if not begun.exists():
        begun.put_if_absent(json.dumps({"policy_date": datetime.now(UTC).date().isoformat()}).encode())
    return date.fromisoformat(json.loads(begun.read())["policy_date"])


def write_curated(catalog: WholeCatalog, destination: Path, decision: CurationDecision, digest: str) -> None:
    """Write the whole catalog with the rejections. Raises `UsageError` for columns that would exhaust the memory."""
    added = ["refused_reason", "refused_detail", *(["attribution"] if decision.attributions else [])]
    fields = {field.name: field for field in [*catalog.schema, *(SOURCE.field(name) for name in added)]}
    names = [*(name for name in SOURCE.names if name in fields), *(name for name in fields if name not in SOURCE.names)]
    schema = pa.schema([fields[name] for name in names], metadata={_KEY: digest.encode()})
    with RowGroupWriter(destination, schema) as writer:
        for batch in catalog.batches():
            arrays = list(_columns(batch, writer.rows, schema, decision))
            writer.add([pa.RecordBatch.from_arrays(arrays, schema=schema)])
            if writer.waiting_bytes > MOST_WAITING:
                raise UsageError(
                    f"{catalog}: {ROW_GROUP_ROWS:,} rows up to row {writer.rows:,} need more memory than "
                    f"{MOST_WAITING:,} bytes: remove large columns from the catalog; no image is read again"
                )


def _columns(batch: pa.RecordBatch, first: int, schema: pa.Schema, decision: CurationDecision) -> Iterator[pa.Array]:
    """Yield the columns of a batch with the decisions applied. `first` is the ordinal of the batch's first row."""
    ordinals = range(first, first + batch.num_rows)
    refused = {o: decision.refused[o] for o in ordinals if o in decision.refused}
    changes: dict[str, dict[int, str]] = {
        "refused_reason": {o: str(reason) for o, (reason, _) in refused.items()},
        "refused_detail": {o: detail for o, (_, detail) in refused.items()},
        "attribution": {o: decision.attributions[o] for o in ordinals if o in decision.attributions},
    }
    for item in schema:
        absent = item.name not in batch.schema.names
        column = pa.nulls(batch.num_rows, item.type) if absent else batch.column(item.name)
        changed = changes.get(item.name)
        if changed:
            column = pa.array(
                [changed.get(o, was) for o, was in zip(ordinals, column.to_pylist(), strict=True)], item.type
            )
        yield column


def _remove(work: Location) -> None:
    """Remove the working folder. Errors are ignored, because leftovers are harmless."""
    if scheme(work.uri) == LOCAL:
        shutil.rmtree(local_path(work.uri), ignore_errors=True)
        return
    with suppress(SegmintError):
        for entry in work.walk(include_temporary=True):
            (work / entry.name).delete()


_TOGETHER = 1024  # rows whose prompts are converted together


@dataclass
class PromptedCatalog:
    """Catalog with prompts, and what was left out."""

    catalog: str
    rows: int = 0
    images: int = 0  # rows with prompts, even if their list is empty
    prompts: int = 0
    crowds: int = 0
    unreadable: Sequence[str] = ()

    def lines(self) -> list[str]:
        lines = [f"{self.catalog}: {counted(self.prompts, 'prompt')} for {self.images:,} of {self.rows:,} rows"]
        if self.crowds:
            lines.append(f"left out: {counted(self.crowds, 'crowd')}")
        return [*lines, *not_checked_lines(self.unreadable)]


def add_prompts(source: Location, target: Location, boxes: BoxFile, *, with_endings: bool) -> PromptedCatalog:
    """Write the catalog `source` with the boxes as prompts to `target`. Other rows get none.

    An image belongs to the row whose URI or image_id ends with its name, or the other way around. Without
    `with_endings`, the URI's and the image_id's file name endings don't count. Raises `UsageError` if the catalog is
    invalid or has prompts, if an image fits no row or several, or if `target` exists or isn't next to `source`.
    """
    check_output(source, target)
    refuse_existing(target)
    whole = WholeCatalog(source)
    if "prompts" in whole.schema.names:
        raise UsageError(f"{source} already has the column prompts: remove it")
    schema = whole.schema.append(SOURCE.field("prompts"))
    result = PromptedCatalog(str(target), crowds=boxes.crowds, unreadable=boxes.unreadable)
    with ScratchFolder() as folder, unchanged(source):
        normalized = normalize(source, Path(folder) / "catalog.parquet")
        check_rows(source, target, normalized)
        homes = _homes(source, normalized.path, boxes.names, with_endings=with_endings)
        path = Path(folder) / "prompted.parquet"
        with RowGroupWriter(path, schema) as writer:
            for batch in whole.batches():
                for start in range(0, batch.num_rows, _TOGETHER):
                    piece = batch.slice(start, _TOGETHER)
                    values: list[Any] = [None] * piece.num_rows
                    for place, ordinal in enumerate(range(writer.rows, writer.rows + piece.num_rows)):
                        if ordinal in homes:
                            values[place] = boxes.read(homes[ordinal])
                    prompts = pa.array(values, SOURCE.field("prompts").type)
                    result.prompts += len(prompts.field("prompts").flatten())
                    writer.add([pa.RecordBatch.from_arrays([*piece.columns, prompts], schema=schema)])
        result.rows, result.images = writer.rows, len(homes)
        put_new_file(target, path)
    return result


# A name fits a row if the row's URI or image_id ends with all parts of the name, or the other way around.
_PAIRS = """
WITH paths AS (SELECT ordinal, unnest([uri, image_id]) AS path FROM rows_of($rows) WHERE duplicate_of IS NULL),
     there AS (SELECT ordinal, '/' || regexp_replace(ltrim(path, './'), $left_out, '') AS path FROM paths),
     asked AS (SELECT place, '/' || ltrim(replace(name, '\\', '/'), './') AS name FROM names),
     pairs AS (SELECT DISTINCT place, ordinal FROM asked JOIN there
               ON regexp_extract(path, '[^/]*$') = regexp_extract(name, '[^/]*$')
               WHERE ends_with(path, name) OR ends_with(name, path))
SELECT place, ordinal FROM asked LEFT JOIN pairs USING (place) ORDER BY ordinal NULLS FIRST, place
"""


def _homes(source: Location, normalized: Path, names: Sequence[str], *, with_endings: bool) -> dict[int, int]:
    """Return the place in `names` of each row's image, by ordinal. Rows that repeat another image_id have none.

    Raises `UsageError` if a name fits no row or several, or if a row fits several names.
    """
    left_out = "$^" if with_endings else "\\.[^./]*$"
    with open_database(normalized.parent) as database:
        storable = [label_text(name) for name in names]
        database.register("names", pa.table({"place": range(len(names)), "name": storable}))
        pairs = database.execute(_PAIRS, {"rows": only_path(normalized), "left_out": left_out}).fetchall()
    homes: dict[int, int] = {}
    known: set[int] = set()
    for place, ordinal in pairs:
        if ordinal is None or ordinal in homes or place in known:
            found = "no row"
            if ordinal is not None:
                found = f"row {ordinal + 1}, and it fits another row, or the row fits another image,"
            expected = "exactly one row whose URI or image_id ends with the name"
            raise UsageError(f"the image {names[place]!r} fits {found} in {source}; expected {expected}")
        homes[ordinal] = place
        known.add(place)
    return homes
