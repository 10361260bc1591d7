"""Masks for single photographs, as `segmint masks` makes them: SA-1B's JSON, without Ray or a dataset."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmint.catalogs.reasons import RejectedError
from segmint.infra.assets.resolve import resolve
from segmint.infra.device import resolve_compute
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import join
from segmint.model.automatic.boxes import box_of, xyxy_to_xywh
from segmint.model.automatic.filters import stability_scores
from segmint.model.automatic.generator import MaskGenerator
from segmint.model.automatic.records import MaskRecord
from segmint.model.automatic.rle import encode
from segmint.model.sam.predictor import Embedding, Predictor
from segmint.operators.images import decode_jpeg
from segmint.operators.overlay import draw_overlay, draw_prompts, encode_png
from segmint.operators.prepare.ingest import IngestConfig, ingest
from segmint.operators.prepare.release import ReleaseConfig, encode_original, largest_size, release, resized
from segmint.operators.segment.mask_config import MasksConfig
from segmint.operators.segment.models import load_model
from segmint.operators.segment.segment import check_count, mask_row
from segmint.operators.shards.files import annotations_json
from segmint.pipeline.config.yaml_file import Document, apply_override, check

Pixels = NDArray[np.uint8]
Point = tuple[float, float, int]
"""x, y in pixels of the upright photograph, and 1 for foreground or 0 for background."""
Box = tuple[float, float, float, float]
"""x, y, width, height in pixels of the upright photograph."""

RELEASE = "release."
"""What the overrides of the released frame begin with, as in a build's configuration."""

# A photograph given by name may have any size that fits into memory.
_INGEST = IngestConfig(min_short_side=1)


@dataclass(frozen=True)
class Prompts:
    """The masks asked for: one for all points together, and one per box. Empty: all masks, automatically."""

    points: tuple[Point, ...] = ()
    boxes: tuple[Box, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.points or self.boxes)


@dataclass(frozen=True)
class MasksOptions:
    """How masks are made: the automatic generator's settings, or prompts; the weights and the device."""

    masks: MasksConfig = field(default_factory=MasksConfig)
    prompts: Prompts = Prompts()
    all_masks: bool = False  # of a prompt's three masks (whole, part, subpart) keep all, not only the best
    weights: str = "mobile_sam"
    device: str = "auto"
    precision: str = "fp32"
    overlay: bool = False
    release: ReleaseConfig = field(default_factory=ReleaseConfig)  # the frame of profile sa1b's masks
    full_frame: bool = False  # masks in the photograph's own frame, and crops from its own pixels


@dataclass(frozen=True)
class Frame:
    """What masks are made from, both (H, W, 3) uint8 RGB.

    `image` is the frame of all coordinates and limits; crops are cut from `original`, if there is one.
    """

    image: Pixels
    original: Pixels | None = None


@dataclass(frozen=True)
class ImageResult:
    """The result for one photograph: where its masks were written, or the error.

    `frame` and `source` are widths and heights in pixels: of the frame of the masks, and of the upright photograph.
    """

    image: str
    output: str | None = None
    overlay: str | None = None
    masks: int = 0
    seconds: float = 0.0
    error: str | None = None
    frame: tuple[int, int] | None = None
    source: tuple[int, int] | None = None


def masks_config(profile: str, overrides: Sequence[str]) -> MasksConfig:
    """Return the settings of a profile with overrides "K=V"; K is a key of `masks:`, with or without that prefix.

    Raises one `UsageError` that lists every wrong key and value.
    """
    document = Document({"profile": profile}, {}, "--set")
    for override in overrides:
        apply_override(document, override.strip().removeprefix("masks."))
    settings = check(document, MasksConfig)
    if settings.drop_redaction_artifacts != "auto":
        raise UsageError(
            f"masks.drop_redaction_artifacts is {settings.drop_redaction_artifacts}: expected nothing, since it is for "
            "builds alone: no redacted regions are known of these images"
        )
    return settings


def release_config(overrides: Sequence[str]) -> ReleaseConfig:
    """Return the released frame with overrides "release.K=V" of `short_side` and `jpeg_quality`.

    Raises one `UsageError` that lists every wrong key and value.
    """
    document = Document({}, {}, "--set")
    for override in overrides:
        apply_override(document, override.strip().removeprefix(RELEASE))
    settings = check(document, ReleaseConfig)
    if settings.format != "images":
        raise UsageError(
            f"release.format is {settings.format}: expected nothing, since it is for builds alone: no image is written"
        )
    return settings


def plan_outputs(images: Sequence[str], output: str) -> list[tuple[str, str]]:
    """Return each image with the path of its JSON: `output` itself for one image, a file in it for several.

    One image goes into a folder too if `output` is an existing folder, or ends with a slash. Raises `UsageError`
    if two images would go to one file, or one would overwrite an image.
    """
    into_folder = len(images) > 1 or output.endswith("/") or ("://" not in output and Path(output).is_dir())
    if len(images) > 1 and "://" not in output and Path(output).is_file():
        raise UsageError(f"-o {output} is a file: expected a folder, for {len(images)} images")
    taken: dict[str, str] = {}
    for image in images:
        target = join(output.rstrip("/") or "/", f"{PurePosixPath(image).stem}.json") if into_folder else output
        if target in taken:
            raise UsageError(
                f"{taken[target]} and {image} would both be written to {target}: "
                "give them names that differ before the ending, or run the command once for each"
            )
        if target in images or ("://" not in target and _same_file(target, images)):
            raise UsageError(f"-o {output} would write over the image {target}: expected another file or a folder")
        taken[target] = image
    return [(image, target) for target, image in taken.items()]


def _same_file(target: str, images: Sequence[str]) -> bool:
    return any("://" not in image and Path(image).resolve() == Path(target).resolve() for image in images)


def make_masks(
    images: Sequence[str], output: str, options: MasksOptions, report: Callable[[ImageResult], None]
) -> list[ImageResult]:
    """Write the masks of each image, a path or URI; a bad image gives a result with its error.

    `report` is called with each result as it comes. Raises `UsageError` before anything is written if the
    arguments do not fit together, and for prompts outside an image.
    """
    targets = plan_outputs(images, output)
    storage = Storage()
    predictor = Predictor(load_model(resolve(options.weights), resolve_compute(options.device, options.precision)))
    results = []
    for number, (image, target) in enumerate(targets, start=1):
        started = time.monotonic()
        try:
            result = _one_image(storage, predictor, number, image, target, options)
        except UsageError:
            raise
        except RejectedError as verdict:
            result = ImageResult(image, error=f"{verdict.reason}: {verdict.detail}")
        except (SegmintError, OSError, MemoryError) as error:
            result = ImageResult(image, error=str(error) or "there is not enough memory for it")
        results.append(replace(result, seconds=round(time.monotonic() - started, 3)))
        report(results[-1])
    return results


def _one_image(
    storage: Storage, predictor: Predictor, number: int, name: str, target: str, options: MasksOptions
) -> ImageResult:
    if "://" not in name and Path(name).is_dir():
        raise IsADirectoryError(
            f"{name} is a folder: expected an image; name its files, as in {name.rstrip('/')}/*.jpg"
        )
    pixels = ingest(storage.read(name, max_bytes=_INGEST.max_bytes), _INGEST).image
    prompts, frame = options.prompts, Frame(pixels)
    if prompts:
        check_prompts(prompts, name, pixels.shape[0], pixels.shape[1])
        found = prompted_masks(predictor, pixels, prompts, options)
    else:
        frame = frame_of(pixels, options)
        found = automatic_masks(predictor, frame, options.masks)
    height, width = frame.image.shape[:2]
    document = sa1b_document(number, PurePosixPath(name).name, (height, width), found)
    _write(Location(storage, target), document + b"\n")
    picture = None
    if options.overlay:
        picture = f"{target.removesuffix('.json')}.overlay.png"
        drawn = draw_overlay(frame.image, [mask.record for mask in found])
        _write(Location(storage, picture), encode_png(draw_prompts(drawn, prompts.points, prompts.boxes)))
    source = (pixels.shape[1], pixels.shape[0])
    return ImageResult(name, target, overlay=picture, masks=len(found), frame=(width, height), source=source)


def frame_of(image: Pixels, options: MasksOptions) -> Frame:
    """Return what automatic masks of an upright photograph, (H, W, 3) uint8 RGB, are made from.

    Of a photograph larger than `release.short_side`, profile sa1b takes what a build without redactions takes: the
    pixels of the released JPEG and, where the crops need more of them, of the original's. Raises `RejectedError`
    (`too_large`) for a side that a JPEG cannot have.
    """
    crops, settings = options.masks.original_crops, options.release
    height, width = image.shape[:2]
    if options.full_frame or options.masks.profile != "sa1b" or min(width, height) <= settings.short_side:
        return Frame(image)
    finest = resized(image, largest_size(width, height, settings.short_side, crops))
    released = release(finest, settings)
    is_larger = (finest.shape[1], finest.shape[0]) != (released.width, released.height)
    return Frame(decode_jpeg(released.jpeg), decode_jpeg(encode_original(finest)) if is_larger else None)


def _write(file: Location, data: bytes) -> None:
    if "://" not in file.uri:
        Path(file.uri).parent.mkdir(parents=True, exist_ok=True)
    file.put(data)


@dataclass(frozen=True)
class Found:
    """A mask with its prompting points: one of the grid, all that were given, or none for a box."""

    record: MaskRecord
    points: tuple[tuple[float, float], ...]


def automatic_masks(predictor: Predictor, frame: Frame, config: MasksConfig) -> list[Found]:
    """Return all masks of an image, in its frame."""
    records = MaskGenerator(predictor, config.settings()).generate(frame.image, frame.original).records
    return [Found(record, (record.point_coords,)) for record in records]


def prompted_masks(predictor: Predictor, image: Pixels, prompts: Prompts, options: MasksOptions) -> list[Found]:
    """Return the masks asked for, points first, then boxes; of each prompt's three the one with the best predicted IoU.

    With `all_masks` all three, best first.
    """
    embedding = predictor.embed(image)
    found: list[Found] = []
    for arguments, points in _prompt_arguments(prompts):
        predicted = predictor.predict(embedding, **arguments, multimask=True)
        ranking = predicted.predicted_iou[0].argsort(descending=True, stable=True).tolist()
        for index in ranking if options.all_masks else ranking[:1]:
            logits = predicted.low_res_logits[:, index : index + 1]
            iou = float(predicted.predicted_iou[0, index])
            offset = options.masks.stability_score_offset
            found.append(_found(predictor, embedding, logits, iou, points, offset))
    return found


def _prompt_arguments(
    prompts: Prompts,
) -> Iterator[tuple[dict[str, NDArray[Any]], tuple[tuple[float, float], ...]]]:
    if prompts.points:
        coordinates = tuple((x, y) for x, y, _ in prompts.points)
        labels = [label for _, _, label in prompts.points]
        yield (
            {"points": np.array([coordinates], np.float32), "labels": np.array([labels], np.int64)},
            coordinates,
        )
    for x, y, width, height in prompts.boxes:
        yield {"boxes": np.array([[x, y, x + width, y + height]], np.float32)}, ()


def _found(
    predictor: Predictor,
    embedding: Embedding,
    low_res: Any,
    iou: float,
    points: tuple[tuple[float, float], ...],
    offset: float,
) -> Found:
    logits = predictor.upscale(low_res, embedding)[0]
    stability = float(stability_scores(logits, offset)[0])
    mask = (logits[0] > 0).cpu().numpy()
    height, width = mask.shape
    record = MaskRecord(
        segmentation=encode(mask),
        area=int(mask.sum()),
        bbox=xyxy_to_xywh(box_of(mask)),
        predicted_iou=iou,
        stability_score=0.0 if math.isnan(stability) else stability,
        crop_box=(0, 0, width, height),
        point_coords=points[0] if points else (math.nan, math.nan),
    )
    return Found(record, points)


def check_prompts(prompts: Prompts, image: str, height: int, width: int) -> None:
    """Raise `UsageError` for a point outside the image, and for a box without a pixel in common with it."""
    for x, y, _ in prompts.points:
        if not (0 <= x <= width and 0 <= y <= height):
            raise UsageError(f"--point {x:g},{y:g} lies outside {image}, which is {width} x {height} pixels")
    for x, y, box_width, box_height in prompts.boxes:
        if x >= width or y >= height or x + box_width <= 0 or y + box_height <= 0:
            text = f"{x:g},{y:g},{box_width:g},{box_height:g}"
            raise UsageError(f"--box {text} lies outside {image}, which is {width} x {height} pixels")


def sa1b_document(image_id: int, file_name: str, size: tuple[int, int], masks: Sequence[Found]) -> bytes:
    """Return the JSON of one image of `size` (height, width) as in SA-1B's files; raises `RejectedError` like a build.

    That is for more masks than there are ids for.
    """
    check_count(len(masks))
    rows = [mask_row(mask.record) | {"point_coords": [[float(x), float(y)] for x, y in mask.points]} for mask in masks]
    return annotations_json(image_id, file_name, size, rows)
