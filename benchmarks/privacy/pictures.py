"""Pictures whose faces and plates were marked by eye, and pictures made from them with the marks moved along."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segmint.infra.arrays import Box
from segmint.model.detectors.detection import bounds

Kind = Literal["face", "plate"]
Points = NDArray[np.float64]
Pixels = NDArray[np.uint8]

TRUTH = Path(__file__).with_name("truth.json")
"""Marks of scikit-image's pictures, in the same format as the photographs' `truth.json`."""

ANGLES = (0, 45, 90, 135, 180, 270)
"""Angles in degrees by which pictures are turned counterclockwise."""

SMALLEST = 20.0
"""Mean side in pixels of the smallest mark that detectors should find. Smaller marks count as hard."""

COMPOSITES = 40
"""Number of composites. Each kind in `_KINDS` has the same number."""

_SIDE = 1024  # maximum length of a composite's shorter side in pixels


@dataclass(frozen=True)
class Mark:
    """Mark of a face or plate, with the points (N, 2) x, y of its outline in pixels.

    Detectors don't have to find a hard mark. `view` says how a face is seen, if that is known.
    """

    kind: Kind
    points: Points
    hard: bool
    view: str | None = None

    @property
    def box(self) -> Box:
        """Upright box around the outline."""
        return bounds(self.points.tolist())

    @property
    def side(self) -> float:
        """Geometric mean of the box's sides in pixels."""
        x0, y0, x1, y1 = self.box
        return float(np.sqrt((x1 - x0) * (y1 - y0)))


@dataclass(frozen=True)
class Picture:
    """Picture, (H, W, 3) uint8 RGB, with its marks.

    `change` describes how it was made from its sources: an angle, or a kind of composite.
    """

    name: str
    change: str
    pixels: Pixels
    marks: tuple[Mark, ...]

    def mapped(self, matrix: Points, size: tuple[int, int]) -> "Picture":
        """Apply a projective map (3, 3) to the picture, on a black background of `size` (width, height)."""
        pixels = cv2.warpPerspective(self.pixels, matrix, size, flags=cv2.INTER_LINEAR)
        marks = tuple(
            replace(mark, points=cv2.perspectiveTransform(mark.points[None], matrix)[0]) for mark in self.marks
        )
        return replace(self, pixels=np.asarray(pixels, np.uint8), marks=marks)

    def resized(self, scale: float) -> "Picture":
        """Scale the picture, with averaging if it shrinks."""
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        pixels = np.asarray(cv2.resize(self.pixels, None, fx=scale, fy=scale, interpolation=method), np.uint8)
        back = np.array([pixels.shape[1] / self.pixels.shape[1], pixels.shape[0] / self.pixels.shape[0]])
        marks = tuple(replace(mark, points=mark.points * back) for mark in self.marks)
        return replace(self, pixels=pixels, marks=marks)

    def marks_at(self, x: int, y: int) -> tuple[Mark, ...]:
        """Return the marks in a frame in which the picture's top left pixel is at (x, y)."""
        return tuple(replace(mark, points=mark.points + np.array([x, y])) for mark in self.marks)

    def turned(self, angle: float) -> "Picture":
        """Turn the picture counterclockwise. The frame grows to contain the whole picture.

        Multiples of 90 degrees only move pixels. Other angles leave black corners.
        """
        height, width = self.pixels.shape[:2]
        matrix = np.vstack([cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1), [0, 0, 1]])
        across, down = (abs(np.round(matrix[:2, :2], 12)) @ [width, height]).tolist()
        matrix[:2, 2] += (across - width) / 2, (down - height) / 2
        if angle % 90:
            return self.mapped(matrix, (round(across), round(down)))
        pixels = np.ascontiguousarray(np.rot90(self.pixels, int(angle) // 90))
        moved = replace(self, pixels=np.zeros((1, 1, 3), np.uint8)).mapped(matrix, (1, 1))
        return replace(self, pixels=pixels, marks=moved.marks)


def photographs(folder: Path | None) -> Iterator[Picture]:
    """Yield the marked photographs of a folder with a `truth.json`, and scikit-image's pictures, all unchanged.

    Raises SystemExit if a photograph's size has changed since it was marked.
    """
    from skimage import data

    for name, truth in json.loads((folder / "truth.json").read_text()).items() if folder is not None else ():
        with Image.open(folder / name) as image:
            yield marked(name.partition(".")[0], np.asarray(image.convert("RGB")), truth)
    for name, truth in json.loads(TRUTH.read_text()).items():
        found: Any = getattr(data, name)()
        pixels = found[0] if isinstance(found, tuple) else found
        yield marked(name, np.asarray(Image.fromarray(pixels).convert("RGB")), truth)


def marked(name: str, pixels: Pixels, truth: dict[str, Any]) -> Picture:
    """Return a photograph with the marks of its entry in a `truth.json`, which may lack either kind.

    Raises SystemExit if the photograph's size has changed since it was marked.
    """
    if [pixels.shape[1], pixels.shape[0]] != truth["size"]:
        raise SystemExit(f"{name} has {pixels.shape[1]} x {pixels.shape[0]} pixels: expected {truth['size']}")
    marks = []
    for each in truth.get("faces", ()):
        marks.append(Mark("face", _ellipse(*each["box"]), each["hard"], each.get("view")))
    for each in truth.get("plates", ()):
        corners = each.get("quad")
        points = _rectangle(*each["box"]) if corners is None else np.array(corners, float)
        marks.append(Mark("plate", points, each["hard"]))
    return Picture(name, "0", pixels, tuple(marks))


def _ellipse(x: float, y: float, w: float, h: float) -> Points:
    """Return 32 points of the ellipse inside a face's box. The box around it stays tight when the ellipse is turned."""
    angles = np.arange(32) * np.pi / 16
    return np.stack([x + w / 2 * (1 + np.cos(angles)), y + h / 2 * (1 + np.sin(angles))], axis=1)


def _rectangle(x: float, y: float, w: float, h: float) -> Points:
    return np.array([(x, y), (x + w, y), (x + w, y + h), (x, y + h)], float)


def turned(pictures: Sequence[Picture]) -> Iterator[Picture]:
    """Yield each picture at each of `ANGLES`."""
    for picture in pictures:
        for angle in ANGLES:
            yield replace(picture.turned(angle), change=str(angle))


def composites(pictures: Sequence[Picture], seed: int = 0) -> Iterator[Picture]:
    """Yield `COMPOSITES` pictures made from `pictures`. The same seed results in the same composites.

    Half of each kind are made from pictures with marks, in turns, and the other half from pictures without marks.
    """
    marked = [each for each in pictures if any(not mark.hard for mark in each.marks)]
    empty = [each for each in pictures if not each.marks]
    random = np.random.default_rng(seed)
    for number in range(COMPOSITES):
        turn, index = divmod(number, len(_KINDS))
        kind, group = _KINDS[index], (marked, empty)[turn % 2]
        first = group[(turn // 2 * len(_KINDS) + index) % len(group)]
        others = [pictures[place] for place in random.integers(len(pictures), size=3)]
        made = _limited(_MAKERS[kind](_limited(first), [_limited(each) for each in others], random))
        yield replace(made, name=f"composite {number:02d}", change=kind)


def _limited(picture: Picture) -> Picture:
    return picture.resized(min(1.0, _SIDE / min(picture.pixels.shape[:2])))


def _turn(first: Picture, _: Sequence[Picture], random: np.random.Generator) -> Picture:
    """Turn the picture by a random angle."""
    return first.turned(float(random.uniform(1, 359)))


def _tile(first: Picture, others: Sequence[Picture], random: np.random.Generator) -> Picture:
    """Arrange four pictures of the same height in two rows, in a random order."""
    height = int(random.integers(280, 512))
    four = [each.resized(height / each.pixels.shape[0]) for each in (first, *others)]
    four = [four[index] for index in random.permutation(4)]
    width = max(sum(each.pixels.shape[1] for each in pair) for pair in (four[:2], four[2:]))
    pixels = np.zeros((2 * height, width, 3), np.uint8)
    marks: list[Mark] = []
    for row in (0, 1):
        x = 0
        for each in four[2 * row : 2 * row + 2]:
            piece = each.pixels[:height]
            pixels[row * height : row * height + len(piece), x : x + piece.shape[1]] = piece
            marks += each.marks_at(x, row * height)
            x += piece.shape[1]
    return replace(first, pixels=pixels, marks=tuple(marks))


def _shrink(first: Picture, _: Sequence[Picture], random: np.random.Generator) -> Picture:
    """Shrink the picture to between a quarter and two thirds, and put it on a gray background of the original size."""
    small = first.resized(float(random.uniform(1 / 4, 2 / 3)))
    return _placed(small, np.full_like(first.pixels, int(random.integers(60, 200))), random)


def _darken(first: Picture, _: Sequence[Picture], random: np.random.Generator) -> Picture:
    """Darken the picture to between a twentieth and a third, and add noise with a standard deviation of 2."""
    dark = first.pixels * random.uniform(0.05, 0.33) + random.normal(0, 2, first.pixels.shape)
    return replace(first, pixels=np.clip(np.rint(dark), 0, 255).astype(np.uint8))


def _screen(first: Picture, others: Sequence[Picture], random: np.random.Generator) -> Picture:
    """Show the picture on a screen with a dark frame at an angle, inside a picture without marks or before a wall."""
    wall = replace(first, pixels=np.full((400, 600, 3), 90, np.uint8), marks=())
    ground = next((each for each in others if not each.marks), wall)
    ground = ground.resized(900 / ground.pixels.shape[0])
    height, width = first.pixels.shape[:2]
    pixels = cv2.copyMakeBorder(first.pixels, 16, 16, 16, 16, cv2.BORDER_CONSTANT, value=(25, 25, 25))
    frame = replace(first, pixels=np.asarray(pixels, np.uint8), marks=first.marks_at(16, 16))
    size = ground.pixels.shape[1], ground.pixels.shape[0]
    scale = min(0.8 * size[0] / (width + 32), 0.8 * size[1] / (height + 32))
    corners = _rectangle(0, 0, width + 32, height + 32)
    seen = corners * scale + random.uniform(0, 1, 2) * (np.array(size) - corners[2] * scale)
    seen = np.clip(seen + random.uniform(-0.06, 0.06, (4, 2)) * corners[2] * scale, 0, np.array(size) - 1)
    matrix = cv2.getPerspectiveTransform(corners.astype(np.float32), seen.astype(np.float32)).astype(np.float64)
    shown = frame.mapped(matrix, size)
    inside = np.zeros(ground.pixels.shape[:2], np.uint8)
    cv2.fillConvexPoly(inside, seen.round().astype(np.int32), 1)
    return replace(shown, pixels=np.where(inside[..., None] == 1, shown.pixels, ground.pixels))


def _placed(small: Picture, ground: Pixels, random: np.random.Generator) -> Picture:
    height, width = small.pixels.shape[:2]
    x, y = (int(random.integers(0, end + 1)) for end in (ground.shape[1] - width, ground.shape[0] - height))
    ground[y : y + height, x : x + width] = small.pixels
    return replace(small, pixels=ground, marks=small.marks_at(x, y))


_MAKERS = {"turned": _turn, "tiled": _tile, "shrunk": _shrink, "darkened": _darken, "on a screen": _screen}
_KINDS = tuple(_MAKERS)
