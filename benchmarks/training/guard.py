"""Ordinary photographs to detect forgetting: a guard set with hand-drawn or composed masks, and others for replay.

The guard set and the photographs for replay have no photograph in common. Outlines were drawn by eye, without a model,
and are in pixels of the original photograph.
"""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage import data

from benchmarks.training.scenes import LabeledScene

REPLAYED = ("astronaut", "china.jpg", "flower.jpg", "multiface.jpg", "solvay_1927.jpg", "plate_car_1.png")
"""Photographs for replay, from scikit-image, scikit-learn, and the folder of photographs."""

Ellipse = tuple[tuple[float, float], tuple[float, float], float]
Outline = tuple[tuple[int, int], ...]

ELLIPSES: dict[str, tuple[Ellipse, ...]] = {
    "coffee": (((290, 113), (236, 190), 3), ((366, 285), (80, 82), 0)),
    "chelsea": (((171, 115), (72, 62), 25), ((318, 136), (46, 56), 10)),
    "truck.jpg": (
        ((560, 738), (232, 230), 0),
        ((565, 743), (132, 132), 0),
        ((1516, 668), (224, 220), 0),
        ((1524, 672), (126, 126), 0),
    ),
    "motorcycle": (((199, 319), (152, 170), -10),),
}
"""Ellipses by photograph: center (x, y), width and height, and angle in degrees."""

OUTLINES: dict[str, tuple[Outline, ...]] = {
    "chelsea": (((240, 229), (262, 228), (292, 234), (290, 241), (268, 263), (258, 266), (250, 250)),),
    "truck.jpg": (
        ((262, 330), (616, 316), (624, 436), (234, 456)),
        ((658, 308), (806, 302), (858, 362), (862, 424), (664, 436)),
        ((950, 310), (1092, 312), (1250, 400), (1246, 436), (984, 444)),
        ((164, 524), (188, 526), (218, 580), (220, 630), (170, 632)),
    ),
    "groceries.jpg": (
        ((373, 200), (447, 204), (434, 338), (369, 337), (366, 290)),
        ((449, 180), (509, 178), (496, 268), (508, 337), (455, 341), (440, 326)),
        ((511, 187), (580, 178), (584, 337), (546, 340), (511, 322), (505, 250)),
        ((341, 451), (437, 451), (437, 473), (341, 473)),
        ((31, 398), (77, 406), (82, 424), (33, 416)),
        ((695, 404), (744, 392), (743, 411), (695, 420)),
    ),
    "dog.jpg": (
        (
            *((490, 190), (510, 165), (560, 143), (610, 138), (655, 150), (660, 170), (651, 222), (632, 244)),
            *((580, 261), (525, 254), (505, 235)),
        ),
    ),
    "rocket": (((309, 180), (312, 142), (322, 126), (332, 142), (334, 180), (331, 405), (313, 405)),),
    "motorcycle": (
        ((401, 57), (417, 57), (419, 70), (418, 92), (400, 92), (400, 70)),
        ((590, 66), (637, 67), (633, 100), (589, 99)),
        ((636, 77), (679, 79), (677, 102), (635, 100)),
        ((616, 186), (682, 186), (680, 275), (614, 272)),
    ),
}

CUT_OUT: dict[str, tuple[str, int]] = {
    "cup": ("coffee", 0),
    "bag": ("groceries.jpg", 1),
    "bowl": ("dog.jpg", 0),
    "wheel": ("truck.jpg", 0),
    "rocket": ("rocket", 0),
}
"""Objects that are pasted into other photographs, with the photograph that they come from and their mask's number in
it."""

GROUNDS = ("coffee", "chelsea", "dog.jpg", "groceries.jpg")


def guard(photographs: Path) -> list[LabeledScene]:
    """Build the guard set: drawn outlines, coins separated by brightness, and pasted objects with exact masks."""
    drawn = {name: _drawn(name, photographs) for name in dict.fromkeys([*ELLIPSES, *OUTLINES])}
    return [*drawn.values(), coins(), *_pasted(drawn)]


def replayed(photographs: Path) -> dict[str, NDArray[np.uint8]]:
    """Load the photographs for replay by name, (H, W, 3) uint8 RGB."""
    return {name: _photograph(name, photographs) for name in REPLAYED}


def coins() -> LabeledScene:
    """Return scikit-image's coins, which Otsu's threshold separates after the background is evened out."""
    gray = np.asarray(data.coins())
    even = gray.astype(np.float64) - ndimage.gaussian_filter(gray.astype(np.float64), 60)
    scaled = cv2.normalize(even, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    _, bright = cv2.threshold(cv2.GaussianBlur(scaled, (5, 5), 0), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    filled = ndimage.binary_opening(ndimage.binary_fill_holes(bright > 0), iterations=4)
    labels, count = ndimage.label(filled)
    masks = [labels == number for number in range(1, count + 1)]
    inside = [mask for mask in masks if 600 <= mask.sum() <= 5000 and not _touches_border(mask)]
    return LabeledScene("coins", np.repeat(gray[..., None], 3, axis=2), np.stack(inside))


def _drawn(name: str, photographs: Path) -> LabeledScene:
    pixels = _photograph(name, photographs)
    masks = []
    for center, size, angle in ELLIPSES.get(name, ()):
        masks.append(np.zeros(pixels.shape[:2], np.uint8))
        cv2.ellipse(masks[-1], (center, size, angle), 1, -1)
    for outline in OUTLINES.get(name, ()):
        masks.append(np.zeros(pixels.shape[:2], np.uint8))
        cv2.fillPoly(masks[-1], [np.array(outline, np.int32)], 1)
    return LabeledScene(name, pixels, np.stack(masks).astype(bool))


def _pasted(drawn: dict[str, LabeledScene]) -> list[LabeledScene]:
    rng = np.random.default_rng(0)
    scenes = []
    for ground in GROUNDS:
        pixels = drawn[ground].pixels.copy()
        height, width = pixels.shape[:2]
        masks: list[NDArray[np.bool_]] = []
        for thing, (source, number) in CUT_OUT.items():
            if source == ground:
                continue
            shape, picture = _cut(drawn[source], number, side=int(0.3 * height))
            for _ in range(100):
                y, x = (int(rng.integers(0, max(1, a - b))) for a, b in zip((height, width), shape.shape, strict=True))
                mask = np.zeros((height, width), bool)
                mask[y : y + shape.shape[0], x : x + shape.shape[1]] = shape
                if not any((mask & other).any() for other in masks):
                    pixels[mask] = picture[shape]
                    masks.append(mask)
                    break
            else:
                raise SystemExit(f"no place for the {thing} in {ground}: expected smaller or fewer things")
        scenes.append(LabeledScene(f"pasted-{ground}", pixels, np.stack(masks)))
    return scenes


def _cut(scene: LabeledScene, number: int, side: int) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
    """Crop an object. Return its mask (h, w) and pixels (h, w, 3), resized to a longer side of `side`."""
    rows, columns = (np.flatnonzero(scene.masks[number].any(axis=axis)) for axis in (1, 0))
    part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    mask, pixels = scene.masks[number][part], scene.pixels[part]
    scale = side / max(mask.shape)
    size = max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale))
    shape = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(bool)
    return shape, np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def _touches_border(mask: NDArray[np.bool_]) -> bool:
    return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def _photograph(name: str, photographs: Path) -> NDArray[np.uint8]:
    if name == "motorcycle":
        return np.asarray(data.stereo_motorcycle()[0])
    if name in ("china.jpg", "flower.jpg"):
        from sklearn.datasets import load_sample_image

        return np.asarray(load_sample_image(name))
    if "." in name:
        return np.asarray(Image.open(photographs / name).convert("RGB"))
    return np.asarray(getattr(data, name)())
