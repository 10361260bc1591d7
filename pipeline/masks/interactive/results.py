"""Result type for the masks of one image, which renders itself in a notebook."""

import base64
import html
import io
from dataclasses import dataclass, field

from PIL import Image as PillowImage

from segmint.model.automatic.records import GeneratedMasks
from segmint.operators.overlay import draw_overlay
from segmint.pipeline.masks.interactive.images import Image, ImageError, Pixels, describe, pixels_of

_SHOWN_SIDE = 768  # longer side in pixels of an image shown in a notebook: about 100 KB as JPEG


@dataclass(frozen=True)
class ImageMasks(GeneratedMasks):
    """All masks of one image in `records`, with the counts of each filter step in `funnel`.

    Attributes:
        source: the image as it was given; paths stay paths, so that results for many images are small.
        error: the reason why there are no masks, or None if the image could be read. Only `generate_many` sets it.
    """

    source: Image = field(compare=False, repr=False)
    error: str | None = None

    @property
    def image(self) -> Pixels:
        """The image's pixels, (height, width, 3) uint8 RGB, read again from a path. Raises `ImageError`."""
        return pixels_of(self.source)

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
            pixels = self.image
        except ImageError as error:  # the file was deleted in the meantime
            return f"<p>{caption}; {html.escape(str(error))}</p>"
        if any(record.segmentation.size != pixels.shape[:2] for record in self.records):
            return f"<p>{caption}; not drawn, because the image's size has changed</p>"
        picture = PillowImage.fromarray(draw_overlay(pixels, self.records))
        picture.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE), PillowImage.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=85)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        return (
            f'<figure style="margin:0"><img src="data:image/jpeg;base64,{data}" alt="{caption}" '
            f'style="max-width:100%"><figcaption>{caption}</figcaption></figure>'
        )
