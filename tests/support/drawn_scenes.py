"""Scenes of colored shapes whose labels, such as "red star", name one object each; some pairs are never trained on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

SIDE = 256
"""Height and width of a scene in pixels."""

COLORS = {
    "red": (215, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 70, 215),
    "yellow": (235, 215, 50),
    "purple": (140, 50, 170),
    "cyan": (60, 200, 215),
    "white": (245, 245, 245),
    "black": (15, 15, 15),
}


def _star(count: int, inner: float) -> np.ndarray:
    """Corners of a star around the origin, (2 * count, 2)."""
    angles = np.arange(2 * count) * math.pi / count - math.pi / 2
    radii = np.where(np.arange(2 * count) % 2, inner, 1.0)
    return np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]


def _cross(arm: float) -> np.ndarray:
    """Corners of a cross, (12, 2)."""
    quarter = np.array([(arm, -1.0), (arm, -arm), (1.0, -arm)])
    turns = [np.linalg.matrix_power(np.array([(0, 1), (-1, 0)]), count) for count in range(4)]
    return np.concatenate([quarter @ turn for turn in turns])


SHAPES: dict[str, np.ndarray | None] = {
    "circle": None,
    "square": np.array([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]),
    "triangle": _star(3, 0.5),
    "star": _star(5, 0.42),
    "cross": _cross(0.36),
    "ring": None,
    "bar": np.array([(-1, -0.4), (1, -0.4), (1, 0.4), (-1, 0.4)]),
    "moon": None,
}
"""Corners of each shape within the unit circle. None: a shape that is made of circles."""

PAIRS = tuple((color, shape) for color in COLORS for shape in SHAPES)
WITHHELD = tuple((color, tuple(SHAPES)[(3 * place + 2) % 8]) for place, color in enumerate(COLORS))
"""One pair of each color and of each shape, which nothing is trained on."""

TRAINED = tuple(pair for pair in PAIRS if pair not in WITHHELD)

_EMBLEMS = ("square", "triangle", "star", "cross")
"""Shapes that are drawn in the middle of a circle."""

Pair = tuple[str, str]


@dataclass(frozen=True)
class DrawnObject:
    """Object of a scene: its mask (H, W) bool, which includes what is drawn in its middle, its color, and its shape."""

    mask: np.ndarray
    color: str
    shape: str

    @property
    def label(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """A picture (256, 256, 3) uint8 RGB and its objects."""

    image: np.ndarray
    objects: Sequence[DrawnObject]


def draw_scene(seed: int, pairs: Sequence[Pair], wanted: int = 0) -> Scene:
    """Draw five to seven objects of different pairs on a noisy background; one of them is in the middle of a circle.

    Half of the scenes take all of them from four colors and five shapes, so that no color and no shape tells an object
    from the others. The scene has at least `wanted` objects of withheld pairs.
    """
    random = np.random.default_rng(seed)
    while True:
        chosen = _choose(random, pairs, wanted)
        places = None if chosen is None else _place(random, len(chosen))
        if chosen is not None and places is not None:
            return _paint(random, chosen, places)


def _choose(random: np.random.Generator, pairs: Sequence[Pair], wanted: int) -> list[Pair] | None:
    """The pairs of a scene: a circle, the emblem in its middle, and others; None if the draw fits no scene."""
    colors = set(random.permutation(list(COLORS))[: 4 if random.random() < 0.5 else 8].tolist())
    shapes = {"circle", *random.permutation(list(SHAPES))[: 4 if len(colors) == 4 else 8].tolist()}
    order = [pairs[index] for index in random.permutation(len(pairs))]
    order = [pair for pair in order if pair[0] in colors and pair[1] in shapes]
    host = next((pair for pair in order if pair[1] == "circle"), None)
    emblem = next((pair for pair in order if pair[1] in _EMBLEMS and host is not None and pair[0] != host[0]), None)
    if host is None or emblem is None:
        return None
    rest = [pair for pair in order if pair not in (host, emblem)][: int(random.integers(3, 6))]
    chosen = [host, emblem, *rest]
    return chosen if len(chosen) >= 5 and sum(pair in WITHHELD for pair in chosen) >= wanted else None


def _place(random: np.random.Generator, count: int) -> list[tuple[float, float, float]] | None:
    """Centers and radii of the objects, apart from each other but for the first two."""
    places: list[tuple[float, float, float]] = []
    for index in range(count):
        if index == 1:
            x, y, radius = places[0]
            places.append((x, y, radius * random.uniform(0.46, 0.5)))
            continue
        radius = random.uniform(44, 50) if index == 0 else random.uniform(26, 34)
        for _ in range(60):
            x, y = random.uniform(radius + 2, SIDE - radius - 2, 2)
            if all(math.hypot(x - a, y - b) > radius + r + 3 for a, b, r in places):
                places.append((float(x), float(y), radius))
                break
        else:
            return None
    return places


def _paint(random: np.random.Generator, pairs: Sequence[Pair], places: Sequence[tuple[float, float, float]]) -> Scene:
    image = np.full((SIDE, SIDE, 3), random.uniform(85, 165) + random.normal(0, 10, 3), np.float32)
    rough = random.uniform(2, 14) * random.standard_normal((16, 16, 3), np.float32)
    image += cv2.resize(rough, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    objects = []
    for (color, shape), (x, y, radius) in zip(pairs, places, strict=True):
        share = _cover(shape, x, y, radius, random.uniform(-0.4, 0.4))
        painted = np.array(COLORS[color], np.float32) + random.normal(0, 8, 3).astype(np.float32)
        image += share[..., None] * (painted - image)
        objects.append(DrawnObject(share >= 0.5, color, shape))
    image += random.uniform(1, 8) * random.standard_normal(image.shape, np.float32)
    return Scene(image.clip(0, 255).astype(np.uint8), objects)


def _cover(shape: str, x: float, y: float, radius: float, angle: float) -> np.ndarray:
    """Share of each pixel that a shape covers, (256, 256) float32."""
    drawn = np.zeros((SIDE, SIDE), np.uint8)

    def circle(dx: float, dy: float, size: float, value: int) -> None:
        center = round(16 * (x + dx * radius)), round(16 * (y + dy * radius))
        cv2.circle(drawn, center, round(16 * size * radius), value, -1, cv2.LINE_AA, shift=4)

    corners = SHAPES[shape]
    if corners is not None:
        turn = np.array([(math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))])
        points = np.round(16 * (corners @ turn * radius + (x, y))).astype(np.int32)
        cv2.fillPoly(drawn, [points], 255, cv2.LINE_AA, shift=4)
    else:
        circle(0, 0, 1, 255)
        if shape == "ring":
            circle(0, 0, 0.5, 0)
        elif shape == "moon":
            circle(0.55 * math.cos(angle), 0.55 * math.sin(angle), 0.8, 0)
    return drawn.astype(np.float32) / 255
