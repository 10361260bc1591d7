"""Cleaning of accepted masks, as automatic masks are cleaned (SAM paper, Appendix B)."""

from segmint.model.automatic.boxes import box_of
from segmint.model.automatic.candidates import MaskPatch
from segmint.model.automatic.cleanup import clean_patch
from segmint.model.automatic.rle import Rle, decode
from segmint.operators.annotations.pairs import iou

LEAST_PIXELS = 100
"""Area in pixels below which specks are removed and holes are filled."""

LEAST_IOU = 0.98
"""Minimum IoU between a mask and its cleaned version. If it is lower, the mask stays unchanged."""


def clean_mask(mask: Rle) -> Rle:
    """Remove the small specks and holes of a nonempty mask, unless that would change the mask too much.

    If every piece of the mask is small, the largest piece stays.
    """
    pixels = decode(mask)
    cleaned = clean_patch(MaskPatch.pack(pixels, box_of(pixels)), mask.size, LEAST_PIXELS, keep_largest=True).patch
    if cleaned is None:
        return mask
    found = cleaned.encode(mask.size)
    codes = [{"size": list(mask.size), "counts": each.counts.encode()} for each in (mask, found)]
    return found if float(iou(codes[:1], codes[1:])[0][0]) >= LEAST_IOU else mask
