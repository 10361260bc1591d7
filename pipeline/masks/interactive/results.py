"""Result types for the masks of one image, with methods to plot, save, and convert them, and a view for notebooks."""

import base64
import html
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from torch import Tensor

from segmint.model.automatic.records import MaskRecord
from segmint.model.sam.predictor import PromptMasks
from segmint.operators.overlay import cut_out, draw_overlay, encode_png
from segmint.pipeline.masks.document import sa1b_document
from segmint.pipeline.masks.interactive.images import Image, ImageError, Pixels, describe, pixels_of
from segmint.pipeline.masks.interactive.show import MasksWithImage, show
from segmint.pipeline.masks.outputs import image_id
from segmint.pipeline.masks.predict import PromptedMask

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
    def masks(self) -> NDArray[np.bool_]:
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

    def _size(self) -> tuple[int, int]:
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
    def all_masks(self) -> NDArray[np.bool_]:
        """Pixels of all C masks for each prompt, (B, C, height, width) bool, computed on each access."""
        parts = [(self.upscale(part[None]) > 0).cpu().numpy() for part in self.low_res_logits]
        found: NDArray[np.bool_] = np.concatenate(parts) if parts else np.zeros((0, 0, *self._size()), bool)
        return found

    def _points(self) -> Sequence[Points]:
        return self.prompt_points

    __repr__ = PromptMasks.__repr__
