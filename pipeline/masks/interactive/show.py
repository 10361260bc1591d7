"""Plotting of an image with its masks and prompts by matplotlib, exported as `segmint.show`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segmint.catalogs.dataset.reader import MaskAnnotation, Sample
from segmint.infra.errors import UsageError
from segmint.model.automatic.records import GeneratedMasks, MaskRecord
from segmint.model.automatic.rle import Rle, area, compress, encode
from segmint.operators.overlay import draw_overlay, draw_prompts
from segmint.pipeline.masks.interactive.images import Image, Pixels, pixels_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FAR = 1e6  # limit of coordinates in pixels: outside any image, but small enough for OpenCV to draw
_INCHES = 9.0  # longer side of the figure


class MissingMatplotlibError(UsageError, ImportError):
    """Error raised by `show` if matplotlib isn't installed."""


@dataclass(frozen=True)
class MasksWithImage(GeneratedMasks):
    """Masks together with their image. `show` can draw them without further input."""

    @property
    def image(self) -> Pixels:
        """Pixels of the image, (height, width, 3) uint8 RGB."""
        raise NotImplementedError


def show(
    image: Image | MasksWithImage | Sample,
    records: Any = None,
    *,
    points: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    boxes: ArrayLike | None = None,
    title: str | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw an image with its masks and return the matplotlib axes.

    A result of `generate` or `predict`, or a `Sample` of a dataset, already includes its masks.

    Args:
        image: anything that `pixels_of` accepts, a result, or a `Sample`.
        records: one or more masks of the image's size: records of a generator, masks of a dataset, bool arrays
            (height, width) or (N, height, width), or dictionaries with a `segmentation`.
        points: point prompts (N, 2) as (x, y). Foreground points are green, and background points are red.
        labels: (N,), 1 for foreground, 0 for background, and -1 for points not to draw. By default, all are foreground.
        boxes: box prompts (B, 4) or (4,) as (x0, y0, x1, y1), drawn in white.
        title: title of the plot; by default the number of masks.
        ax: axes to draw on; by default the axes of a new figure.

    A notebook displays the figure automatically. In a script, call `matplotlib.pyplot.show()` or
    `ax.figure.savefig(...)`. Raises `MissingMatplotlibError` without matplotlib, and ValueError for masks or prompts of
    an unsupported type or size.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise MissingMatplotlibError(
            "segmint.show needs matplotlib, which isn't installed. Run `pip install 'segmint[notebook]'`."
        ) from error
    if isinstance(image, (MasksWithImage, Sample)) and records is None:
        records = image.records if isinstance(image, MasksWithImage) else image.masks
    pixels = image.image if isinstance(image, (MasksWithImage, Sample)) else pixels_of(image)
    height, width = pixels.shape[:2]
    masks = [] if records is None else records_of(records, (height, width))
    drawn = draw_prompts(draw_overlay(pixels, masks), _points(points, labels), _boxes(boxes))
    if ax is None:
        scale = _INCHES / max(height, width)
        _, ax = pyplot.subplots(figsize=(width * scale, height * scale), layout="constrained")
    ax.imshow(drawn)
    ax.set_axis_off()
    if title is None and masks:
        title = f"{len(masks)} mask{'' if len(masks) == 1 else 's'}"
    if title:
        ax.set_title(title)
    return ax


def records_of(masks: Any, size: tuple[int, int]) -> list[MaskRecord]:
    """Convert masks of any type that `show` accepts to records. Only segmentation and area are set.

    Records are returned unchanged. Raises ValueError if a mask has another type, or a size other than `size` (height,
    width).
    """
    if isinstance(masks, GeneratedMasks):
        masks = masks.records
    if isinstance(masks, (MaskRecord, MaskAnnotation, Mapping)) or getattr(masks, "ndim", 0) == 2:
        masks = [masks]
    if not isinstance(masks, Iterable) or isinstance(masks, str):
        raise ValueError(f"the masks are a {type(masks).__name__}: expected records, or bool arrays (height, width)")
    found = []
    for number, mask in enumerate(masks):
        rle = _rle(mask, number)
        if rle.size != size:
            raise ValueError(
                f"mask {number} is {rle.size[1]} x {rle.size[0]} pixels, but the image is {size[1]} x {size[0]}: "
                "expected masks of this image"
            )
        found.append(mask if isinstance(mask, MaskRecord) else MaskRecord(rle, area(rle)))
    return found


def _rle(mask: Any, number: int) -> Rle:
    if isinstance(mask, Mapping):
        mask = mask.get("segmentation")
    if isinstance(mask, MaskRecord):
        return mask.segmentation
    if isinstance(mask, MaskAnnotation):
        return Rle(mask.size, mask.counts)
    if isinstance(mask, Mapping) and {"size", "counts"} <= set(mask):
        height, width = mask["size"]
        counts = mask["counts"]
        if isinstance(counts, (str, bytes)):
            return Rle((height, width), counts if isinstance(counts, str) else counts.decode("ascii"))
        return Rle((height, width), compress(np.asarray(counts, np.int64)))
    pixels = np.asarray(mask.detach().cpu() if hasattr(mask, "detach") else mask)
    if pixels.ndim != 2 or not (pixels.dtype == bool or np.isin(pixels, (0, 1)).all()):
        given = f"an array {pixels.shape} of {pixels.dtype}" if pixels.dtype != object else f"a {type(mask).__name__}"
        raise ValueError(f"mask {number} is {given}: expected a record, or a bool array (height, width)")
    return encode(pixels.astype(bool))


def _points(points: ArrayLike | None, labels: ArrayLike | None) -> Sequence[tuple[float, float, int]]:
    if points is None:
        return ()
    places = _numbers("points", points, 2)
    kinds = np.ones(len(places)) if labels is None else np.asarray(labels, float).reshape(-1)
    if len(kinds) != len(places):
        raise ValueError(f"got {len(kinds)} labels for {len(places)} points: expected one label per point")
    return [(x, y, int(kind)) for (x, y), kind in zip(places.tolist(), kinds.tolist(), strict=True) if kind >= 0]


def _boxes(boxes: ArrayLike | None) -> Sequence[tuple[float, float, float, float]]:
    if boxes is None:
        return ()
    return [(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in _numbers("boxes", boxes, 4).tolist()]


def _numbers(name: str, value: ArrayLike, columns: int) -> NDArray[np.float64]:
    array = np.asarray(value, float)
    if not array.size:
        return np.zeros((0, columns))
    if array.ndim == 0 or array.shape[-1] != columns:
        raise ValueError(f"{name} have the shape {array.shape}: expected (N, {columns})")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} contain NaN or infinity: expected finite numbers")
    return array.reshape(-1, columns).clip(-_FAR, _FAR)
