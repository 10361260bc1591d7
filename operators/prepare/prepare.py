"""Prepare stage: turns a catalog row into a released image without faces or plates, or into a verdict.

Only an actor and its child process ever hold an original's bytes. The bytes never reach Ray's object store, a log, or a
file.
"""

import contextlib
import functools
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa

from segmint.catalogs.dataset.tombstones import DETAIL, NO_NAMES, SAME_SOURCE, RemovedNames, is_taken_down
from segmint.catalogs.findings import Reason, RejectedError
from segmint.catalogs.layout import bytes_sha256
from segmint.catalogs.licenses import LicensePolicy
from segmint.infra.arrays import Pixels
from segmint.infra.device import fix_products, keep_freed_memory
from segmint.infra.stopping import Deadline
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import UriNotAllowedError, relative_to
from segmint.infra.wording import counted
from segmint.operators.child import Children, SuspectError, Worker, forbid_core_dumps
from segmint.operators.images import released_prompts
from segmint.operators.opt_out import DETAIL as LISTED
from segmint.operators.opt_out import NO_LISTS, RefusalLists, refuse_opted_out
from segmint.operators.prepare.deidentify import (
    DeidentifyConfig,
    Entries,
    LeftAlone,
    LeftAloneRegion,
    Region,
    build_detectors,
    deidentify,
    find,
    find_likewise,
    pinned_files,
)
from segmint.operators.prepare.detector_process import (
    WAITS_S,
    DetectorHost,
    DetectorProcess,
    DetectorSettings,
    DetectorsGoneError,
    remote_detectors,
)
from segmint.operators.prepare.detector_socket import DetectorProcessError
from segmint.operators.prepare.ingest import IngestConfig, ingest, pixels_sha256
from segmint.operators.prepare.mosaic import is_same
from segmint.operators.prepare.read_image import ImageReader, checked_digest
from segmint.operators.prepare.release import (
    CropLayers,
    ReleaseConfig,
    ReleasedImage,
    encode_original,
    largest_size,
    release,
    released_size,
    resized,
)
from segmint.operators.prepare.released_search import ROUNDS, ResidualDetection, last_look, unconfirmed_entries
from segmint.operators.redactions import redacted_share
from segmint.operators.rows import PREPARED, PROMPTED, Row, faulted, gather, is_live, rejected, to_rows
from segmint.operators.similar.near import jpeg_hashes

if TYPE_CHECKING:
    from segmint.model.detectors.detection import Detector

_SEARCH_LIMITS = 3
"""Time limit for the first search, and for each round of redaction and last look, in units of `ingest.timeout_s`."""

SEARCH_TRIES = 3
"""Maximum number of attempts for an image whose searches get no reply. If all of them fail, the row is faulted."""


@dataclass(frozen=True)
class PrepareConfig:
    """Everything that determines this stage's result. Each part configures one step."""

    ingest: IngestConfig
    deidentify: DeidentifyConfig
    release: ReleaseConfig
    crops: CropLayers | None  # cut from the original if it is larger than the released image
    detector_sha256: Mapping[str, str] = field(default_factory=dict)  # of detector files, keyed by name in `deidentify`
    respect_opt_out: bool = True
    left_alone: Mapping[str, Entries] = field(default_factory=dict)  # by the SHA-256 of the photograph
    detector_numerics: str = ""  # on a GPU: required value of `detector_numerics`; "": any


@dataclass(frozen=True)
class PrepareResources:
    """Resources of this stage on a machine. They don't affect results, except that an image may run out of memory."""

    children: int = 1  # number of processes that decode; each takes about 0.6 GB before its first image
    read_threads: int = 4  # number of images read ahead; each takes at most ingest.max_bytes
    memory_limit: int | None = 4 * 2**30  # memory limit in bytes for one image in its child
    max_tasks: int = 1000  # number of images after which a child is replaced


@dataclass(frozen=True)
class PreparedImage:
    """One image ready for release, made entirely from de-identified pixels."""

    pixels_sha256: str  # result of `pixels_sha256` for the upright source
    source_width: int  # pixels of the upright source
    source_height: int
    regions: tuple[Region, ...]  # redacted regions, in pixels of the upright source
    residual_detections: tuple[ResidualDetection, ...]  # left by the last look, in pixels of the released image
    unconfirmed_detections: tuple[ResidualDetection, ...]  # not confirmed by a second look, in the same pixels
    left_alone: tuple[LeftAloneRegion, ...]  # detections that a person wanted left alone, in pixels of the source
    redacted_share: float  # see `segmint.operators.redactions.redacted_share`
    width: int  # pixels of the released image
    height: int
    release: bytes  # JPEG
    hashes: list[int]  # perceptual hashes of the released JPEG
    original: bytes | None  # JPEG, or None if crops can be cut from the released image


class RefusedError(RejectedError):
    """Raised for a verdict, together with the stage that issued it."""

    def __init__(self, reason: Reason, detail: str, stage: str) -> None:
        super().__init__(reason, detail)
        self.stage = stage

    def __reduce__(self) -> tuple[type["RefusedError"], tuple[Reason, str, str]]:  # type: ignore[override]
        """Support pickling, because the verdict crosses process boundaries."""
        return type(self), (self.reason, self.detail, self.stage)


@contextlib.contextmanager
def _stage(name: str) -> Iterator[None]:
    try:
        yield
    except RefusedError:
        raise  # from a stage inside this one
    except RejectedError as verdict:
        raise RefusedError(verdict.reason, verdict.detail, name) from None


def prepare_image(
    data: bytes,
    config: PrepareConfig,
    detectors: "Sequence[Detector]",
    timeout_s: float | None = None,
    wait_s: float = 0.0,
) -> PreparedImage:
    """Decode, downscale, redact, and encode one image until a last look finds nothing that must be redacted.

    The image is redacted at the size of the largest image that leaves this stage. Each step has its own time limit, and
    SIGALRM kills this process if a step exceeds it. Decoding may take `timeout_s` seconds. The first search and each
    round may take `_SEARCH_LIMITS` times `timeout_s`, plus `wait_s`. Raises `RefusedError` with the stage `ingest`,
    `deidentify`, or `release`.
    """
    decoding = Deadline(timeout_s)
    searching = Deadline(None if timeout_s is None else _SEARCH_LIMITS * timeout_s + wait_s)
    with decoding.running(), _stage("ingest"):
        if config.respect_opt_out:
            refuse_opted_out(data)
        source = ingest(data, config.ingest)
    pixels = pixels_sha256(source.image)
    full = source.source_width, source.source_height
    size = largest_size(*full, config.release.short_side, config.crops)
    small = released_size(*full, config.release.short_side)
    entries = config.left_alone.get(bytes_sha256(data), ()) if config.left_alone else ()
    left_alone = LeftAlone(entries, size, full)
    # If nothing is redacted, the JPEG of the image's pixels is released. It needs only one search for plates: they are
    # found in the pixels and in the JPEG alike, and redacting faces doesn't change plates. A search for faces in either
    # misses some that the other one finds.
    plates = [detector for detector in detectors if detector.kind == "plate" and size == small]
    others = [detector for detector in detectors if detector not in plates]
    with _stage("deidentify"):
        with searching.running():
            image = resized(source.image, size)
            candidates = find(image, others)  # upright; the last look also turns the image
            untouched = None
            if plates:
                untouched = _released(image, config.release)
                candidates += find(untouched.pixels, plates, image)
        found, unconfirmed = left_alone.take(candidates.confirmed), list(candidates.unconfirmed)
        for _ in range(1 + ROUNDS):
            with searching.running():
                clean, redacted = deidentify(image, found)
                regions = tuple(each.scaled(size, full) for each in redacted)
                released = untouched
                if regions or released is None:
                    released = _released(clean, config.release)
                row = {
                    "source_width": source.source_width,
                    "source_height": source.source_height,
                    "width": released.width,
                    "height": released.height,
                    "regions": list(map(vars, regions)),
                }
                unsearched = detectors if any(each.kind == "plate" for each in regions) else others
                look = last_look(row, released, image, unsearched, config.deidentify.orientations)
                to_redact = left_alone.take(look.to_redact)
                if not to_redact:
                    share = redacted_share(row)
                    _check_share(share, config.deidentify.max_redacted_share)
                    with _stage("release"):
                        original = encode_original(clean) if config.crops is not None and size != small else None
                    return PreparedImage(
                        pixels_sha256=pixels,
                        source_width=source.source_width,
                        source_height=source.source_height,
                        regions=regions,
                        residual_detections=look.residual,
                        unconfirmed_detections=unconfirmed_entries(look, unconfirmed, size, small),
                        left_alone=tuple(left_alone.regions.values()),
                        redacted_share=share,
                        width=released.width,
                        height=released.height,
                        release=released.jpeg,
                        hashes=jpeg_hashes(released.jpeg).tolist(),
                        original=original,
                    )
                found += to_redact
                likewise = find_likewise(image, detectors, to_redact, [*found, *left_alone.detections])
                found += left_alone.take(likewise.confirmed)
                unconfirmed += likewise.unconfirmed
                unconfirmed = [each for each in unconfirmed if not any(is_same(each, other) for other in found)]
        kinds = Counter(each.kind for each in to_redact)
        named = " and ".join(counted(count, kind) for kind, count in sorted(kinds.items()))
        detail = f"{named} found in the released image after it was redacted {ROUNDS} more times"
        raise RejectedError(Reason.STILL_DETECTED, detail)


def _released(image: Pixels, config: ReleaseConfig) -> ReleasedImage:
    with _stage("release"):
        return release(image, config)


def _check_share(share: float, maximum: float | None) -> None:
    """Raise `RejectedError` if more than the maximum share of an image is redacted."""
    if maximum is not None and share > maximum:
        detail = f"{100 * share:.3g}% of the image is redacted, over deidentify.max_redacted_share {100 * maximum:g}%"
        raise RejectedError(Reason.MOSTLY_REDACTED, detail)


def build_worker(
    config: PrepareConfig, storage: Storage, assets: str | None, detectors_at: str | None = None
) -> Worker[PreparedImage]:
    """Build `prepare_image` with its detectors, for a child process. `assets` is a folder that mirrors their weights.

    `detectors_at` is the socket of the process that runs the detectors. If it is None, the child runs them itself.
    torch and OpenCV use a single thread each, because the number of threads changes the last bits of sums.

    Detector files contain executable code. Raises `AssetError` if a file's hash differs from the one in `config`.
    """
    import cv2

    keep_freed_memory()
    fix_products()
    cv2.setNumThreads(1)
    warnings.filterwarnings("ignore", module="PIL")  # odd metadata is common among millions of photographs

    limit = config.ingest.timeout_s
    if detectors_at is not None:
        remote = remote_detectors(config.deidentify, detectors_at)
        return functools.partial(prepare_image, config=config, detectors=remote, timeout_s=limit, wait_s=WAITS_S)
    find = pinned_files(storage, assets, config.detector_sha256)
    detectors = build_detectors(config.deidentify, find, threads=1)
    if detectors:  # otherwise nothing needs torch, which takes seconds to import
        import torch

        torch.set_num_threads(1)
    return functools.partial(prepare_image, config=config, detectors=detectors, timeout_s=limit)


def detector_settings(config: PrepareConfig, storage: Storage, assets: str | None) -> DetectorSettings:
    """Return the settings for a process that runs the detectors of this configuration."""
    return DetectorSettings(
        deidentify=config.deidentify,
        max_pixels=config.ingest.max_pixels,
        storage=storage,
        assets=assets,
        detector_sha256=config.detector_sha256,
        numerics=config.detector_numerics,
    )


class Prepare:
    """Ray Data actor that maps a table of normalized rows to the same rows, prepared or rejected.

    Threads of this process read images and check hashes. Child processes do everything else. The URI of the source
    catalog, `catalog_uri`, determines which URIs its rows may use. `taken` contains the names in tombstones. A row is
    rejected if its source has such a name, or if the lists in `refused` name it.
    """

    def __init__(
        self,
        config: PrepareConfig,
        storage: Storage,
        policy: LicensePolicy,
        catalog_uri: str,
        assets: str | None = None,
        resources: PrepareResources = PrepareResources(),
        taken: RemovedNames = NO_NAMES,
        refused: RefusalLists = NO_LISTS,
        detectors: DetectorHost | None = None,
    ) -> None:
        """Start the children, and wait until the detector process is ready.

        On a GPU, the detectors run in the process `detectors`. If that is None, this actor starts its own detector
        process. Raises `DetectorsGoneError` if the detector process can't run.
        """
        forbid_core_dumps()  # this process also holds the bytes of originals
        self._reader = ImageReader(storage, catalog_uri, config.ingest.max_bytes)
        self._judge = CatalogJudge(policy, taken, catalog_uri, refused)
        self._threads = ThreadPoolExecutor(resources.read_threads, thread_name_prefix="prepare")
        self._own_detectors = None
        if detectors is None and config.deidentify.device != "cpu" and config.deidentify.detectors:
            detectors = self._own_detectors = DetectorProcess(detector_settings(config, storage, assets))
        self._detectors = detectors
        search_s = _SEARCH_LIMITS * config.ingest.timeout_s + (0.0 if detectors is None else WAITS_S)
        self._children = Children(
            functools.partial(build_worker, config, storage, assets, None if detectors is None else detectors.address),
            timeout_s=config.ingest.timeout_s,
            more_s=(2 + ROUNDS) * search_s,  # time for all steps of `prepare_image`, each of which has its own deadline
            processes=resources.children,
            memory_limit=resources.memory_limit,
            max_tasks=resources.max_tasks,
        )
        if detectors is not None:
            detectors.ready()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Prepare each live row. Return all rows, in order, with exactly the columns of `PREPARED`.

        If the table has the column `prompts`, the columns are those of `PROMPTED`.
        """
        schema = PREPARED
        if "prompts" in table.column_names:
            schema = PROMPTED
        return gather(list(self._threads.map(self._row, to_rows(table, "prepare"))), "prepare", schema)

    def wait_until_ready(self) -> None:
        """Wait until a child process is ready for the first image. Only benchmarks need this."""
        self._children.wait_until_ready()

    def close(self) -> None:
        """Stop the child processes and threads."""
        self._threads.shutdown()
        self._children.close()
        if self._own_detectors is not None:
            self._own_detectors.close()

    def __del__(self) -> None:
        # Ray Data deletes this object when the actor ends gracefully; a killed actor's children exit on their own.
        if hasattr(self, "_children"):
            self.close()

    def _row(self, row: Row) -> Row:
        prompts = row.pop("prompts", None)
        if not is_live(row):
            return row
        try:
            with _stage("catalog"):
                self._judge.refuse_taken_down(row)
            with _stage("curate"):
                refuse_curated(row)
            with _stage("catalog"):
                self._judge.judge(row)
            digest, prepared = self._reader.use(row, functools.partial(self._prepare, row), RefusedError)
            if prompts is not None:
                sizes = (prepared.source_width, prepared.source_height), (prepared.width, prepared.height)
                with _stage("catalog"):
                    row["prompts"] = released_prompts(prompts, *sizes)
        except RefusedError as verdict:
            return rejected(row, verdict.stage, verdict)
        except SuspectError as verdict:
            return rejected(row, "prepare", verdict)
        except RejectedError as verdict:
            return rejected(row, "read", verdict)
        except DetectorsGoneError:
            raise  # no more rows can be processed here
        except Exception as error:  # noqa: BLE001 - a fault affects only its own shard
            return faulted(row, "prepare", error)
        released = {**row, "source_sha256": digest, **_columns(prepared)}
        if self._judge.taken.names_picture(released):
            return rejected(row, "catalog", RejectedError(Reason.TAKEN_DOWN, SAME_SOURCE))
        return released

    def _prepare(self, row: Row, data: bytes) -> tuple[str, PreparedImage]:
        """Return the SHA-256 of an object's bytes, and the prepared image."""
        with _stage("read"):
            digest = checked_digest(data, row["sha256"])
        with _stage("catalog"):
            self._judge.refuse_taken(row, digest)
            self._judge.refuse_listed((), digest)  # its URLs were compared before it was read
        return digest, self._search_and_prepare(data)

    def _search_and_prepare(self, data: bytes) -> PreparedImage:
        """Prepare an image in a child. If the detector process doesn't reply, wait until it is ready and retry."""
        if self._detectors is None:
            return self._children.run(data)
        for _ in range(SEARCH_TRIES - 1):
            try:
                return self._children.run(data)
            except DetectorProcessError:
                self._detectors.ready()
        return self._children.run(data)


def _columns(prepared: PreparedImage) -> Row:
    kinds = [region.kind for region in prepared.regions]
    return {
        **asdict(prepared),
        "release_sha256": bytes_sha256(prepared.release),
        "faces": kinds.count("face"),
        "plates": kinds.count("plate"),
    }


CURATED = "refused in the catalog"
"""Detail recorded for a row that the catalog rejects without a detail."""


@dataclass(frozen=True)
class CatalogJudge:
    """Judge of catalog rows by their license, takedowns, refusal lists, and duplicate ids."""

    policy: LicensePolicy
    taken: RemovedNames
    catalog_uri: str
    refused: RefusalLists = NO_LISTS

    def judge(self, row: Row) -> None:
        """Raise `RejectedError` if license data or a duplicate rules the row out. `refuse_curated` covers curation."""
        if row["duplicate_of"] is not None:
            first = row["duplicate_of"]
            raise RejectedError(Reason.DUPLICATE_ID, f"the row of ordinal {first} already has this image_id")
        self.refuse_listed(self._urls(row), row["sha256"])
        verdict = self.policy.judge(row["license"], row["redistributable"], row["valid_until"], row.get("opt_out"))
        if verdict is not None:
            raise RejectedError(*verdict)

    def _urls(self, row: Row) -> list[str | None]:
        """Return all URLs of a row's image. A URI relative to the catalog is also returned as an absolute one."""
        urls = [row["uri"], row["source_url"], row.get("download_url")]
        with contextlib.suppress(UriNotAllowedError):
            urls.append(relative_to(self.catalog_uri, row["uri"]))
        return urls

    def refuse_taken_down(self, row: Row) -> None:
        """Raise `RejectedError` if the row was taken down or a tombstone names its source."""
        if is_taken_down(row):
            raise RejectedError(Reason.TAKEN_DOWN, DETAIL)
        self.refuse_taken(row, row["sha256"])

    def refuse_taken(self, row: Row, digest: str | None) -> None:
        """Raise `RejectedError` if a tombstone names the row's source."""
        if self.taken.names_source(row["uri"], digest):
            raise RejectedError(Reason.TAKEN_DOWN, SAME_SOURCE)

    def refuse_listed(self, urls: Sequence[str | None], digest: str | None) -> None:
        """Raise `RejectedError` if a refusal list names one of these URLs, one of their domains, or this SHA-256."""
        if self.refused.refuses(urls, digest):
            raise RejectedError(Reason.REFUSED_BY_LIST, LISTED)


def refuse_curated(row: Row) -> None:
    """Raise `RejectedError` if the catalog itself rejects the row."""
    reason = row.get("refused_reason")
    if reason is not None:
        raise RejectedError(Reason(reason), row.get("refused_detail") or CURATED)
