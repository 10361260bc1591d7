"""Scenes composed of scikit-image's textures: a background and a few smooth shapes, with their exact masks."""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage import data

Textures = Literal["known", "new"]

SIDE = 512
TEXTURES: dict[Textures, tuple[str, ...]] = {
    "known": ("brick", "grass", "gravel"),
    "new": ("moon", "immunohistochemistry", "page", "hubble_deep_field"),
}
"""Textures for training, and textures that no training scene contains. All are gray, with equal mean and deviation."""

MEAN, DEVIATION = 128, 45

SHAPES = (2, 3)
AREAS = (0.05, 0.25)
PARTS = (1.0, 1.6)
"""Range for the side of a texture's visible part, in sides of a scene. Bricks and stones then look small in a shape."""

VISIBLE = 0.6
HARMONICS = 4


@dataclass(frozen=True)
class LabeledScene:
    """Scene, (H, W, 3) uint8 RGB, with its known masks (N, H, W) bool."""

    name: str
    pixels: NDArray[np.uint8]
    masks: NDArray[np.bool_]


def compose(textures: Textures, count: int, seed: int) -> list[LabeledScene]:
    """Compose scenes, which only depend on the seed and the textures."""
    rng = np.random.default_rng([seed, list(TEXTURES).index(textures)])
    sources = {name: _gray(name) for name in TEXTURES[textures]}
    return [_scene(f"{textures}-{number}", sources, rng) for number in range(count)]


def _scene(name: str, sources: dict[str, NDArray[np.uint8]], rng: np.random.Generator) -> LabeledScene:
    names = list(sources)
    ground = rng.choice(names)
    picture = _sheet(sources[ground], rng)
    wanted = int(rng.integers(SHAPES[0], SHAPES[1] + 1))
    masks: list[NDArray[np.bool_]] = []
    under: list[str] = []
    while len(masks) < wanted:
        shape = smooth_shape(rng)
        later = [mask & ~shape for mask in masks]
        covered = [mask.sum() < VISIBLE * before for mask, before in zip(later, map(np.sum, masks), strict=True)]
        touched = {ground, *(at for at, mask in zip(under, masks, strict=True) if (mask & shape).any())}
        choices = [name for name in names if name not in touched]
        if any(covered) or not choices:
            continue
        texture = str(rng.choice(choices))
        picture = np.where(shape, _sheet(sources[texture], rng), picture)
        masks, under = [*later, shape], [*under, texture]
    return LabeledScene(name, np.repeat(picture[..., None], 3, axis=2), np.stack(masks))


def smooth_shape(rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw a region (SIDE, SIDE) bool at a random place, bounded by a circle with random waves."""
    angles = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    radius = np.ones_like(angles)
    for harmonic in range(1, HARMONICS + 1):
        radius += rng.uniform(0, 0.5 / harmonic) * np.cos(harmonic * angles + rng.uniform(0, 2 * np.pi))
    radius = radius.clip(0.3) / np.sqrt((radius.clip(0.3) ** 2).mean())
    radius *= SIDE * np.sqrt(rng.uniform(*AREAS) / np.pi)
    x, y = rng.uniform(0.2 * SIDE, 0.8 * SIDE, size=2)
    outline = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)
    drawn = np.zeros((SIDE, SIDE), np.uint8)
    cv2.fillPoly(drawn, [outline.round().astype(np.int32)], 1)
    return drawn.astype(bool)


def _sheet(source: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Cut a random part of a texture at a scene's size, rotated, mirrored, and slightly darker or brighter."""
    part = int(SIDE * rng.uniform(*PARTS))
    y, x = (int(rng.integers(0, side - part + 1)) for side in source.shape)
    sheet = np.rot90(source[y : y + part, x : x + part], int(rng.integers(4)))
    sheet = sheet[:, ::-1] if rng.random() < 0.5 else sheet
    sheet = cv2.resize(np.ascontiguousarray(sheet), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return np.asarray((sheet.astype(np.float64) * rng.uniform(0.85, 1.15)).clip(0, 255), np.uint8)


def _gray(name: str) -> NDArray[np.uint8]:
    """Load a texture, and extend it by reflection to the largest part that a scene shows."""
    pixels = np.asarray(getattr(data, name)())
    gray = (cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if pixels.ndim == 3 else pixels).astype(np.float64)
    gray = ((gray - gray.mean()) / gray.std() * DEVIATION + MEAN).clip(0, 255).astype(np.uint8)
    down, right = (max(0, int(SIDE * PARTS[1]) - side) for side in gray.shape)
    return np.pad(gray, ((0, down), (0, right)), mode="symmetric")
