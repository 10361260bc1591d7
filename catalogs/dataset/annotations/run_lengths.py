"""Validation of external masks' run lengths: COCO's compressed form, in the canonical encoding that segmint writes."""

from segmint.infra.run_lengths import compress, decompress


def canonical_area(counts: str, size: tuple[int, int]) -> int:
    """Return the number of pixels in a mask of `size` (height, width) with the compressed run lengths `counts`.

    Equal masks must have equal counts, so only the canonical encoding is valid. Raises `ValueError` in any of these
    cases: the text contains a character outside the alphabet or ends too early, a number takes more groups than
    necessary, a run after the first one is empty, or the runs don't fill the size.
    """
    runs = decompress(counts)
    if not runs.size:
        raise ValueError("no run lengths")
    pixels = size[0] * size[1]
    if runs.min() < 0 or runs.max() > pixels or int(runs.sum()) != pixels:
        raise ValueError(f"the runs do not fill {size[1]} x {size[0]} pixels")
    if (runs[1:] == 0).any():
        raise ValueError("a run without pixels after the first")
    if compress(runs) != counts:
        raise ValueError("a number in more groups than it needs")
    return int(runs[1::2].sum())
