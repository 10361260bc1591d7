"""Reader and painter of label maps: images with one number per pixel, 0 for the background and one per mask."""

import io
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin
from pycocotools import mask as coco

from segmint.catalogs.findings import RejectedError
from segmint.catalogs.layout import MOST_PIXELS
from segmint.infra.arrays import Bools, Ints, Size
from segmint.model.automatic.rle import encode_runs
from segmint.operators.annotations.image import LONGEST_SIDE, AnnotatedMask
from segmint.operators.prepare.ingest import check_strips, clean_message
from segmint.operators.prepare.ingest_config import check_png_rows, check_whole

ENDINGS = (".png", ".tif", ".tiff", ".npy")
"""File name endings that label maps may have."""

BACKGROUND = 0

MOST_NUMBERS = 65_536
"""Maximum number of distinct values in a label map, which is the range of 16 bits. Each value is a mask."""

_BETWEEN = 0.6
"""Minimum share of a number's pixels that are next to a lower and a higher number if the number is a soft edge."""

_SINGLE, _SCATTERED = 0.5, 8
"""Minimum share of single pixels, and minimum number of pixels, if a number is noise."""

_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
"""Pillow modes with one integer per pixel. For a palette image, the integers are palette indices."""

_PNG_BITS = 24
"""Position of the bits per sample in a PNG, whose first chunk is its header."""


class UnreadableMapError(ValueError):
    """Raised when a label map can't be read. The message gives the reason but not the file's name."""


class PairedFiles(NamedTuple):
    """Images and label maps paired by stem, in the order of the images, and files without a unique partner."""

    pairs: list[tuple[str, str]]
    maps_alone: list[str]
    ambiguous: list[str]  # a line for each stem with several images or maps


def read_label_map(data: bytes, name: str, size: Size | None = None, is_picture: bool = False) -> Ints:
    """Decode a label map, (H, W) int64, from PNG, TIFF, or NumPy's format, depending on the ending of `name`.

    `size` is its image's (height, width), if known. The result contains the file's numbers, whatever their bits. If
    `is_picture` is set, gray values of 1, 2, or 4 bits are scaled to 8 bits instead.

    Raises `UnreadableMapError` if the ending is unknown, if the file is damaged, or if it contains colors, fractions,
    or several pages. If a picture's size differs from the image's or exceeds `MOST_PIXELS`, it is rejected before
    anything is decoded.
    """
    ending = PurePosixPath(name).suffix.lower()
    if ending not in ENDINGS:
        raise UnreadableMapError(f"its extension is {ending or 'missing'}: expected one of {', '.join(ENDINGS)}")
    return _of_array(data, size) if ending == ".npy" else _of_picture(data, size, is_picture)


def _check_shape(shape: tuple[int, ...], size: Size | None) -> None:
    """Check the shape of a map."""
    if len(shape) != 2 or 0 in shape or max(shape) > LONGEST_SIDE:
        raise UnreadableMapError(f"its shape is {str(shape)[:60]}: expected (height, width), one number per pixel")
    if size is not None and shape != size:
        raise UnreadableMapError(f"it is {shape[1]} x {shape[0]} pixels, but its image is {size[1]} x {size[0]}")
    if shape[0] * shape[1] > MOST_PIXELS:
        raise UnreadableMapError(f"it has {shape[0] * shape[1]:,} pixels: the limit is {MOST_PIXELS:,}")


def label_masks(labels: Ints, ignore: Collection[int] = ()) -> list[AnnotatedMask]:
    """Return a mask for each number in a label map, (H, W) int64, in ascending order. The number is its id and label.

    The background and the numbers in `ignore` don't become masks. Raises `UnreadableMapError` if the map contains more
    than `MOST_NUMBERS` numbers, or if most of its numbers are those of soft edges, which aren't objects.
    """
    if ignore:
        labels = np.where(np.isin(labels, list(ignore)), BACKGROUND, labels)
    columns = labels.T.reshape(-1)
    changes = np.flatnonzero(columns[1:] != columns[:-1]) + 1
    starts = np.concatenate(([0], changes))
    ends = np.concatenate((changes, [columns.size]))
    values = columns[starts]
    order = np.argsort(values, kind="stable")
    numbers, first = np.unique(values[order], return_index=True)
    if len(numbers) > MOST_NUMBERS:
        raise UnreadableMapError(f"it has {len(numbers):,} different numbers: the limit is {MOST_NUMBERS:,}")
    between, single = (np.add.reduceat(found.T.reshape(-1), starts, dtype=np.int64) for found in _no_objects(labels))
    size = (labels.shape[0], labels.shape[1])
    masks = []
    soft = []
    for number, runs in zip(numbers.tolist(), np.split(order, first[1:]), strict=True):
        if number == BACKGROUND:
            continue
        area = (ends[runs] - starts[runs]).sum()
        is_scattered = area >= _SCATTERED and single[runs].sum() / area >= _SINGLE
        if is_scattered or between[runs].sum() / area >= _BETWEEN:
            soft.append(number)
        masks.append(AnnotatedMask(encode_runs(starts[runs], ends[runs], size).coco(), number, str(number)))
    if len(soft) > max(1, len(masks) // 2):  # a single number may be a thin outline
        raise UnreadableMapError(
            f"its edges are soft: {len(soft):,} of its {len(masks):,} numbers, such as {soft[0]} and {soft[1]}, form "
            "slopes or single pixels, as in a scaled, smoothed, or compressed picture. Expected one number per object. "
            "Scale label maps without interpolation, or pass the numbers that aren't objects with --ignore"
        )
    return masks


def _no_objects(labels: Ints) -> tuple[Bools, Bools]:
    """Return two kinds of pixels, each (H, W) bool, that the numbers of objects seldom have.

    Pixels of the first kind are next to a lower and to a higher number: scaling or smoothing turns an edge into a slope
    of numbers. Those of the second kind are next to no pixel of the same number, but to a number other than the
    background: compression scatters numbers around an edge.
    """
    around = np.pad(labels, 1, mode="reflect")
    lower, higher, same, beside = (np.zeros(labels.shape, bool) for _ in range(4))
    height, width = labels.shape
    for row, column in ((0, 1), (2, 1), (1, 0), (1, 2)):
        side = around[row : row + height, column : column + width]
        lower |= side < labels
        higher |= side > labels
        same |= side == labels
        beside |= side != BACKGROUND
    return lower & higher, beside & ~same


def paint_label_map(masks: Sequence[Mapping[str, Any]], size: Size) -> NDArray[np.uint16]:
    """Paint up to 65,535 masks as a label map (H, W) uint16, in which each pixel has the number of one mask, or 0.

    `masks` are in pycocotools' format, and the number of mask i is i + 1. A smaller mask covers a larger one, and of
    masks with the same area, a later one covers an earlier one. Masks are decoded one at a time.
    """
    labels = np.zeros(size, np.uint16)
    areas = [int(coco.area(mask)) for mask in masks]
    for place in sorted(range(len(masks)), key=areas.__getitem__, reverse=True):
        labels[coco.decode(masks[place]).astype(bool)] = place + 1
    return labels


def pair_by_stem(images: Iterable[str], maps: Iterable[str]) -> PairedFiles:
    """Pair files that have the same name without folder and ending, strictly one to one."""
    by_stem: dict[str, list[str]] = {}
    for name in images:
        by_stem.setdefault(PurePosixPath(name).stem, []).append(name)
    maps_of: dict[str, list[str]] = {}
    for name in maps:
        maps_of.setdefault(PurePosixPath(name).stem, []).append(name)
    paired = PairedFiles([], [], [])
    for stem, pictures in by_stem.items():
        labels = maps_of.pop(stem, [])
        if len(pictures) == 1 and len(labels) == 1:
            paired.pairs.append((pictures[0], labels[0]))
        elif labels:
            paired.ambiguous.append(f"{stem}: {', '.join(pictures)} and {', '.join(labels)}")
    for alone in maps_of.values():
        paired.maps_alone.extend(alone)
    return paired


def _of_array(data: bytes, size: Size | None) -> Ints:
    try:
        array: Any = np.load(io.BytesIO(data), allow_pickle=False)
        kind, shape = array.dtype, array.shape
    except Exception as error:  # numpy evaluates the header as Python, which raises anything
        raise UnreadableMapError(f"it is not a NumPy array: {error}") from error
    if kind.kind not in "iub":
        raise UnreadableMapError(f"its numbers are of type {str(kind)[:40]}: expected integers")
    _check_shape(shape, size)
    if kind == np.uint64 and array.max() > np.iinfo(np.int64).max:
        raise UnreadableMapError("it has a number over 2^63")
    numbers: Ints = array.astype(np.int64)
    return numbers


def _of_picture(data: bytes, size: Size | None, is_picture: bool) -> Ints:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a large image is checked below, and failures raise errors
            with Image.open(io.BytesIO(data), formats=["PNG", "TIFF"]) as picture:
                _check_shape(picture.size[::-1], size)
                if getattr(picture, "n_frames", 1) > 1:
                    raise UnreadableMapError("it has several pages: expected one")
                if picture.mode not in _MODES:
                    raise UnreadableMapError(f"its pixels are {picture.mode}, a color: expected one number per pixel")
                check_whole(data, picture.format or "")
                if isinstance(picture, TiffImagePlugin.TiffImageFile):
                    check_strips(picture, data)
                else:
                    check_png_rows(data)
                if not is_picture:
                    return _numbers(picture, data)
                scaled = picture.convert("L") if picture.mode == "1" else picture
                return np.asarray(scaled).astype(np.int64)
    except UnreadableMapError:
        raise
    except RejectedError as error:
        raise UnreadableMapError(error.detail) from error
    except Exception as error:  # decoders raise anything, from OSError to TypeError
        raise UnreadableMapError(f"it can't be decoded: {clean_message(str(error))}") from error


def _numbers(picture: Image.Image, data: bytes) -> Ints:
    """Return the numbers that a PNG or TIFF stores.

    To show a picture, Pillow scales gray values to 8 bits and inverts those of a TIFF in which 0 is white. It also
    reads signed 8-bit and unsigned 32-bit integers as the opposite. All of this is undone here, except that a TIFF of 1
    bit may be inverted, because Pillow writes such files with 0 as white.
    """
    numbers = np.asarray(picture).astype(np.int64)
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        tags = picture.tag_v2
        bits, is_inverted, is_signed = tags.get(258, (1,))[0], tags.get(262) == 0, tags.get(339, (1,))[0] == 2
        if picture.mode == "I" and tags.get(259, 1) != 1 and data.startswith(b"MM"):
            raise UnreadableMapError(f"its {bits}-bit numbers are stored in a layout that decoders misread: use PNG")
    else:
        bits, is_inverted, is_signed = data[_PNG_BITS], False, False
    if picture.mode == "L":
        highest = (1 << bits) - 1
        numbers //= 255 // highest
        if is_inverted:
            numbers = highest - numbers
    if bits not in (8, 16, 32):
        return numbers
    kind = "i" if is_signed else "u"
    return numbers.astype(f"{kind}{bits // 8}").astype(np.int64)
