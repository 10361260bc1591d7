"""supervision takes the masks of a result: read_supervision.py DATASET EXPECTED."""

import sys
from dataclasses import replace

import supervision
from expected import MaskCounter, load_expected

from segmint import open_dataset
from segmint.model.automatic.rle import Funnel
from segmint.pipeline.masks.results import ImageMasks, records_of


def main(dataset: str, expected: str) -> None:
    """Convert the masks of each image, compare their pixels, and draw them."""
    wanted, tally, count = load_expected(expected), MaskCounter(), 0
    for sample in open_dataset(dataset):
        _, masks = wanted[sample.id]
        count += len(masks)
        bare = records_of(sample.masks, sample.image.shape[:2]) if len(masks) else []
        records = tuple(replace(record, bbox=mask.bbox) for record, mask in zip(bare, sample.masks, strict=True))
        found = ImageMasks(records, Funnel(), sample.image).to_supervision()
        tally.require(len(found) == len(masks), f"image {sample.id}: {len(found)} masks")
        tally.require(isinstance(found.mask, supervision.CompactMask), f"image {sample.id}: {type(found.mask)}")
        for number, mask in enumerate(masks):
            tally.compare(f"mask {number} of image {sample.id}", found.mask[number], mask)
        annotated = supervision.MaskAnnotator().annotate(sample.image.copy(), found) if len(found) else sample.image
        tally.require(annotated.shape == sample.image.shape, f"image {sample.id}: its drawing")
    print(f"supervision {supervision.__version__}")
    tally.end("supervision", count)


main(*sys.argv[1:])
