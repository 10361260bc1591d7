"""Result types for the masks of one image, with methods to plot, save, and convert them, and a view for notebooks.

Conversion of paths, URIs, Pillow images, and arrays to pixels for the Python API.

Plotting of an image with its masks and prompts by matplotlib, exported as `segmint.show`.
"""

import base64
import html
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image as PillowImage
from PIL import ImageOps
from torch import Tensor

from segmint.catalogs.dataset.reader import MaskAnnotation, Sample
from segmint.catalogs.findings import RejectedError
from segmint.infra.arrays import Bools, Floats, Pixels, Size
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.storage.storage import Storage
from segmint.model.automatic.rle import GeneratedMasks, MaskRecord, Rle, area, compress, encode
from segmint.model.sam.predictor import PromptMasks
from segmint.operators.overlay import cut_out, draw_overlay, draw_prompts, encode_png
from segmint.operators.prepare.ingest import decode_photograph
from segmint.operators.prepare.ingest_config import ANY_SIZE
from segmint.operators.prepare.read_image import MODES, to_srgb
from segmint.pipeline.masks.outputs import image_id, sa1b_document
from segmint.pipeline.masks.predict import PromptedMask

if TYPE_CHECKING:
    from matplotlib.axes import Axes


Image: TypeAlias = str | os.PathLike[str] | PillowImage.Image | NDArray[Any]
"""Path, URI, Pillow image, or array: (height, width, 3) uint8 RGB or (height, width) uint8 grayscale."""


class ImageError(UsageError, ValueError):
    """Error for a value that isn't an image, or for an image that can't be read."""


def pixels_of(image: Image, name: str = "image") -> Pixels:
    """Return an image's pixels, (height, width, 3) uint8, upright in sRGB, with transparency flattened on white.

    For files and Pillow images, applies the EXIF orientation and the color profile. For an RGB or gray JPEG, PNG, or
    WebP, you get the same pixels from a path, a Pillow image, and `segmint masks`. A color array is returned unchanged,
    without a copy. The values of a gray array are repeated three times.

    Raises `ImageError`, whose message states the given and the expected type. `name` is the image's name in the
    message.
    """
    if isinstance(image, (str, os.PathLike)):
        return _read(os.fspath(image))
    if isinstance(image, PillowImage.Image):
        if image.mode not in MODES:
            raise ImageError(f"{name} is a Pillow image of mode {image.mode}: expected 8 or 16 bits per sample")
        return np.ascontiguousarray(_upright(image, name))
    return _array(image, name)


def describe(image: Any) -> str:
    """Describe an image argument by its path, or by its type and size."""
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    if isinstance(image, PillowImage.Image):
        return str(getattr(image, "filename", "") or f"Pillow image {image.width} x {image.height}")
    shape = getattr(image, "shape", None)
    return type(image).__name__ if shape is None else f"array {tuple(shape)}"


def _read(name: str) -> Pixels:
    try:
        path = Path(name).expanduser() if "://" not in name else None
        is_folder = path is not None and path.is_dir()
        is_absent = path is not None and not path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # the name is too long, or the home directory doesn't exist
        raise ImageError(f"{name[:200]!r} is not an image path: {getattr(error, 'strerror', None) or error}") from error
    if not name:
        raise ImageError("the image is an empty string: expected a path or URI")
    if is_folder:
        raise ImageError(f"{name} is a folder: expected an image. For several, use generate_many(glob('{name}/*.jpg'))")
    if is_absent:
        raise ImageError(f"{name} does not exist: expected the path of an image. Relative paths start at {Path.cwd()}.")
    try:
        data = Storage().read(str(path or name), max_bytes=ANY_SIZE.max_bytes)
    except (SegmintError, OSError) as error:
        raise ImageError(f"{name} can't be read: {error}") from error
    try:
        return decode_photograph(data)
    except RejectedError as verdict:
        raise ImageError(f"{name}: {verdict.reason}: {verdict.detail}") from verdict


def _upright(image: PillowImage.Image, name: str) -> Pixels:
    try:
        image.load()  # Pillow decodes lazily
    except MemoryError:
        raise
    except Exception as error:  # decoders raise all kinds of exceptions
        raise ImageError(f"{name} is a {describe(image)} that can't be decoded: {error}") from error
    try:
        oriented = ImageOps.exif_transpose(image)
    except (OSError, ValueError, TypeError, KeyError, SyntaxError):
        oriented = image  # broken metadata doesn't affect the pixels
    try:
        # An image from a file gives the same pixels as the file's path.
        return to_srgb(oriented, image.info.get("icc_profile"), image.format)
    except RejectedError as verdict:
        raise ImageError(f"{name}: {verdict.reason}: {verdict.detail}") from verdict


def _conversion(array: NDArray[Any]) -> str:
    """Return the code that probably converts an array to uint8."""
    if array.dtype == np.uint16:
        return "(image / 257).round().astype('uint8')"
    if array.dtype.kind == "f" and array.max() > 1:
        return "image.round().astype('uint8')"
    if array.dtype.kind in "fb":
        return "(image * 255).round().astype('uint8')"
    return "image.astype('uint8')"


def _array(value: Any, name: str) -> Pixels:
    if isinstance(value, Mapping) or not hasattr(value, "__array__"):
        raise ImageError(
            f"{name} is a {type(value).__name__}: expected a path, a Pillow image, or a uint8 array (height, width, 3)"
        )
    array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    expected = "expected (height, width, 3) uint8 RGB, or (height, width) uint8 gray"
    given = f"{name} is an array of shape {array.shape} and type {array.dtype}"
    if 0 in array.shape or array.ndim not in (2, 3):
        hint = ". For several images, use generate_many." if array.ndim == 4 else ""
        raise ImageError(f"{given}: {expected}{hint}")
    if array.dtype != np.uint8:
        raise ImageError(f"{given}: {expected}, from 0 to 255. You may want {_conversion(array)}.")
    if array.ndim == 2:
        return np.repeat(array[:, :, None], 3, axis=2)
    if array.shape[2] == 3:
        return array
    if array.shape[2] == 4:
        raise ImageError(f"{given}: {expected}. To drop its transparency, use image[:, :, :3].")
    if array.shape[0] == 3:
        raise ImageError(f"{given}: {expected}. To move the channels last, use image.transpose(1, 2, 0).")
    raise ImageError(f"{given}: {expected}")


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


def records_of(masks: Any, size: Size) -> list[MaskRecord]:
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


def _numbers(name: str, value: ArrayLike, columns: int) -> Floats:
    array = np.asarray(value, float)
    if not array.size:
        return np.zeros((0, columns))
    if array.ndim == 0 or array.shape[-1] != columns:
        raise ValueError(f"{name} have the shape {array.shape}: expected (N, {columns})")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} contain NaN or infinity: expected finite numbers")
    return array.reshape(-1, columns).clip(-_FAR, _FAR)


Points = Sequence[tuple[float, float]]

_SHOWN_SIDE = 768  # longer side in pixels of an image shown in a notebook: about 100 KB as JPEG


@dataclass(frozen=True)
class ImageMasks(MasksWithImage):
    """All masks of one image in `records`, and the number of masks left after each filter step in `funnel`.

    The result is also a sequence of its records: it has a length, and can be iterated, indexed, and sliced.

    Attributes:
        source: the image as you passed it, or None if it's unknown. A path remains a path, so that the results for many
            images need little memory.
        error: the reason why the image couldn't be read, or None. Only `generate_many` sets it.
    """

    source: Image | None = field(compare=False, repr=False)
    error: str | None = None

    @property
    def image(self) -> Pixels:
        """Pixels of the image, (height, width, 3) uint8 RGB.

        A path is read on each access. Raises `ImageError` on failure.
        """
        if self.error is not None:
            raise ImageError(self.error)
        if self.source is None:
            raise ImageError("these masks have no image: expected an embedding that `segmint.Predictor.embed` returned")
        return pixels_of(self.source)

    @property
    def masks(self) -> Bools:
        """Pixels of all masks, (N, height, width) bool, decoded on each access."""
        return np.stack([record.mask for record in self]) if len(self) else np.zeros((0, *self._size()), bool)

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[MaskRecord]:
        return iter(self.records)

    @overload
    def __getitem__(self, index: int) -> MaskRecord: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[MaskRecord, ...]: ...
    def __getitem__(self, index: int | slice) -> MaskRecord | tuple[MaskRecord, ...]:
        return self.records[index]

    def plot(self, **options: Any) -> "Axes":
        """Draw the image with its masks and return the matplotlib axes. Passes `options` to `segmint.show`."""
        return show(self, **options)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write SA-1B JSON if the name ends in .json, or a drawing of the masks over the image if it ends in .png.

        Returns the path. Raises ValueError for any other extension, and `ImageError` if the image is needed but can't
        be read.
        """
        path = Path(path).expanduser()
        if path.suffix.lower() == ".json":
            path.write_bytes(self._document())
        elif path.suffix.lower() == ".png":
            path.write_bytes(encode_png(draw_overlay(self._checked_image(), self.records)))
        else:
            raise ValueError(f"{path}: expected a name that ends in .json for the masks, or .png for a drawing of them")
        return path

    def cutout(self, index: int) -> PillowImage.Image:
        """Cut out the object of mask `index` as an RGBA image of its box.

        Pixels outside the mask are transparent black. Raises IndexError if the mask doesn't exist, ValueError if it is
        empty, and `ImageError` if the image can't be read.
        """
        return PillowImage.fromarray(cut_out(self._checked_image(), self.records[index].mask))

    def to_supervision(self) -> Any:
        """Convert the masks to `supervision.Detections` of class 0, with the predicted IoU as the confidence.

        The masks stay run lengths, as a `supervision.CompactMask`, if the installed supervision has it. Otherwise, they
        are arrays. `data` contains `stability_score`, (N,) float64. Raises ImportError if supervision isn't installed.
        """
        import supervision

        boxes = np.array([record.bbox for record in self], np.float32).reshape(-1, 4)
        corners = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
        compact = getattr(getattr(supervision, "CompactMask", None), "from_coco_rle", None)
        masks: Any
        if compact is None:
            masks = self.masks
        else:
            masks = compact([vars(record.segmentation) for record in self], corners, self._size())
        return supervision.Detections(
            xyxy=corners,
            mask=masks,
            confidence=np.array([record.predicted_iou for record in self], np.float32),
            class_id=np.zeros(len(self), int),  # without classes, its annotators fail by default
            data={"stability_score": np.array([record.stability_score for record in self])},
        )

    def _points(self) -> Sequence[Points]:
        """Return the points that prompted each mask."""
        return [[record.point_coords] for record in self]

    def _size(self) -> Size:
        """Return the masks' (height, width)."""
        if self.records:
            return self.records[0].segmentation.size
        height, width, _ = self.image.shape
        return height, width

    def _checked_image(self) -> Pixels:
        pixels = self.image
        if pixels.shape[:2] != self._size():
            height, width = self._size()
            raise ImageError(
                f"{describe(self.source)} is {pixels.shape[1]} x {pixels.shape[0]} pixels, but its masks are {width} x "
                f"{height}: expected the image that they were made for"
            )
        return pixels

    def _document(self) -> bytes:
        is_named = isinstance(self.source, (str, os.PathLike)) or bool(getattr(self.source, "filename", ""))
        name = Path(describe(self.source)).name if is_named else "image"
        masks = [PromptedMask(*each) for each in zip(self, self._points(), strict=True)]
        return sa1b_document(image_id(name), name, self._size(), masks)

    def __repr__(self) -> str:
        if self.error is not None:
            return f"ImageMasks(error={self.error!r})"
        return f"ImageMasks({len(self.records)} masks of {describe(self.source)})"

    def _repr_html_(self) -> str:
        """Return the notebook view: the image with its masks and their number."""
        if self.error is not None:
            return f"<p><b>No masks</b>: {html.escape(self.error)}</p>"
        count = f"{len(self.records)} mask{'' if len(self.records) == 1 else 's'}"
        caption = html.escape(f"{count} of {describe(self.source)}")
        try:
            pixels = self._checked_image()
        except ImageError as error:  # the file was deleted or changed in the meantime
            return f"<p>{caption}; {html.escape(str(error))}</p>"
        picture = PillowImage.fromarray(draw_overlay(pixels, self.records))
        picture.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE), PillowImage.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=85)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        return (
            f'<figure style="margin:0"><img src="data:image/jpeg;base64,{data}" alt="{caption}" '
            f'style="max-width:100%"><figcaption>{caption}</figcaption></figure>'
        )


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class PredictedMasks(ImageMasks, PromptMasks):
    """Masks predicted for B prompts: the best mask for each prompt in `records`, and all C masks in `all_masks`.

    Attributes:
        prompt_points: the points of each prompt; empty for a prompt without points.
        upscale: function that converts `low_res_logits` to logits (B, C, height, width) in the image's frame.
    """

    prompt_points: Sequence[Points]
    upscale: Callable[[Tensor], Tensor]

    @property
    def all_masks(self) -> Bools:
        """Pixels of all C masks for each prompt, (B, C, height, width) bool, computed on each access."""
        parts = [(self.upscale(part[None]) > 0).cpu().numpy() for part in self.low_res_logits]
        found: Bools = np.concatenate(parts) if parts else np.zeros((0, 0, *self._size()), bool)
        return found

    def _points(self) -> Sequence[Points]:
        return self.prompt_points

    __repr__ = PromptMasks.__repr__
