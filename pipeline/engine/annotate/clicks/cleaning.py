"""Cleaning of accepted masks, as automatic masks are cleaned (SAM paper, Appendix B)."""

from segmint.model.automatic.boxes import box_of
from segmint.model.automatic.candidates import MaskPatch
from segmint.model.automatic.cleanup import clean_patch
from segmint.model.automatic.rle import Rle, decode
from segmint.operators.annotations.pairs import iou

LEAST_PIXELS = 100
"""Specks and holes of fewer pixels are cleaned."""

LEAST_IOU = 0.98
"""IoU with the cleaned mask below which a mask stays as it is."""


def clean_mask(mask: Rle) -> Rle:
    """Return a nonempty mask without its small specks and holes, or the mask itself if that would change it too much.

    If all pieces are small, the largest one stays.
    """
    pixels = decode(mask)
    cleaned = clean_patch(MaskPatch.pack(pixels, box_of(pixels)), mask.size, LEAST_PIXELS, keep_largest=True).patch
    if cleaned is None:
        return mask
    found = cleaned.encode(mask.size)
    codes = [{"size": list(mask.size), "counts": each.counts.encode()} for each in (mask, found)]
    return found if float(iou(codes[:1], codes[1:])[0][0]) >= LEAST_IOU else mask
