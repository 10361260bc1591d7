"""Curation of images: settings, features of a catalog's images, and which images are unfit.

Features of a catalog's images for curation, computed in parts that cover fixed ranges of rows.

The content of a part doesn't depend on the time, the host, or the attempt. A part is put if absent and never changed,
so an interrupted run can resume with the missing parts.

There is one exception. If a child dies, hangs, or runs out of memory on an image, the machine may be to blame. A part
with such a verdict gets a different name, and only the run that put it reads it.

Classical measures of an image's fitness for a dataset: focus, exposure, and flatness.

All measures are computed from integer counts on the image at a fixed scale. So they don't depend on the image's
resolution or on the machine.
"""

import functools
import math
import re
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Self

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from segmint.catalogs.findings import Reason, RejectedError
from segmint.catalogs.parquet import table_bytes
from segmint.infra.arrays import Bytes, Pixels
from segmint.infra.assets import AssetError, resolve, sha256_of
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.operators.child import Children, SuspectError, Worker, forbid_core_dumps
from segmint.operators.opt_out import opt_out
from segmint.operators.prepare.ingest import IngestConfig, ingest
from segmint.operators.prepare.read_image import ImageReader, checked_digest
from segmint.operators.rows import Row, faulted, named, to_rows, to_table
from segmint.operators.similar.near import image_hashes

SIDE = 512
"""Length in pixels of the shorter side of the image that is measured. Smaller images aren't enlarged."""

MOST_PIXELS = 16 * SIDE * SIDE
"""Maximum number of pixels in the image that is measured.

If the aspect ratio exceeds 16, this limit makes the shorter side shorter than `SIDE`.
"""

_DARK, _BRIGHT = 8, 247  # maximum and minimum gray level of clipped pixels; JPEG blurs the extremes
_LEVELS = 32  # per channel, because 256 would not separate a drawing's colors from JPEG noise

MEASURES = {
    "sharpness": "variance of the Laplacian (Pech-Pacheco et al. 2000)",
    "contrast": "standard deviation of the gray levels",
    "entropy": "bits of the histogram of gray levels",
    "dark": f"share of pixels with a gray level of at most {_DARK}",
    "bright": f"share of pixels with a gray level of at least {_BRIGHT}",
    "flat": "share of pixels that equal the ones to their right and below",
    "colors": f"colors that occur, of {_LEVELS}³",
}
"""Descriptions of the measures, keyed by name."""


def at_scale(image: Pixels) -> Pixels:
    """Return an image, (H, W, 3) uint8 RGB, with its shorter side reduced to `SIDE`. Smaller images aren't enlarged.

    If the result would have more than `MOST_PIXELS` pixels, it is reduced further.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    size = width, height
    if short > SIDE:
        size = max(SIDE, round(width * SIDE / short)), max(SIDE, round(height * SIDE / short))
    if size[0] * size[1] > MOST_PIXELS:
        factor = math.sqrt(MOST_PIXELS / (width * height))
        size = max(1, int(width * factor)), max(1, int(height * factor))
    if size == (width, height):
        return image
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def measure(image: Pixels) -> dict[str, float]:
    """Return the `MEASURES` of an image, (H, W, 3) uint8 RGB, scaled by `at_scale`."""
    gray = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
    counts = np.bincount(gray.ravel(), minlength=256).tolist()
    levels = list(range(256))
    shrunk = (image // (256 // _LEVELS)).astype(np.int32)
    colors = np.bincount(((shrunk[..., 0] * _LEVELS + shrunk[..., 1]) * _LEVELS + shrunk[..., 2]).ravel())
    laplacian = cv2.Laplacian(gray, cv2.CV_16S, ksize=1).astype(np.int64)
    return {
        "sharpness": _variance(laplacian.size, int(laplacian.sum()), int((laplacian * laplacian).sum())),
        "contrast": math.sqrt(
            _variance(
                gray.size,
                sum(level * count for level, count in zip(levels, counts, strict=True)),
                sum(level * level * count for level, count in zip(levels, counts, strict=True)),
            )
        ),
        "entropy": sum(count / gray.size * math.log2(gray.size / count) for count in counts if count),
        "dark": sum(counts[: _DARK + 1]) / gray.size,
        "bright": sum(counts[_BRIGHT:]) / gray.size,
        "flat": _flat(gray),
        "colors": float(np.count_nonzero(colors)),
    }


def _variance(number: int, total: int, squares: int) -> float:
    """Return the variance of `number` integers, given their sum and the sum of their squares."""
    return (number * squares - total * total) / (number * number)


def _flat(gray: Pixels) -> float:
    same = (gray[:-1, :-1] == gray[:-1, 1:]) & (gray[:-1, :-1] == gray[1:, :-1])
    share: float = np.count_nonzero(same) / max(1, same.size)
    return share


class _CurateModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class DuplicatesConfig(_CurateModel):
    """Rejection of images that are copies of another row's image."""

    enabled: bool = True
    distance: int = Field(default=3, ge=0, le=4)
    """Maximum distance between perceptual hashes of copies, in bits of 64. With 0, only equal hashes match."""
    mirror: bool = False
    """Treat mirrored images as copies."""


class FitnessConfig(_CurateModel):
    """Minimum and maximum of each measure in `segmint.operators.curate`. null means no limit."""

    min_sharpness: float | None = None
    """Variance of the Laplacian. It is low if nothing is in focus."""
    min_contrast: float | None = None
    """Standard deviation of gray levels, 0 to 127.5."""
    min_entropy: float | None = None
    """Entropy of the histogram of gray levels in bits, 0 to 8. It is low in flat images."""
    max_dark: float | None = None
    """Share of nearly black pixels, 0 to 1."""
    max_bright: float | None = None
    """Share of nearly white pixels, 0 to 1."""
    max_flat: float | None = None
    """Share of pixels that equal their neighbors, 0 to 1. It is high in screenshots and drawings."""
    min_colors: float | None = None
    """Number of distinct colors among 32,768. It is low in drawings."""

    def limits(self) -> dict[str, tuple[float | None, float | None]]:
        """Return the minimum and maximum of each measure."""
        return {name: (getattr(self, f"min_{name}", None), getattr(self, f"max_{name}", None)) for name in MEASURES}


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", value) or value in MEASURES:
        raise ValueError(
            f"expected at most 40 letters, digits, hyphens and underscores, and none of {', '.join(MEASURES)}"
        )
    return value


class ScorerConfig(_CurateModel):
    """A TorchScript module that scores images, for example for watermarks, text, or aesthetics.

    It receives one RGB image, (3, H, W) uint8, at reduced scale, and must return one number.
    """

    name: Annotated[str, AfterValidator(_name)]
    file: str = Field(min_length=1)
    """Path or URI of the module."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """SHA-256 of the file, in lower case. It is required because the file contains executable code."""
    min: float | None = None
    """Images with a lower score are rejected as unfit."""
    max: float | None = None
    """Images with a higher score are rejected as unfit."""


class CurateConfig(_CurateModel):
    """Rejection rules of a curation. They are a runtime key, because a dataset pins the resulting catalog."""

    duplicates: DuplicatesConfig = DuplicatesConfig()
    fitness: FitnessConfig = FitnessConfig()
    scorers: tuple[ScorerConfig, ...] = ()
    opt_outs: bool = True
    """Reject images whose metadata or catalog entry forbids training, along with all copies of these images."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [scorer.name for scorer in self.scorers]
        if len(set(names)) < len(names):
            raise ValueError("two scorers have the same name: expected different names")
        return self

    def limits(self) -> dict[str, tuple[float | None, float | None]]:
        """Return the minimum and maximum of each measure and scorer, keyed by name."""
        return {**self.fitness.limits(), **{each.name: (each.min, each.max) for each in self.scorers}}


_TRIAL = (512, 640)  # pixels of the image that a module is tried with


class Scorer:
    """A loaded scorer module.

    The constructor raises `UsageError` if the file's hash is wrong or the module returns no finite number for a gray
    image.
    """

    def __init__(self, config: ScorerConfig, storage: Storage, assets: str | None) -> None:
        import torch

        where = f"curate.scorers, {config.name}"
        try:
            path = resolve(config.file, mirror=assets, storage=storage)
        except AssetError as error:
            raise UsageError(f"{where}: {error}") from error
        found = sha256_of(path)
        if found != config.sha256:
            raise UsageError(f"{where}: {config.file} has SHA-256 {found}: expected {config.sha256}")
        try:
            self._module: Any = torch.jit.load(path, map_location="cpu").eval()  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            raise UsageError(f"{where}: {path} can't be loaded as TorchScript: {error}") from error
        self.name = config.name
        if self.score(np.full((*_TRIAL, 3), 128, np.uint8)) is None:
            raise UsageError(
                f"{where}: {path} doesn't return a number for a gray image: expected a TorchScript module that takes "
                "one RGB image, (3, H, W) uint8, and returns one finite number"
            )

    def score(self, image: Pixels) -> float | None:
        """Score an image, (H, W, 3) uint8 RGB. Return None if the module fails or returns no finite number."""
        import torch

        planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        try:
            # The optimizing executor may compute the first calls differently from later ones.
            with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
                number = float(self._module(planes))
        except (MemoryError, ImportError):
            raise
        except Exception as error:
            if "allocate memory" in str(error):
                raise
            return None
        return number if math.isfinite(number) else None


def load_scorers(configs: Sequence[ScorerConfig], storage: Storage, assets: str | None) -> tuple[Scorer, ...]:
    """Load all scorers of a configuration. torch uses one thread, because more would change the last bits of sums."""
    if configs:  # otherwise nothing needs torch, which takes seconds to import
        import torch

        torch.set_num_threads(1)
    return tuple(Scorer(config, storage, assets) for config in configs)


@dataclass(frozen=True)
class InspectionConfig:
    """Everything that determines the result of an inspection."""

    ingest: IngestConfig
    mirror: bool
    opt_outs: bool
    scorers: tuple[ScorerConfig, ...]


@dataclass(frozen=True)
class ImageInspection:
    """Result of inspecting one image."""

    width: int  # pixels of the upright source
    height: int
    hashes: NDArray[np.uint64]  # (V,) hashes of the image's views
    thumbnail: Bytes  # (64, 64), gray
    measures: dict[str, float]
    scores: tuple[float | None, ...]  # in the scorers' order; None if a scorer returned no number
    opt_out: str | None  # a sentence on how the image's metadata forbids training


class UndecodedError(RejectedError):
    """Raised when an image can't be decoded. Includes the opt-out from the image's metadata, if any."""

    def __init__(self, reason: Reason, detail: str, opt_out: str | None) -> None:
        super().__init__(reason, detail)
        self.opt_out = opt_out

    def __reduce__(self) -> tuple[type["UndecodedError"], tuple[Reason, str, str | None]]:  # type: ignore[override]
        """Support pickling, because the verdict crosses process boundaries."""
        return type(self), (self.reason, self.detail, self.opt_out)


def inspect_image(data: bytes, config: InspectionConfig, scorers: Sequence[Scorer] = ()) -> ImageInspection:
    """Inspect an image. Raise `UndecodedError` if `ingest` rejects it."""
    reserved = read_opt_out(data) if config.opt_outs else None
    try:
        source = ingest(data, config.ingest, SIDE)
    except RejectedError as verdict:
        raise UndecodedError(verdict.reason, verdict.detail, reserved) from None
    image = at_scale(source.image)
    hashes = image_hashes(image, mirror=config.mirror)
    return ImageInspection(
        width=source.source_width,
        height=source.source_height,
        hashes=hashes.views,
        thumbnail=hashes.thumbnail,
        measures=measure(image),
        scores=tuple(scorer.score(image) for scorer in scorers),
        opt_out=reserved,
    )


def read_opt_out(data: bytes) -> str | None:
    """Return a sentence that states how an image's metadata forbids training, or None if it doesn't."""
    found = opt_out(data)
    return None if found is None else found.detail


def build_opt_out_reader() -> Worker[str | None]:
    """Build `read_opt_out` for a child process."""
    return read_opt_out


def build_looker(config: InspectionConfig, storage: Storage, assets: str | None) -> Worker[ImageInspection]:
    """Build `inspect_image` with its scorers, for a child process. `assets` is a folder that mirrors their files."""
    import cv2

    cv2.setNumThreads(1)
    warnings.filterwarnings("ignore", module="PIL")  # odd metadata is common among millions of photographs
    scorers = load_scorers(config.scorers, storage, assets)
    return functools.partial(inspect_image, config=config, scorers=scorers)


PART_ROWS = 256
"""Number of rows per part. An interrupted run loses at most one part per worker."""

FEATURES = pa.schema(
    [
        pa.field("ordinal", pa.int64(), nullable=False),
        ("unread", pa.string()),  # why there are no features: the verdict that a build may issue, or `SKIPPED`
        ("sha256", pa.binary(32)),  # hash of the image's bytes
        ("width", pa.int32()),  # pixels of the upright source
        ("height", pa.int32()),
        ("hashes", pa.list_(pa.uint64())),  # hashes of the image's views
        ("opt_out", pa.string()),  # a sentence on how the image's metadata forbids training
        ("scores", pa.list_(pa.float64())),  # in the order of the scorers
        *((name, pa.float64()) for name in MEASURES),
        ("thumbnail", pa.binary(64 * 64)),  # gray levels
    ]
)
"""Schema of a part. The part contains one row for each row of the catalog, in order."""

SKIPPED = "skipped"
"""Value of `unread` for an image that the catalog itself rejects. Such an image isn't read."""

DONE = pa.schema(
    [
        ("first", pa.int64()),  # first ordinal of the part
        ("bytes", pa.int64()),  # number of bytes read
        ("fault", pa.string()),  # why the part wasn't put, or null
        ("suspect", pa.bool_()),  # true if the child died on an image: a fault, or a part for this run only
    ]
)
"""Schema of the row that the actor returns for a part."""

_THREADS_A_CHILD = 4


@dataclass(frozen=True)
class CurateTask:
    """Settings of a curation that its workers need."""

    config: InspectionConfig
    storage: Storage
    catalog_uri: str  # the source catalog; URIs in its rows may be relative to it
    folder: Location  # folder that contains the parts
    assets: str | None = None
    memory_limit: int | None = 4 * 2**30  # memory limit in bytes for one image in its child
    again: frozenset[int] = frozenset()  # ordinals of parts in which a child died; after another death, no features


def part_name(first: int, suspect: bool = False) -> str:
    """Return the name of the part that begins with ordinal `first`. A `suspect` part is valid only in one run."""
    return f"{first:012d}{'.suspect' if suspect else ''}.parquet"


def is_skipped(row: Row, opt_outs: bool) -> bool:
    """Return whether an image needn't be read, because the catalog rejects it or an earlier row has its image_id.

    Images that the catalog marks as opted out are always read, because their copies count as opted out as well. With
    `opt_outs`, all images are read. The metadata of any image may forbid training with it, and the catalog may contain
    copies of that image.
    """
    reason = row.get("refused_reason")
    if opt_outs or row.get("opt_out") or reason == Reason.OPTED_OUT:
        return False
    return row["duplicate_of"] is not None or reason is not None


class InspectImages:
    """Ray Data actor that maps the rows of one part to a row of `DONE` and puts the part.

    Threads read the images, and a child process decodes them. A row that can't be read or decoded gets no features. A
    fault isn't a verdict, and neither is the child's first death on an image. In both cases, the part isn't put, and
    the next round retries it.
    """

    def __init__(self, task: CurateTask) -> None:
        """Start the child."""
        forbid_core_dumps()
        self.task = task
        self.reader = ImageReader(task.storage, task.catalog_uri, task.config.ingest.max_bytes)
        self._threads = ThreadPoolExecutor(_THREADS_A_CHILD, thread_name_prefix="look")
        self._children: Children[ImageInspection] = Children(
            functools.partial(build_looker, task.config, task.storage, task.assets),
            timeout_s=task.config.ingest.timeout_s,
            memory_limit=task.memory_limit,
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        """Inspect the images of a part's rows and put the part."""
        first = table.column("ordinal")[0].as_py()
        row = functools.partial(self._row, again=first in self.task.again)
        rows = list(self._threads.map(row, to_rows(table, "curate")))
        fault = next((f"{named(row)}: {row['fault']}" for row in rows if row["fault"] is not None), None)
        suspect = any(row.get("suspect", False) for row in rows)
        if fault is None:
            data = table_bytes(to_table(rows, FEATURES), FEATURES)
            if suspect:
                (self.task.folder / part_name(first, suspect=True)).put(data)
            elif not (self.task.folder / part_name(first)).put_if_absent(data):
                fault = "the part exists with other bytes: another machine decodes an image to other pixels"
        size = sum(row.get("bytes", 0) for row in rows)
        return pa.table({"first": [first], "bytes": [size], "fault": [fault], "suspect": [suspect]}, schema=DONE)

    def close(self) -> None:
        """Stop the child and the threads."""
        self._threads.shutdown()
        self._children.close()

    def __del__(self) -> None:
        # Ray Data deletes this object when the actor ends gracefully; a killed actor's child exits on its own.
        if hasattr(self, "_children"):
            self.close()

    def _row(self, row: Row, *, again: bool) -> Row:
        if row["fault"] is not None:
            return row
        if is_skipped(row, self.task.config.opt_outs):
            return {**row, **_NOTHING, "unread": SKIPPED}
        try:
            return {**row, **_NOTHING, **self.reader.use(row, functools.partial(self._look, row, again))}
        except SuspectError as verdict:
            return {**faulted(row, "curate", verdict), "suspect": True}
        except UndecodedError as verdict:
            return {**row, **_NOTHING, "unread": str(verdict.reason), "opt_out": verdict.opt_out}
        except RejectedError as verdict:
            return {**row, **_NOTHING, "unread": str(verdict.reason)}
        except Exception as error:  # noqa: BLE001 - a fault affects only its own part
            return faulted(row, "curate", error)

    def _look(self, row: Row, again: bool, data: bytes) -> dict[str, Any]:
        digest = checked_digest(data, row["sha256"])
        try:
            look = self._children.run(data)
        except SuspectError as verdict:
            if not again:
                raise
            return {"unread": str(verdict.reason), "suspect": True, "opt_out": self._opt_out(data)}
        return {
            **{name: value for name, value in asdict(look).items() if name in FEATURES.names},
            **look.measures,
            "sha256": bytes.fromhex(digest),
            "hashes": look.hashes.tolist(),
            "scores": list(look.scores),
            "thumbnail": look.thumbnail.tobytes(),
            "bytes": len(data),
        }

    def _opt_out(self, data: bytes) -> str | None:
        """Return how an image's metadata forbids training. Since a child has died on this image, use a new child."""
        if not self.task.config.opt_outs:
            return None
        try:
            with Children(build_opt_out_reader, timeout_s=self.task.config.ingest.timeout_s) as child:
                return child.run(data)
        except SuspectError:
            return None


_NOTHING: dict[str, Any] = {name: None for name in FEATURES.names if name != "ordinal"}
