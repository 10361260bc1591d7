"""Near-duplicate thresholds set on one half of the changed photographs, and the recall on the other half.

The photographs come from scikit-image, scikit-learn, and a folder. Each photograph counts as an image, and so does each
of its tiles of 300 x 300 pixels. `set_thresholds` only uses the first half, so that the second half gives an unbiased
recall.
"""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from benchmarks.measuring import SUFFIXES
from segmint.operators.similar.clusters import DISTANCE, NONE, ImageRows, find_copies
from segmint.operators.similar.near import MIRROR, THRESHOLDS, Thresholds, image_hashes

SCIKIT_IMAGE = (
    *("astronaut", "coffee", "chelsea", "rocket", "camera", "hubble_deep_field", "immunohistochemistry", "brick"),
    *("grass", "gravel", "coins", "moon", "retina", "clock", "cell", "page", "text"),
)
TILE = 300
QUALITY = 90  # of JPEGs with a change other than re-encoding
GRID = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""Candidate correlation thresholds, from 0.5 to 0.95."""

Photographs = dict[str, Image.Image]


class Group(NamedTuple):
    """Images with all of their changed versions, as the rows of one catalog, one change after another."""

    rows: ImageRows
    thumbnails: NDArray[np.uint8]
    of: NDArray[np.int64]  # the image that each row shows
    pictures: int


def reencoded(image: Image.Image, quality: int) -> Image.Image:
    """Encode an image as a JPEG of this quality, and decode it again."""
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=quality)
    return Image.open(sink).convert("RGB")


def resized(image: Image.Image, factor: float) -> Image.Image:
    """Scale the sides of an image by `factor`."""
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(size, Image.Resampling.LANCZOS)


def cropped(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """Crop these shares of an image's sides."""
    width, height = image.size
    return image.crop(
        (round(width * left), round(height * top), round(width * (1 - right)), round(height * (1 - bottom)))
    )


def captioned(image: Image.Image, share: float, *, below: bool) -> Image.Image:
    """Add white text on a black strip to an image, over its lower edge or below it."""
    strip = max(1, round(image.height * share))
    result = Image.new("RGB", (image.width, image.height + strip * below))
    result.paste(image, (0, 0))
    draw = ImageDraw.Draw(result)
    top = result.height - strip
    draw.rectangle((0, top, result.width, result.height), fill="black")
    draw.text(
        (image.width * 0.04, top + strip * 0.2), "Photograph: A. Name, an agency", fill="white", font_size=strip // 2
    )
    return result


def brightened(image: Image.Image, factor: float) -> Image.Image:
    """Multiply an image's values by `factor`, and clip them at 255."""
    return ImageEnhance.Brightness(image).enhance(factor)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "encoded again at quality 40": lambda image: reencoded(image, 40),
    "resized to 0.5": lambda image: resized(image, 0.5),
    "resized to 0.25": lambda image: resized(image, 0.25),
    "cropped by 1% on each side": lambda image: cropped(image, 0.01, 0.01, 0.01, 0.01),
    "cropped by 2% on each side": lambda image: cropped(image, 0.02, 0.02, 0.02, 0.02),
    "cropped by 5% on each side": lambda image: cropped(image, 0.05, 0.05, 0.05, 0.05),
    "cropped by 2% on the left": lambda image: cropped(image, 0.02, 0, 0, 0),
    "cropped by 2% at the bottom": lambda image: cropped(image, 0, 0, 0, 0.02),
    "mirrored": ImageOps.mirror,
    "brightened by 1.3": lambda image: brightened(image, 1.3),
    "brightened by 1.6": lambda image: brightened(image, 1.6),
    "darkened to 0.6": lambda image: brightened(image, 0.6),
    "caption over the lower 10%": lambda image: captioned(image, 0.1, below=False),
    "caption of 10% added below": lambda image: captioned(image, 0.1, below=True),
}


def all_photographs(folder: Path | None) -> Photographs:
    """Return all photographs by name."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    found = {} if folder is None else from_folder(folder)
    found |= {name: Image.fromarray(np.asarray(getattr(data, name)())).convert("RGB") for name in SCIKIT_IMAGE}
    samples = load_sample_images()
    return found | {
        Path(name).stem: Image.fromarray(each) for name, each in zip(samples.filenames, samples.images, strict=True)
    }


def from_folder(folder: Path) -> dict[str, Image.Image]:
    """Return the photographs in a folder by name."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
    if not files:
        raise SystemExit(f"{folder} has no photographs: expected files that end in {', '.join(sorted(SUFFIXES))}")
    return {path.stem: Image.open(path).convert("RGB") for path in files}


def halves(photographs: Photographs) -> tuple[Photographs, Photographs]:
    """Split photographs into two halves, alternately, in the order of the SHA-256 of their names."""
    names = sorted(photographs, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    first, second = ({name: photographs[name] for name in names[start::2]} for start in (0, 1))
    return first, second


def pictures_of(photographs: dict[str, Image.Image]) -> list[Image.Image]:
    """Return each photograph. If it yields at least two tiles, its tiles follow."""
    found = list(photographs.values())
    for image in photographs.values():
        corners = [
            (x, y) for y in range(0, image.height - TILE + 1, TILE) for x in range(0, image.width - TILE + 1, TILE)
        ]
        if len(corners) > 1:
            found += [image.crop((x, y, x + TILE, y + TILE)) for x, y in corners]
    return found


def hashed_group(photographs: Photographs) -> Group:
    """Hash the images of photographs and their changed versions."""
    pictures = pictures_of(photographs)
    hashed = [image_hashes(np.asarray(picture), mirror=True) for picture in pictures]
    for change in CHANGES.values():
        for picture in pictures:
            changed = reencoded(change(picture), QUALITY)
            hashed.append(image_hashes(np.asarray(changed), mirror=True))
    count = len(hashed)
    original = np.arange(count) < len(pictures)
    views, no = np.stack([each.views for each in hashed]), np.zeros(count, bool)
    rows = ImageRows(np.zeros((count, 2), np.uint64), views, np.where(original, 2, 1), ~no, no)
    of = np.tile(np.arange(len(pictures)), 1 + len(CHANGES))
    return Group(rows, np.stack([each.thumbnail for each in hashed]), of, len(pictures))


def search(group: Group, thresholds: Thresholds) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Search a group. Return whether each row matches the image that it shows, and whether it matches another image."""
    kept = find_copies(group.rows, lambda numbers: group.thumbnails[numbers], DISTANCE, thresholds).kept
    same = group.of == group.of[kept]
    return (kept != NONE) & same, (kept != NONE) & ~same


def set_thresholds(group: Group) -> Thresholds:
    """Set the thresholds that fit a group of images best, among all pairs of values in `GRID`.

    A pair is valid if neither it nor any higher pair matches different images. The valid pair that finds the most
    near-duplicates wins. Ties go to the highest sum, and then to the highest first value. Raises SystemExit if no pair
    is valid.
    """
    found, confused = {}, set()
    for whole in GRID:
        for middle in GRID:
            right, wrong = search(group, Thresholds(whole, middle))
            found[Thresholds(whole, middle)] = int(right.sum())
            if wrong.any():
                confused.add(Thresholds(whole, middle))
    safe = [
        each
        for each in found
        if not any(other.whole >= each.whole and other.middle >= each.middle for other in confused)
    ]
    if not safe:
        raise SystemExit(f"different pictures are copies at the highest thresholds, {GRID[-1]}: there are none to set")
    return max(safe, key=lambda each: (found[each], round(sum(each), 2), each.whole))


def compare_group(photographs: Photographs, group: Group, thresholds: Thresholds = THRESHOLDS) -> dict[str, Any]:
    """Count the near-duplicates that a group's search finds and confuses at the given thresholds."""
    right, wrong = search(group, thresholds)
    count, rows = group.pictures, len(group.of)
    changes = {}
    for number, name in enumerate(CHANGES, start=1):
        part = slice(number * count, (number + 1) * count)
        changes[name] = {"found": round(float(right[part].mean()), 4), "copies": count}
    return {
        "photographs": sorted(photographs),
        "pictures": count,
        "changes": changes,
        "found": int(right.sum()),
        "different": {
            "rows": rows,
            "pairs": rows * (rows - 1) // 2 - count * len(CHANGES) * (len(CHANGES) + 1) // 2,
            "near": near_different(group),
            "copies": int(wrong.sum()),
        },
    }


def near_different(group: Group) -> int:
    """Count the pairs of rows with different images but near hashes."""
    hashes, found = group.rows.hashes, 0
    for row in range(1, len(hashes)):
        near = np.bitwise_count(hashes[row][:, None, None] ^ hashes[None, :row]) <= DISTANCE
        near &= (hashes[row] != 0)[:, None, None] & (hashes[None, :row] != 0)
        near[MIRROR, :, MIRROR] = False
        found += int((near.any(axis=(0, 2)) & (group.of[:row] != group.of[row])).sum())
    return found


def measure_photographs(folder: Path | None) -> dict[str, Any]:
    """Return the thresholds from the first half, and the results of both halves at the default thresholds.

    For the second half, the result also contains the counts at the first half's thresholds.
    """
    first, second = halves(all_photographs(folder))
    group, other = hashed_group(first), hashed_group(second)
    chosen = set_thresholds(group)
    right, wrong = search(other, chosen)
    return {
        "set_by_first_half": {
            **chosen._asdict(),
            "second_half": {"found": int(right.sum()), "copies": int(wrong.sum())},
        },
        "groups": {"first half": compare_group(first, group), "second half": compare_group(second, other)},
    }
