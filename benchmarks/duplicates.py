"""What the finder of copies finds and confuses, by what was done to a picture, and its time and memory.

    python benchmarks/duplicates.py --new FOLDER [--photos FOLDER] [--rows N] [--crowd N] [--output FILE]

`--new` is a folder of photographs that the thresholds were not chosen on; those that they were chosen on are
scikit-image's and scikit-learn's, and those of `--photos`. Each photograph and its tiles of 300 x 300 pixels count as
pictures. All of a group and their changed versions are searched at once, by `find_copies`, as a catalog's are.

Then the finder of near hashes is compared with a comparison of all with all, over 100,000 hashes, and copies are
planted among `--rows` rows and among `--crowd` rows with near-equal hashes. Their thumbnails are in memory. Everything
runs in one process on as many cores as numpy takes. The result goes to `benchmarks/results/duplicates.json`.
"""

import argparse
import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.measuring import RESULTS, SUFFIXES, in_process, peak_mib, write_result  # noqa: E402
from segmint.operators.similar.clusters import DISTANCE, NONE, Copies, ImageRows, find_copies  # noqa: E402
from segmint.operators.similar.confirm import SIMILAR, SIMILAR_MIDDLE, normalized_views  # noqa: E402
from segmint.operators.similar.hashes import KEPT, MIRROR, VIEWS, ImageHashes, image_hashes  # noqa: E402
from segmint.operators.similar.near import near_pairs  # noqa: E402

SCIKIT_IMAGE = (
    *("astronaut", "coffee", "chelsea", "rocket", "camera", "hubble_deep_field", "immunohistochemistry", "brick"),
    *("grass", "gravel", "coins", "moon", "retina", "clock", "cell", "page", "text"),
)
TILE = 300
QUALITY = 90  # of JPEGs whose change is another one
WIDE = 14
"""Bits in which views may differ whose correlation is looked at: pictures within `DISTANCE` are too few."""


def reencoded(image: Image.Image, quality: int) -> Image.Image:
    """The image as it is decoded from a JPEG of this quality."""
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=quality)
    return Image.open(sink).convert("RGB")


def resized(image: Image.Image, factor: float) -> Image.Image:
    """The image with its sides times `factor`."""
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(size, Image.Resampling.LANCZOS)


def cropped(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """The image without these shares of its sides."""
    width, height = image.size
    return image.crop(
        (round(width * left), round(height * top), round(width * (1 - right)), round(height * (1 - bottom)))
    )


def captioned(image: Image.Image, share: float, *, below: bool) -> Image.Image:
    """The image with white text on a black strip, over its lower edge or below it."""
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
    """The image with its values times `factor`; those over 255 are clipped."""
    return ImageEnhance.Brightness(image).enhance(factor)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "encoded again at quality 40": lambda image: reencoded(image, 40),
    "resized to 0.5": lambda image: resized(image, 0.5),
    "resized to 0.25": lambda image: resized(image, 0.25),
    "cropped by 1 % on each side": lambda image: cropped(image, 0.01, 0.01, 0.01, 0.01),
    "cropped by 2 % on each side": lambda image: cropped(image, 0.02, 0.02, 0.02, 0.02),
    "cropped by 5 % on each side": lambda image: cropped(image, 0.05, 0.05, 0.05, 0.05),
    "cropped by 2 % on the left": lambda image: cropped(image, 0.02, 0, 0, 0),
    "cropped by 2 % at the bottom": lambda image: cropped(image, 0, 0, 0, 0.02),
    "mirrored": ImageOps.mirror,
    "brightened by 1.3": lambda image: brightened(image, 1.3),
    "brightened by 1.6": lambda image: brightened(image, 1.6),
    "darkened to 0.6": lambda image: brightened(image, 0.6),
    "caption over the lower 10 %": lambda image: captioned(image, 0.1, below=False),
    "caption of 10 % added below": lambda image: captioned(image, 0.1, below=True),
}


def main() -> None:
    """Measure all, print the figures and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--new", type=Path, required=True, help="photographs that did not set the thresholds")
    parser.add_argument("--photos", type=Path, help="more photographs that did")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--crowd", type=int, default=100_000, help="rows with near-equal hashes")
    parser.add_argument("--output", type=Path, default=RESULTS / "duplicates.json")
    arguments = parser.parse_args()
    machine = describe_machine(os.cpu_count() or 1, "none", packages=("numpy", "pillow", "imagehash", "scipy"))
    settings = {
        "distance": DISTANCE,
        "correlation": SIMILAR,
        "correlation_middle": SIMILAR_MIDDLE,
        "views": list(KEPT),
        "tile": TILE,
        "wide": WIDE,
        "rows": arguments.rows,
        "crowd": arguments.crowd,
    }
    groups = {"chosen on": chosen_on(arguments.photos), "new": from_folder(arguments.new)}
    found = {name: compare_group(photographs) for name, photographs in groups.items()}
    for name, group in found.items():
        print(
            name, {change: each["found"] for change, each in group["changes"].items()}, group["different"], flush=True
        )
    exact = in_process(compare_with_brute_force, 100_000)
    print("100,000 hashes:", exact, flush=True)
    rows = in_process(measure_rows, arguments.rows)
    print("rows:", rows, flush=True)
    crowds = {
        "copies": in_process(measure_crowd, arguments.crowd, True),
        "different": in_process(measure_crowd, arguments.crowd // 10, False),
    }
    print("crowds:", crowds)
    parts = {"settings": settings, "groups": found, "all_with_all": exact, "rows": rows, "crowds": crowds}
    write_result(arguments.output, "duplicates", machine, parts)


def chosen_on(folder: Path | None) -> dict[str, Image.Image]:
    """The photographs that views and thresholds were chosen on, by name."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    found = {} if folder is None else from_folder(folder)
    found |= {name: Image.fromarray(np.asarray(getattr(data, name)())).convert("RGB") for name in SCIKIT_IMAGE}
    samples = load_sample_images()
    return found | {
        Path(name).stem: Image.fromarray(each) for name, each in zip(samples.filenames, samples.images, strict=True)
    }


def from_folder(folder: Path) -> dict[str, Image.Image]:
    """The photographs of a folder by name."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
    if not files:
        raise SystemExit(f"{folder} has no photographs: expected files that end in {', '.join(sorted(SUFFIXES))}")
    return {path.stem: Image.open(path).convert("RGB") for path in files}


def pictures_of(photographs: dict[str, Image.Image]) -> list[Image.Image]:
    """Each photograph, and the tiles of those with two or more."""
    found = list(photographs.values())
    for image in photographs.values():
        corners = [
            (x, y) for y in range(0, image.height - TILE + 1, TILE) for x in range(0, image.width - TILE + 1, TILE)
        ]
        if len(corners) > 1:
            found += [image.crop((x, y, x + TILE, y + TILE)) for x, y in corners]
    return found


def compare_group(photographs: dict[str, Image.Image]) -> dict[str, Any]:
    """What is found of a group: all pictures and all changed versions of them, as the rows of one catalog."""
    pictures = pictures_of(photographs)
    hashed = [image_hashes(np.asarray(picture), mirror=True) for picture in pictures]
    for change in CHANGES.values():
        for picture in pictures:
            changed = reencoded(change(picture), QUALITY)
            hashed.append(image_hashes(np.asarray(changed), mirror=True))
    count = len(pictures)
    of = np.tile(np.arange(count), 1 + len(CHANGES))
    copies = search(hashed, np.where(np.arange(len(hashed)) < count, 2, 1))
    right = (copies.kept != NONE) & (of == of[copies.kept])
    near, correlations = views_within(hashed, of, DISTANCE), views_within(hashed[:count], of[:count], WIDE)
    changes = {}
    for number, name in enumerate(CHANGES, start=1):
        part = slice(number * count, (number + 1) * count)
        changes[name] = {"found": round(float(right[part].mean()), 4), "copies": count}
    return {
        "photographs": sorted(photographs),
        "pictures": count,
        "changes": changes,
        "different": {
            "rows": len(hashed),
            "pairs": len(hashed) * (len(hashed) - 1) // 2 - count * len(CHANGES) * (len(CHANGES) + 1) // 2,
            "near": len(near),
            "copies": int(((copies.kept != NONE) & ~right).sum()),
            "most_correlation": round(max(correlations, default=0.0), 3),
        },
    }


def search(hashed: list[ImageHashes], pixels: NDArray[np.int64]) -> Copies:
    """The copies among images."""
    count = len(hashed)
    thumbnails = np.stack([each.thumbnail for each in hashed])
    views = np.stack([each.views() for each in hashed])
    no = np.zeros(count, bool)
    rows = ImageRows(np.zeros((count, 2), np.uint64), views, pixels, ~no, no)
    return find_copies(rows, lambda numbers: thumbnails[numbers])


def views_within(hashed: list[ImageHashes], of: NDArray[np.int64], distance: int) -> list[float]:
    """The correlations of different pictures with near views: the highest of each pair of rows."""
    thumbnails = np.stack([each.thumbnail for each in hashed])
    hashes = np.stack([each.views() for each in hashed])
    found = []
    for row in range(1, len(hashed)):
        near = np.bitwise_count(hashes[row][:, None, None] ^ hashes[None, :row]) <= distance
        near &= (hashes[row] != 0)[:, None, None] & (hashes[None, :row] != 0)
        near[MIRROR, :, MIRROR] = False
        one, other, view = np.nonzero(near & (of[:row] != of[row])[:, None])
        if len(one):
            ours = normalized_views(np.repeat(thumbnails[row][None], len(one), axis=0), one)
            products = (ours * normalized_views(thumbnails[other], view)).sum(axis=1)
            found += [float(products[other == each].max()) for each in np.unique(other)]
    return found


def flipped(hashes: NDArray[np.uint64], bits: int, random: np.random.Generator) -> NDArray[np.uint64]:
    """The hashes with up to `bits` bits of each turned."""
    for _ in range(bits):
        bit = np.uint64(1) << random.integers(0, 64, hashes.shape, np.uint8).astype(np.uint64)
        hashes = hashes ^ np.where(random.random(hashes.shape, np.float32) < 0.6, bit, np.uint64(0))
    return hashes


def compare_with_brute_force(count: int) -> dict[str, Any]:
    """Seconds to find the near pairs among hashes, a tenth of them planted near others, and whether these are all."""
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, count, np.uint64)
    planted = count // 10
    hashes[:planted] = flipped(hashes[random.integers(planted, count, planted)], 5, random)
    hashes = np.unique(hashes)
    started = time.perf_counter()
    found = np.concatenate([np.stack(pair, axis=1) for pair in near_pairs(hashes, DISTANCE)])
    seconds = time.perf_counter() - started
    expected = []
    started = time.perf_counter()
    for place in range(len(hashes) - 1):
        others = np.flatnonzero(np.bitwise_count(hashes[place] ^ hashes[place + 1 :]) <= DISTANCE) + place + 1
        expected.append(np.stack([np.full(len(others), place), others], axis=1))
    by_all = np.concatenate(expected)
    return {
        "hashes": len(hashes),
        "pairs": len(by_all),
        "found": len(found),
        "agree": bool(np.array_equal(np.unique(found, axis=0), by_all)),
        "seconds": round(seconds, 2),
        "seconds_all_with_all": round(time.perf_counter() - started, 1),
    }


def measure_rows(count: int) -> dict[str, Any]:
    """Seconds and memory of a catalog in which every twentieth row looks like another, every fiftieth is the same.

    A row's crops have hashes some bits from its frame's, as those of photographs do, so that many are near each other.
    """
    random = np.random.default_rng(0)
    hashes = np.empty((count, VIEWS), np.uint64)
    hashes[:, 0] = random.integers(0, 2**64, count, np.uint64)
    for view in range(1, MIRROR):
        hashes[:, view] = flipped(hashes[:, view - 1], 7, random)
    hashes[:, MIRROR] = random.integers(0, 2**64, count, np.uint64)
    of = np.arange(count)
    chosen = random.permutation(count)
    near, same, rest = chosen[: count // 20], chosen[count // 20 : count // 20 + count // 50], chosen[count // 10 :]
    for copies in (near, same):
        of[copies] = random.choice(rest, len(copies))
        hashes[copies] = hashes[of[copies]]
    hashes[near] = flipped(hashes[near], 2, random)
    sources = random.integers(1, 2**63, (count, 2)).astype(np.uint64)
    sources[same] = sources[of[same]]
    thumbnails = random.integers(0, 256, (4096, 64, 64), np.uint8)
    pixels = np.where(of == np.arange(count), 2, 1)
    rows = ImageRows(sources, hashes, pixels, np.ones(count, bool), np.zeros(count, bool))
    del chosen, rest
    before, started = peak_mib(), time.perf_counter()
    found = find_copies(rows, lambda numbers: thumbnails[of[numbers] % len(thumbnails)])
    seconds = time.perf_counter() - started
    right = found.kept[of != np.arange(count)] == of[of != np.arange(count)]
    return {
        "rows": count,
        "hashes": count * VIEWS,
        "planted": {"near": len(near), "same": len(same)},
        "found": int(right.sum()),
        "others": int((found.kept != NONE).sum() - right.sum()),
        "exact": int(found.exact.sum()),
        "seconds": round(seconds, 1),
        "input_mib": before,
        "peak_mib": peak_mib(),
    }


def measure_crowd(count: int, same: bool) -> dict[str, Any]:
    """Seconds and memory where all rows have near-equal hashes: of one picture, or each of a different one."""
    random = np.random.default_rng(0)
    hashes = flipped(np.repeat(random.integers(0, 2**64, (1, VIEWS), np.uint64), count, axis=0), 3, random)
    coarse = random.integers(0, 256, (1 if same else count, 16, 16), np.uint8)

    def thumbnails(numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        return coarse[numbers % len(coarse)].repeat(4, axis=1).repeat(4, axis=2)

    rows = ImageRows(
        np.zeros((count, 2), np.uint64), hashes, np.ones(count, np.int64), np.ones(count, bool), np.zeros(count, bool)
    )
    started = time.perf_counter()
    found = find_copies(rows, thumbnails)
    seconds = round(time.perf_counter() - started, 1)
    return {"rows": count, "copies": int((found.kept != NONE).sum()), "seconds": seconds, "peak_mib": peak_mib()}


if __name__ == "__main__":
    main()
