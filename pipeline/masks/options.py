"""Options of `segmint masks`: settings, prompts, and frame. Doesn't import torch, so invalid input fails fast.

Pixels from which masks are made: the photograph's own, or those that a build would release.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from segmint.infra.arrays import Pixels
from segmint.infra.errors import UsageError
from segmint.operators.images import decode_jpeg
from segmint.operators.prepare.release import ReleaseConfig, encode_original, largest_size, release, resized
from segmint.operators.segment.mask_config import MasksConfig
from segmint.pipeline.config.yaml_file import Document, apply_override, check

if TYPE_CHECKING:
    from segmint.pipeline.masks.images import PhotographBoxes


Point = tuple[float, float, int]
"""x and y in pixels of the upright photograph, and a label: 1 for foreground, 0 for background."""
Box = tuple[float, float, float, float]
"""x, y, width, and height in pixels of the upright photograph."""

RELEASE = "release."
"""Prefix of overrides for the released frame, as in a build's configuration."""

_NUMBER = re.compile(r"-?\d+(\.\d*)?|-?\.\d+", re.ASCII)
_LARGEST = 1e6  # pixels; no photograph is larger, and OpenCV draws with 32-bit coordinates
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?", re.ASCII)


@dataclass(frozen=True)
class PhotographPrompt:
    """Prompt for one mask: points, a box, or both."""

    points: tuple[Point, ...] = ()
    box: Box | None = None

    def __str__(self) -> str:
        boxes = [] if self.box is None else ["box:" + _text(self.box)]
        return " ".join([*boxes, *(f"point:{_text(point)}" for point in self.points)])


@dataclass(frozen=True)
class MasksOptions:
    """Options of a run: the automatic generator's settings or prompts, the weights, and the device."""

    masks: MasksConfig = field(default_factory=MasksConfig)
    prompts: tuple[PhotographPrompt, ...] = ()  # one mask each; empty means automatic masks
    all_masks: bool = False  # keep all three masks of a prompt (whole, part, subpart) instead of the best
    weights: str = "mobile_sam"
    device: str = "auto"
    precision: str = "fp32"
    overlay: bool = False
    cutouts: bool = False
    release: ReleaseConfig = field(default_factory=ReleaseConfig)  # released frame, for masks with the sa1b profile
    full_frame: bool = False  # use the photograph's own frame, and cut crops from its pixels
    boxes: "PhotographBoxes | None" = None  # one mask each, in place of `prompts`

    @property
    def prompts_each(self) -> int:
        """Number of prompts per photograph, a mean for `boxes`. 0 means automatic masks."""
        return len(self.prompts) if self.boxes is None else self.boxes.mean

    @property
    def in_released_frame(self) -> bool:
        """True if large photographs are scaled to the frame that a build releases."""
        return not (self.prompts_each or self.full_frame) and self.masks.profile == "sa1b"

    def settings(self, weights_sha256: str) -> dict[str, Any]:
        """Return the settings that determine a photograph's masks, as JSON values.

        The device isn't included, because it only affects the last bits of floating-point results.
        """
        found: dict[str, Any] = {"weights_sha256": weights_sha256, "precision": self.precision}
        if self.boxes is not None:
            found["boxes"] = self.boxes.sha256
        if self.prompts:
            found |= {"prompts": [str(prompt) for prompt in self.prompts], "all_masks": self.all_masks}
        if self.prompts_each:
            return {**found, "masks": {"stability_score_offset": self.masks.stability_score_offset}}
        found["masks"] = self.masks.model_dump(mode="json", exclude={"drop_redaction_artifacts"})
        found["release"] = "the photograph's own frame"
        if self.in_released_frame:
            found["release"] = self.release.model_dump(mode="json", include={"short_side", "jpeg_quality"})
        return found


def masks_config(profile: str, overrides: Sequence[str]) -> MasksConfig:
    """Return a profile's settings without crops, changed by the overrides "K=V".

    K is a key of `masks:`, optionally with the prefix `masks.`. Raises a single `UsageError` for all invalid overrides.
    """
    document = Document({"profile": profile, "crop_n_layers": 0}, {}, "--set")
    for override in overrides:
        apply_override(document, override.strip().removeprefix("masks."))
    settings = check(document, MasksConfig)
    if settings.drop_redaction_artifacts != "auto":
        raise UsageError(
            f"masks.drop_redaction_artifacts is {settings.drop_redaction_artifacts}, but only builds support "
            "it, because these images have no known redacted regions. Remove it."
        )
    return settings


def release_config(overrides: Sequence[str]) -> ReleaseConfig:
    """Return the settings of the released frame, changed by overrides "release.K=V" of `short_side` and `jpeg_quality`.

    Raises a single `UsageError` that lists all invalid keys and values.
    """
    document = Document({}, {}, "--set")
    for override in overrides:
        apply_override(document, override.strip().removeprefix(RELEASE))
    settings = check(document, ReleaseConfig)
    if settings.format != "images":
        raise UsageError(
            f"release.format is {settings.format}, but only builds support it: masks writes no images. Remove it."
        )
    return settings


def check_device(device: str) -> None:
    """Raise `UsageError` if `device` is not a valid device name."""
    if not _DEVICE.fullmatch(device):
        raise UsageError(f"unknown device {device!r}: expected auto, cpu, cuda, or cuda:N")


def read_prompts(points: Sequence[str], boxes: Sequence[str], prompts: Sequence[str]) -> tuple[PhotographPrompt, ...]:
    """Parse the options `--point`, `--box`, and `--prompt`, and return the prompts.

    All points and a single box together form one prompt. Several boxes are separate prompts. Raises `UsageError` if a
    value is invalid, if points are combined with several boxes, or if a prompt consists only of background points.
    """
    if prompts and (points or boxes):
        raise UsageError(
            "--prompt can't be combined with --point or --box. A --prompt can contain both, as in "
            "--prompt 'box:10,20,300,200 point:150,90'"
        )
    if points and len(boxes) > 1:
        raise UsageError(
            f"--point with {len(boxes)} --box options: expected one box, because they form one prompt. For several "
            "masks, repeat --prompt, as in --prompt 'box:10,20,300,200 point:150,90'"
        )
    own = tuple(parse_point(text) for text in points)
    found = [PhotographPrompt(own, parse_box(box)) for box in boxes]
    if not found and own:
        found = [PhotographPrompt(own)]
    found += [parse_prompt(prompt) for prompt in prompts]
    for prompt in found:
        if prompt.box is None and not any(label for _, _, label in prompt.points):
            raise UsageError(
                f"the prompt '{prompt}' only has background points, which don't say what to segment. Add a "
                "foreground point (X,Y,1) or a box."
            )
    return tuple(found)


def parse_prompt(text: str) -> PhotographPrompt:
    """Parse "box:X,Y,W,H point:X,Y[,LABEL] …" with at most one box. Raises `UsageError` for any other text."""
    points: list[Point] = []
    box: Box | None = None
    for word in text.split():
        kind, _, numbers = word.partition(":")
        if kind == "point":
            points.append(parse_point(numbers))
        elif kind == "box" and box is None:
            box = parse_box(numbers)
        else:
            points.clear()
            break
    else:
        if points or box is not None:
            return PhotographPrompt(tuple(points), box)
    raise UsageError(
        f"--prompt {text!r}: expected at most one box:X,Y,W,H and any number of point:X,Y or point:X,Y,LABEL, "
        "separated by spaces"
    )


def parse_point(text: str) -> Point:
    """Parse "X,Y" or "X,Y,LABEL". Raises `UsageError` for any other text."""
    numbers = _numbers(text)
    if len(numbers) not in (2, 3) or (len(numbers) == 3 and numbers[2] not in (0, 1)):
        raise UsageError(f"--point {text!r}: expected X,Y or X,Y,LABEL in pixels; LABEL is 1 (foreground) or 0")
    return numbers[0], numbers[1], int(numbers[2]) if len(numbers) == 3 else 1


def parse_box(text: str) -> Box:
    """Parse "X,Y,W,H". Raises `UsageError` for any other text."""
    numbers = _numbers(text)
    if len(numbers) != 4 or numbers[2] <= 0 or numbers[3] <= 0:
        raise UsageError(f"--box {text!r}: expected X,Y,W,H in pixels, with positive width and height")
    return numbers[0], numbers[1], numbers[2], numbers[3]


def _numbers(text: str) -> list[float]:
    parts = [part.strip() for part in text.split(",")]
    if not all(_NUMBER.fullmatch(part) and abs(float(part)) < _LARGEST for part in parts):
        return []
    return [float(part) for part in parts]


class PromptOutsideError(UsageError):
    """Error for a prompt outside a photograph."""


def check_prompts(prompts: Sequence[PhotographPrompt], image: str, height: int, width: int) -> None:
    """Raise `PromptOutsideError` for a point outside the image or a box that reaches beyond the image."""
    for prompt in prompts:
        for point in prompt.points:
            if not (0 <= point[0] <= width and 0 <= point[1] <= height):
                raise PromptOutsideError(f"point {_text(point[:2])} is outside {image} ({width} x {height} pixels)")
        if prompt.box is not None:
            x, y, box_width, box_height = prompt.box
            if min(x, y) < 0 or x + box_width > width or y + box_height > height:
                raise PromptOutsideError(
                    f"box {_text(prompt.box)} is outside {image} ({width} x {height} pixels), at least in part: "
                    "expected X,Y,W,H, which are its left and top edge, width, and height"
                )


def _text(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:.15g}" for number in numbers)


@dataclass(frozen=True)
class Frame:
    """Input of mask generation: pixels as (H, W, 3) uint8 RGB.

    All coordinates and limits refer to the frame of `image`. If `original` is set, crops are cut from it.
    """

    image: Pixels
    original: Pixels | None = None


def frame_of(image: Pixels, options: MasksOptions) -> Frame:
    """Return the input pixels for the masks of `image`, an upright photograph as (H, W, 3) uint8 RGB.

    If a photograph's short side exceeds `release.short_side`, automatic masks of the sa1b profile use the same input as
    a build without redactions. This input is the pixels of the released JPEG and, if the crops need a higher
    resolution, the pixels of the original. In all other cases, the input is the photograph itself. Raises
    `RejectedError` (`too_large`) if a side exceeds the JPEG limit.
    """
    crops, settings = options.masks.original_crops, options.release
    height, width = image.shape[:2]
    if not options.in_released_frame or min(width, height) <= settings.short_side:
        return Frame(image)
    finest = resized(image, largest_size(width, height, settings.short_side, crops))
    released = release(finest, settings)
    is_larger = (finest.shape[1], finest.shape[0]) != (released.width, released.height)
    return Frame(decode_jpeg(released.jpeg), decode_jpeg(encode_original(finest)) if is_larger else None)
