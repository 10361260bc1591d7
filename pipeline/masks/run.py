"""Implementation of `segmint masks`: SA-1B JSON for photographs, without Ray or a dataset.

Importing torch takes seconds, so `plan` first finds every error that doesn't require torch. `make_masks` loads the
model when the first photograph needs it.

Time estimates for masks from the speed that the last run on this machine recorded. Does not import torch.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from segmint.catalogs.findings import Reason, RejectedError
from segmint.catalogs.layout import bytes_sha256
from segmint.infra.arrays import Size
from segmint.infra.assets import ASSETS, AUTO, cache_folder, default_weights, resolve_default, sha256_of
from segmint.infra.device import cores_here, kind_here, resolve_compute
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.storage.errors import NotFoundError, ObjectTooLargeError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import base_name, join, local_path, redact
from segmint.infra.wording import counted, duration
from segmint.operators.child import lacks_memory
from segmint.operators.images import released_prompts
from segmint.operators.prepare.ingest_config import ANY_SIZE
from segmint.pipeline.masks.images import Photographs, find_photographs, is_local
from segmint.pipeline.masks.options import MasksOptions, PromptOutsideError, check_device, check_prompts
from segmint.pipeline.masks.outputs import (
    Outputs,
    PhotographTask,
    check_writable,
    digest_of,
    existing_files,
    open_folder,
    plan_outputs,
    sweep_temporary,
    with_kept_files,
)

if TYPE_CHECKING:
    from segmint.model.automatic.rle import MaskRecord
    from segmint.model.sam.predictor import Predictor
    from segmint.pipeline.masks.options import Frame
    from segmint.pipeline.masks.outputs import MasksFile
    from segmint.pipeline.masks.predict import PromptedMask


SPEEDS = "masks-speeds.json"
"""File in the user's cache that contains a speed per combination of weights, device, precision, and number of CPUs."""


@dataclass(frozen=True)
class Speed:
    """Seconds to load torch and the model, to encode an image, and to decode a point."""

    start_s: float
    encode_s: float
    point_s: float


@dataclass(frozen=True)
class Work:
    """Masks to generate. `points` and `encodes` are per photograph."""

    options: MasksOptions
    photographs: int

    @property
    def encodes(self) -> int:
        """Passes through the image encoder per photograph: one for the photograph and one for each crop."""
        return 1 if self.options.prompts_each else self.options.masks.settings().encodes

    @property
    def points(self) -> int:
        """Number of prompts or, without prompts, of grid points in a photograph and its crops."""
        return self.options.prompts_each or self.options.masks.settings().points

    def seconds(self, speed: Speed) -> float:
        """Return the estimated time in seconds for all photographs."""
        return speed.start_s + self.photographs * (self.encodes * speed.encode_s + self.points * speed.point_s)

    def line(self) -> str:
        """Return the estimate as one line, such as `mobile_sam: 1,024 points, about 20 s`."""
        things = counted(self.points, "prompt" if self.options.prompts_each else "point")
        photographs = "" if self.photographs == 1 else f"{self.photographs:,} photographs with "
        about = duration(self.seconds(recorded_speed(self.options) or _usual_speed(self.options)), rough=True)
        return f"{base_name(self.options.weights)}: {photographs}{things}, about {about}"


class Stopwatch:
    """Timer that measures the speed of mask generation for one photograph. Call it whenever points were decoded."""

    def __init__(self, work: Work, start_s: float, report: Callable[[int, int], object] | None = None) -> None:
        self._work, self._start_s, self._report = work, start_s, report
        self._began = time.monotonic()
        self._first_s: float | None = None

    def __call__(self, done: int, points: int) -> None:
        """Record that `done` of `points` points are decoded."""
        if self._first_s is None:
            self._first_s = time.monotonic() - self._began
        if self._report is not None:
            self._report(done, points)

    def record(self) -> None:
        """Save the speed for the next run's estimate. Does nothing if the cache isn't writable."""
        total_s = time.monotonic() - self._began
        # On a GPU, several encodes precede the first points, so `_first_s` can exceed the time of one encode. Limit it.
        encode_s = min(self._first_s or 0.0, total_s / self._work.encodes)
        point_s = (total_s - self._work.encodes * encode_s) / self._work.points
        speed = Speed(*(float(f"{seconds:.3g}") for seconds in (self._start_s, encode_s, point_s)))
        with suppress(OSError, UsageError):
            folder = cache_folder()
            temporary = folder / f".tmp-{SPEEDS}-{os.getpid()}"
            folder.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps({**_speeds(), _key(self._work.options): asdict(speed)}, indent=1) + "\n")
            temporary.replace(folder / SPEEDS)


def recorded_speed(options: MasksOptions) -> Speed | None:
    """Return the speed that the last run with these weights, device, and precision recorded, or None."""
    with suppress(AttributeError, KeyError, TypeError, ValueError):
        speed = Speed(**{name: float(seconds) for name, seconds in _speeds()[_key(options)].items()})
        if 0 <= speed.start_s + speed.encode_s + speed.point_s < float("inf"):
            return speed
    return None


def _speeds() -> dict[str, dict[str, float]]:
    try:
        speeds = json.loads((cache_folder() / SPEEDS).read_bytes())
    except (OSError, UsageError, ValueError, RecursionError):
        return {}
    return speeds if isinstance(speeds, dict) else {}


def _key(options: MasksOptions) -> str:
    return f"{redact(options.weights)}, {options.device}, {options.precision}, {cores_here()} CPUs"


def _usual_speed(options: MasksOptions) -> Speed:
    """Return a rough speed for a first run, proportional to the size of the weights (docs/masks.md)."""
    size = ASSETS.get(options.weights, ASSETS["mobile_sam"]).size
    if options.weights not in ASSETS and is_local(options.weights) and local_path(options.weights).is_file():
        size = local_path(options.weights).stat().st_size
    if options.device.startswith("cuda") or (options.device == "auto" and Path("/dev/nvidia0").exists()):
        return Speed(start_s=10.0, encode_s=size / 20e9, point_s=0.0005)
    return Speed(start_s=5.0, encode_s=size / 40e6 / cores_here(), point_s=0.03 / cores_here())


Outcome = Literal["made", "skipped", "refused", "failed"]


@dataclass(frozen=True)
class ImageResult:
    """Result for one photograph: the output files of its masks, or the error.

    `outcome` is `made`, `skipped` if the masks already existed, `refused` if the photograph is at fault, or `failed` if
    there was another problem, so that a retry may help. `masks` is the number of new or existing masks. `frame` and
    `source` are the (width, height) in pixels of the masks' frame and of the upright photograph, or None if the
    photograph wasn't decoded.
    """

    image: str
    outcome: Outcome
    output: str | None = None
    overlay: str | None = None
    cutouts: str | None = None
    masks: int = 0
    seconds: float = 0.0
    error: str | None = None
    frame: tuple[int, int] | None = None
    source: tuple[int, int] | None = None


@dataclass(frozen=True)
class MasksPlan:
    """Validated plan of a run. Planning writes nothing except the output folder's record."""

    storage: Storage
    outputs: Outputs
    options: MasksOptions
    weights: Path
    settings_sha256: str
    there: frozenset[str]  # masks and overlays that already exist in the folder or next to the photographs
    overwrite: bool
    photographs: Photographs
    boxes: Mapping[str, Any]  # values of `PROMPTS` by the photograph's place, if the options contain boxes
    work: Work  # masks that don't exist yet, or all masks with `overwrite`

    def waits(self, task: PhotographTask) -> bool:
        """Return whether this run must generate a photograph's masks, because they're missing or to be overwritten."""
        return self.overwrite or task.target not in self.there


def plan(
    images: Sequence[str],
    output: str | None,
    options: MasksOptions,
    *,
    recursive: bool = False,
    overwrite: bool = False,
    announce: Callable[[Work], object] = lambda _: None,
) -> MasksPlan:
    """Find the photographs and their output files, check the options, and open the output folder.

    Resolving the weights may take minutes, so this passes the work to `announce` first. It imports torch only to check
    a GPU. That is necessary if the options request a GPU or bf16, or if the weights are auto and the machine seems to
    have a GPU.

    Raises `UsageError` if the arguments are inconsistent, if files are missing, if the GPU or the weights can't be
    found, or if the output folder was started with different settings.
    """
    storage = Storage()
    check_device(options.device)
    photographs = find_photographs(storage, images, recursive=recursive)
    outputs = plan_outputs(photographs, output)
    check_writable(outputs)
    boxes = dict[str, Any]()
    if options.boxes is not None:
        boxes, left_out = options.boxes.by_place([task.image.place for task in outputs.tasks])
        photographs = replace(photographs, passed_over=(*photographs.passed_over, *left_out))
    there = existing_files(storage, outputs)
    outputs = with_kept_files(outputs, there, lambda file: _photograph_of(storage, file))
    if options.device.startswith("cuda") or options.precision == "bf16":
        resolve_compute(options.device, options.precision)
    asked = options.weights
    if asked == AUTO:
        options = replace(options, weights=default_weights(kind_here(options.device)))
    work = Work(options, sum(overwrite or task.target not in there for task in outputs.tasks))
    announce(work)
    weights = resolve_default(options.weights, asked, "--weights")
    settings = options.settings(sha256_of(weights))
    if outputs.folder is not None:
        open_folder(Location(storage, outputs.folder), outputs, there, settings, overwrite=overwrite)
    sweep_temporary(outputs)
    sha256 = digest_of(settings)
    return MasksPlan(
        *(storage, outputs, options, weights, sha256, frozenset(there), overwrite, photographs, boxes, work)
    )


def _photograph_of(storage: Storage, file: str) -> str:
    from segmint.pipeline.masks.outputs import read_document

    return read_document(storage.read(file)).photograph


class _LazyModel:
    """Predictor that loads on first use, which also delays the import of torch."""

    def __init__(self, plan: MasksPlan, points: Callable[[int, int], object] | None) -> None:
        self._weights, self._options, self._work = plan.weights, plan.options, plan.work
        self._points = points
        self._predictor: Predictor | None = None
        self._start_s = 0.0

    @property
    def is_loaded(self) -> bool:
        return self._predictor is not None

    def load(self) -> "Predictor":
        """Return the predictor. Raises `UsageError` if the file isn't a checkpoint or the device isn't available."""
        if self._predictor is None:
            began = time.monotonic()
            from segmint.model.sam.predictor import Predictor
            from segmint.operators.segment.models import cpu_kernels, load_model

            compute = resolve_compute(self._options.device, self._options.precision)
            model = load_model(self._weights, compute)
            self._predictor = Predictor(model, kernels=cpu_kernels(compute.kind))
            self._start_s = time.monotonic() - began
        return self._predictor

    def masks(self, frame: "Frame", boxes: Sequence[Mapping[str, Any]]) -> "list[PromptedMask]":
        """Return the masks for the prompts or `boxes`, or all masks of the frame if the options have neither."""
        from segmint.model.automatic.device_crops import KernelError
        from segmint.pipeline.masks.predict import automatic_masks, boxed_masks, prompted_masks

        predictor = self.load()
        if self._options.boxes is not None:
            return boxed_masks(predictor, frame.image, boxes, self._options)
        if self._options.prompts:
            return prompted_masks(predictor, frame.image, self._options)
        stopwatch = Stopwatch(self._work, self._start_s, self._points)
        try:
            found = automatic_masks(predictor, frame, self._options.masks, stopwatch)
        except KernelError as error:
            raise UsageError(str(error)) from error
        stopwatch.record()
        return found


def make_masks(
    plan: MasksPlan, report: Callable[[ImageResult], None], points: Callable[[int, int], object] | None = None
) -> list[ImageResult]:
    """Write the missing masks of each photograph, and call `report` with each result.

    While a photograph's points are decoded, `points` is called with the number of decoded points and the total.

    If a photograph is refused or can't be read, its result contains the error, and the run continues. Raises
    `UsageError` for an invalid checkpoint or an unavailable device. If there is only one photograph, a prompt outside
    it also raises `UsageError`. If a write fails, its exception ends the run.
    """
    model = _LazyModel(plan, points)
    results = []
    for task in plan.outputs.tasks:
        started = time.monotonic()
        result = _one_image(plan, model, task)
        results.append(replace(result, seconds=round(time.monotonic() - started, 3)))
        report(results[-1])
    return results


class _OtherFileError(SegmintError):
    """Error for an existing file that doesn't belong to this run and must not be replaced."""


def _one_image(plan: MasksPlan, model: _LazyModel, task: PhotographTask) -> ImageResult:
    name = task.image.name
    if (too_long := task.too_long(plan.options.overlay, plan.options.cutouts)) is not None:
        return ImageResult(name, "refused", error=too_long)
    try:
        result, files = _files_of(plan, model, task)
    except RejectedError as verdict:
        return ImageResult(name, "refused", error=f"{verdict.reason}: {verdict.detail}")
    except ObjectTooLargeError as error:
        return ImageResult(name, "refused", error=f"{Reason.TOO_LARGE}: {error}")
    except PromptOutsideError as error:
        if len(plan.outputs.tasks) == 1:
            raise
        return ImageResult(name, "refused", error=str(error))
    except _OtherFileError as error:
        return ImageResult(name, "refused", error=str(error))
    except UsageError:
        raise
    except Exception as error:
        if model.is_loaded and lacks_memory(error):
            return ImageResult(name, "failed", error="not enough memory")
        if not isinstance(error, (SegmintError, OSError)):
            raise
        return ImageResult(name, "failed", error=str(error))
    if result.cutouts is not None and files is not None:
        for entry in plan.storage.list(task.cutouts):
            if join(task.cutouts, entry.name) not in files:
                plan.storage.delete(join(task.cutouts, entry.name))
    for file, content in (files or {}).items():
        plan.storage.put(file, content)
    if result.cutouts is not None and not any(plan.storage.list(task.cutouts)):
        return replace(result, cutouts=None)  # with no masks, the folder does not exist
    return result


def _files_of(
    plan: MasksPlan, model: _LazyModel, task: PhotographTask
) -> tuple[ImageResult, Mapping[str, bytes] | None]:
    """Return the result to report for a photograph, and the files to write before. None: they already exist."""
    name, options = task.image.name, plan.options
    data = plan.storage.read(name, max_bytes=ANY_SIZE.max_bytes)
    photograph = bytes_sha256(data)
    former = _former(plan, task, photograph)
    is_drawn, is_current = options.overlay, False
    if there := _beginning_of(plan, task.overlay):
        from segmint.operators.overlay import is_drawn_from, is_ours

        is_drawn |= is_ours(there)  # an overlay from an earlier run always shows the current masks
        is_current = former is not None and is_drawn_from(there, former.sha256)
    result = ImageResult(
        name, "skipped", task.target, task.overlay if is_drawn else None, task.cutouts if options.cutouts else None
    )
    is_cut = not options.cutouts or _has_cutouts(plan, task, former)
    if former is not None and (not is_drawn or is_current) and is_cut:
        return replace(result, masks=len(former.annotations)), None
    from segmint.operators.prepare.ingest import decode_photograph

    pixels = decode_photograph(data)
    height, width = pixels.shape[:2]
    check_prompts(options.prompts, name, height, width)
    boxes: list[dict[str, Any]] = []
    if (given := plan.boxes.get(task.image.place)) is not None:
        boxes = released_prompts(given, (width, height), (width, height))
    if former is None:
        model.load()
    from segmint.pipeline.masks.options import frame_of
    from segmint.pipeline.masks.outputs import MasksOrigin, sa1b_document

    frame = frame_of(pixels, options)
    size = (frame.image.shape[0], frame.image.shape[1])
    result = replace(result, frame=(size[1], size[0]), source=(width, height))
    files: dict[str, bytes] = {}
    if former is not None:
        records, drawn_from = _records(task, former, size), former.sha256
    else:
        found = model.masks(frame, boxes)
        origin = MasksOrigin(photograph, plan.settings_sha256)
        document = sa1b_document(task.image_id, PurePosixPath(name).name, size, found, origin)
        files[task.target] = document
        records, drawn_from = [mask.record for mask in found], bytes_sha256(document)
        result = replace(result, outcome="made")
    if is_drawn:
        files[task.overlay] = _drawn(frame, records, options, boxes, drawn_from)
    if options.cutouts:
        files |= _cutouts(task, frame, records, drawn_from)
    return replace(result, masks=len(records)), files


def _beginning_of(plan: MasksPlan, overlay: str) -> bytes:
    """Return the first bytes of an existing overlay, including its text chunks.

    Return b"" if the overlay doesn't exist.
    """
    if overlay not in plan.there:
        return b""
    with suppress(NotFoundError), plan.storage.open_ranges(overlay) as stream:
        return stream.read(256)
    return b""


def _has_cutouts(plan: MasksPlan, task: PhotographTask, former: "MasksFile | None") -> bool:
    """Return whether all cutouts of the existing masks exist.

    Raises `_OtherFileError` if the cutouts' folder contains a file that segmint didn't write.
    """
    from segmint.operators.overlay import is_drawn_from, is_ours

    beginnings = []
    for entry in plan.storage.list(task.cutouts):
        with plan.storage.open_ranges(join(task.cutouts, entry.name)) as stream:
            beginnings.append(stream.read(256))
        if not is_ours(beginnings[-1]):
            raise _OtherFileError(
                f"{task.cutouts} has {entry.name}, which wasn't written by segmint. Move the folder elsewhere, or "
                "choose another output with -o."
            )
    if former is None:
        return False
    masks = sum(record.area > 0 for record in _records(task, former))
    return len(beginnings) == masks and all(is_drawn_from(each, former.sha256) for each in beginnings)


def _records(task: PhotographTask, former: "MasksFile", size: Size | None = None) -> "list[MaskRecord]":
    """Return the existing masks. If `size` is given, all of them must have this size.

    Raises `_OtherFileError` if another program damaged a mask.
    """
    try:
        records = former.records()
        if wrong := [each.segmentation for each in records if size not in (None, each.segmentation.size)]:
            raise ValueError(f"a mask has the size {wrong[0].size}, but the image has {size}")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _OtherFileError(
            f"{task.target} contains an invalid mask ({error!r}). Move the file elsewhere, or pass --overwrite to "
            "regenerate all masks."
        ) from error
    return records


def _cutouts(
    task: PhotographTask, frame: "Frame", records: "Sequence[MaskRecord]", drawn_from: str
) -> dict[str, bytes]:
    """Return a PNG for each nonempty mask. The name is the mask's position in the JSON, starting with 000.png."""
    from segmint.operators.overlay import cut_out, encode_png

    return {
        join(task.cutouts, f"{place:03}.png"): encode_png(cut_out(frame.image, record.mask), drawn_from)
        for place, record in enumerate(records)
        if record.area
    }


def _former(plan: MasksPlan, task: PhotographTask, photograph: str) -> "MasksFile | None":
    """Return the existing masks of a photograph, or None if this run must generate them.

    Raises `_OtherFileError` if the existing file belongs to another photograph or program, or if this run would replace
    masks that a person made or corrected. It's also raised if a file next to its photograph was made with different
    settings. In a folder, such a file is replaced, because the folder's record already protects against changed
    settings.
    """
    from segmint.pipeline.masks.outputs import read_document

    is_kept, written = task.target in plan.there and not plan.overwrite, None
    if plan.outputs.folder is None or task.target in plan.there:  # `there` lacks a single named file
        with suppress(NotFoundError):
            written = read_document(plan.storage.read(task.target))
    origin = None if written is None else written.origin
    is_same = origin is not None and (origin.photograph, origin.settings) == (photograph, plan.settings_sha256)
    if written is not None and written.corrected and not (is_kept and is_same):
        raise _OtherFileError(
            f"{task.target} contains masks that a person made or corrected. To generate new masks, move the file "
            "elsewhere."
        )
    _check_ours(plan, task, written)
    if written is None or not is_kept:
        return None
    if origin is None or origin.photograph != photograph:
        what = "wasn't written by this command" if origin is None else "is for a photograph with different content"
        raise _OtherFileError(f"{task.target} {what}. Move it elsewhere, or pass --overwrite to regenerate all masks.")
    if is_same:
        return written
    if plan.outputs.next_to:
        raise _OtherFileError(
            f"{task.target} was made with different settings or weights. Pass --overwrite to replace it, or choose "
            "another file with -o."
        )
    return None


def _check_ours(plan: MasksPlan, task: PhotographTask, written: "MasksFile | None") -> None:
    """Raise `_OtherFileError` if this run would replace a file that segmint didn't write, such as `written`.

    In a folder that segmint started, only overlays are checked.
    """
    foreign = None
    if plan.outputs.next_to and written is not None and written.origin is None:
        foreign = task.target
    elif plan.options.overlay and task.overlay in plan.there:
        from segmint.operators.overlay import is_ours

        foreign = None if is_ours(_beginning_of(plan, task.overlay)) else task.overlay
    if foreign is not None:
        raise _OtherFileError(
            f"{foreign} wasn't written by segmint, so it isn't overwritten. Move it elsewhere, or choose another "
            "file with -o."
        )


def _drawn(
    frame: "Frame",
    records: "Sequence[MaskRecord]",
    options: MasksOptions,
    given: Sequence[Mapping[str, Any]],
    drawn_from: str,
) -> bytes:
    from segmint.operators.overlay import draw_overlay, draw_prompts, encode_png

    points = [point for prompt in options.prompts for point in prompt.points]
    boxes = [prompt.box for prompt in options.prompts if prompt.box is not None]
    boxes += [tuple(prompt["box"]) for prompt in given]
    return encode_png(draw_prompts(draw_overlay(frame.image, records), points, boxes), drawn_from)
