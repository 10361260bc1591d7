"""The masks of one image with the image they are of, so that a notebook can show them."""

import base64
import html
import io
from dataclasses import dataclass, field

from PIL import Image as PillowImage

from segmint.model.automatic.records import GeneratedMasks
from segmint.operators.overlay import draw_overlay
from segmint.pipeline.masks.interactive.images import Image, ImageError, Pixels, describe, pixels_of

_SHOWN_SIDE = 768  # pixels of the longer side of a picture inside a notebook: some 100 KB as JPEG


@dataclass(frozen=True)
class ImageMasks(GeneratedMasks):
    """All masks of one image, `records`, with the counts on the way there, `funnel`.

    Attributes:
        source: the image as it was given: a path stays a path, so that results of many images are small.
        error: why there are no masks; None if the image could be read. `generate_many` alone sets it.
    """

    source: Image = field(compare=False, repr=False)
    error: str | None = None

    @property
    def image(self) -> Pixels:
        """The image's pixels, (height, width, 3) uint8 RGB; a path is read again. Raises `ImageError`."""
        return pixels_of(self.source)

    def __repr__(self) -> str:
        if self.error is not None:
            return f"ImageMasks(error={self.error!r})"
        return f"ImageMasks({len(self.records)} masks of {describe(self.source)})"

    def _repr_html_(self) -> str:
        """A notebook's view: the image with its masks, and how many there are."""
        if self.error is not None:
            return f"<p><b>No masks</b>: {html.escape(self.error)}</p>"
        count = f"{len(self.records)} mask{'' if len(self.records) == 1 else 's'}"
        caption = html.escape(f"{count} of {describe(self.source)}")
        try:
            pixels = self.image
        except ImageError as error:  # the file is gone since
            return f"<p>{caption}; {html.escape(str(error))}</p>"
        if any(record.segmentation.size != pixels.shape[:2] for record in self.records):
            return f"<p>{caption}; its size is another one now, so they are not drawn</p>"
        picture = PillowImage.fromarray(draw_overlay(pixels, self.records))
        picture.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE), PillowImage.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=85)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        return (
            f'<figure style="margin:0"><img src="data:image/jpeg;base64,{data}" alt="{caption}" '
            f'style="max-width:100%"><figcaption>{caption}</figcaption></figure>'
        )
