"""pycocotools reads an export: read_coco.py EXPORT EXPECTED."""

import sys
from importlib.metadata import version
from pathlib import Path

from expected import MaskCounter, load_expected
from pycocotools.coco import COCO


def main(export: str, expected: str) -> None:
    """Load the document, and compare the masks of each image."""
    wanted = load_expected(expected)
    tally = MaskCounter()
    loaded = COCO(str(Path(export) / "instances.json"))
    print(f"pycocotools {version('pycocotools')}: {len(loaded.imgs)} images, {len(loaded.anns)} annotations")
    for number, (ids, masks) in wanted.items():
        tally.require(loaded.getAnnIds(imgIds=number) == ids, f"image {number}: the ids of its masks")
        for id, mask in zip(ids, masks, strict=True):
            tally.compare(f"mask {id}", loaded.annToMask(loaded.anns[id]) > 0, mask)
    tally.require(loaded.getImgIds() == list(wanted), "the images")
    tally.end("coco", sum(len(ids) for ids, _ in wanted.values()))


main(*sys.argv[1:])
