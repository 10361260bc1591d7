"""Recall and false matches of near copies of removed pictures, on the photographs at hand and on drawn pictures.

    python benchmarks/datasets/near_copies.py [--photos FOLDER] [--output FILE]

A pair is a match if `segmint takedown` would list one picture as a near copy of the other. The drawn families are the
worst cases, because their pictures differ little. Neither they nor a few photographs show how many pairs match by
mistake in a real catalog. The result is written to `benchmarks/results/near_copies.json`.
"""

import argparse
import io
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageOps

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.datasets.duplicates_photographs import (  # noqa: E402
    all_photographs,
    captioned,
    cropped,
    pictures_of,
    reencoded,
    resized,
)
from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.measuring import RESULTS, write_result  # noqa: E402
from segmint.operators.shards.near_copies import BITS, distances  # noqa: E402
from segmint.operators.similar.near import (  # noqa: E402
    HASHES,
    jpeg_hashes,
)

SIZE = (480, 320)  # (width, height) of drawn pictures
QUALITY = 95  # JPEG quality of released pictures

CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "quality 80": lambda image: reencoded(image, 80),
    "quality 40": lambda image: reencoded(image, 40),
    "75% of the size": lambda image: resized(image, 0.75),
    "50% of the size": lambda image: resized(image, 0.5),
    "cropped by 5% on each side": lambda image: cropped(image, 0.05, 0.05, 0.05, 0.05),
    "gray": lambda image: image.convert("L").convert("RGB"),
    "mirrored": ImageOps.mirror,
    "turned by 90°": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "turned by 180°": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "turned by 270°": lambda image: image.transpose(Image.Transpose.ROTATE_270),
    "cropped by 8% on each side": lambda image: cropped(image, 0.08, 0.08, 0.08, 0.08),
    "cropped by 8% on the left": lambda image: cropped(image, 0.08, 0, 0, 0),
    "caption over the lower 10%": lambda image: captioned(image, 0.1, below=False),
}


def main() -> None:
    """Measure all photographs and families, print the figures, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="photographs besides scikit-image's and scikit-learn's")
    parser.add_argument("--output", type=Path, default=RESULTS / "near_copies.json")
    arguments = parser.parse_args()
    result = measure(all_photographs(arguments.photos))
    print(json.dumps(result, indent=2))
    write_result(arguments.output, "near_copies", describe_machine(1, "none"), result)


def measure(photographs: dict[str, Image.Image]) -> dict[str, Any]:
    """Measure the recall of each change, and the matches among the different pictures of each family."""
    pictures = pictures_of(photographs)
    hashes = hashed(pictures)
    random = np.random.default_rng(0)
    families = {
        "photographs": list(photographs.values()),
        "photographs and their tiles": pictures,
        "bursts of 5 of each photograph": [shot for image in photographs.values() for shot in burst(image, random)],
        "scanned forms": [form(random) for _ in range(60)],
        "skies": [sky(random) for _ in range(60)],
        "gradients": [gradient(random) for _ in range(60)],
        "frames of a video": [frame(number) for number in range(60)],
    }
    return {
        "settings": {"bits": BITS, "quality": QUALITY, "photographs": sorted(photographs)},
        "pictures": len(pictures),
        "recall": {
            name: round(float((own_distances(hashed(map(change, pictures)), hashes) <= BITS).mean()), 4)
            for name, change in CHANGES.items()
        },
        "different": {name: matches(family) for name, family in families.items()},
    }


def hashed(pictures: Iterable[Image.Image]) -> NDArray[np.uint64]:
    """Hash pictures as they would be released, (N, 9) uint64."""
    return np.stack([jpeg_hashes(released(each)) for each in pictures])


def released(picture: Image.Image) -> bytes:
    """Encode a picture as a released JPEG."""
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=QUALITY)
    return sink.getvalue()


def own_distances(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Measure the distance between the pictures in each row, (N,)."""
    return np.array([distances(a[None], b[None])[0, 0] for a, b in zip(one, other, strict=True)])


def matches(pictures: Sequence[Image.Image]) -> dict[str, int]:
    """Count the pictures, their pairs, the pairs that match, and the pictures without a hash."""
    hashes = hashed(pictures)
    count = len(hashes)
    near = np.triu(distances(hashes, hashes) <= BITS, k=1)
    return {
        "pictures": count,
        "pairs": count * (count - 1) // 2,
        "matches": int(near.sum()),
        "without_hash": int((hashes.reshape(count, HASHES)[:, 0] == 0).sum()),
    }


def burst(image: Image.Image, random: np.random.Generator) -> list[Image.Image]:
    """Create five shots of a scene from one position: moved by up to 3% of a side, brighter or darker, with noise."""
    width, height = image.size
    shots = []
    for _ in range(5):
        x, y = (round(side * share) for side, share in zip(image.size, random.uniform(0, 0.03, 2), strict=True))
        shot = np.asarray(image.crop((x, y, x + round(width * 0.97), y + round(height * 0.97))), np.float32)
        shot = shot * random.uniform(0.9, 1.1) + random.normal(0, 4, shot.shape)
        shots.append(Image.fromarray(np.clip(shot, 0, 255).astype(np.uint8)))
    return shots


def form(random: np.random.Generator) -> Image.Image:
    """Draw a page of a form. Each time, other words are filled in."""
    page = Image.new("RGB", SIZE, (250, 249, 245))
    draw = ImageDraw.Draw(page)
    draw.text((140, 8), "APPLICATION FOR A PERMIT", fill="black", font_size=14)
    for line in range(9):
        y = 40 + 30 * line
        draw.rectangle((20, y, 460, y + 24), outline="black")
        draw.text((26, y + 6), f"{line + 1}.", fill="black", font_size=10)
        words = "".join(chr(97 + each) for each in random.integers(0, 26, random.integers(8, 40)))
        draw.text((60, y + 5), words, fill=(20, 20, 90), font_size=12)
    return page


def sky(random: np.random.Generator) -> Image.Image:
    """Draw a blue sky that gets lighter toward the horizon, with a few soft clouds."""
    width, height = SIZE
    down = np.linspace(0, 1, height)[:, None, None]
    top, bottom = np.array([60, 120, 200]), np.array([190, 215, 240])
    picture = Image.fromarray(np.broadcast_to(top + (bottom - top) * down, (height, width, 3)).astype(np.uint8))
    clouds = Image.new("L", SIZE)
    draw = ImageDraw.Draw(clouds)
    for _ in range(random.integers(0, 6)):
        x, y, w = random.integers(0, width), random.integers(0, height // 2), random.integers(40, 160)
        draw.ellipse((x - w, y - w // 4, x + w, y + w // 4), fill=int(random.integers(60, 200)))
    picture.paste((255, 255, 255), mask=clouds.filter(ImageFilter.GaussianBlur(14)))
    return picture


def gradient(random: np.random.Generator) -> Image.Image:
    """Draw a straight gradient between two random colors, in a random direction."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]] / np.array([SIZE[1], SIZE[0]])[:, None, None]
    angle = random.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    along = ((along - along.min()) / (along.max() - along.min()))[..., None]
    one, other = random.integers(0, 256, (2, 3))
    return Image.fromarray((one + (other - one) * along).astype(np.uint8))


def frame(number: int) -> Image.Image:
    """Draw a frame of a fixed camera: a house and trees, in front of which a car drives from left to right."""
    picture = Image.new("RGB", SIZE, (150, 190, 230))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 220, 480, 320), fill=(90, 90, 90))
    draw.rectangle((180, 90, 320, 220), fill=(180, 120, 90))
    draw.polygon((170, 90, 250, 40, 330, 90), fill=(120, 50, 40))
    for x in (40, 110, 370, 430):
        draw.ellipse((x - 30, 110, x + 30, 200), fill=(50, 120, 50))
        draw.rectangle((x - 5, 190, x + 5, 220), fill=(90, 60, 30))
    x = -80 + 9 * number
    draw.rectangle((x, 240, x + 80, 270), fill=(200, 30, 30))
    return picture


if __name__ == "__main__":
    main()
