"""pycocotools reads an export: read_coco.py EXPORT EXPECTED."""

import sys
from importlib.metadata import version
from pathlib import Path

from expected import MaskCounter, load_expected, load_labels
from pycocotools.coco import COCO


def main(export: str, expected: str) -> None:
    """Load the document, and compare the masks of each image."""
    wanted = load_expected(expected)
    tally = MaskCounter()
    (file,) = Path(export).glob("*.json")  # instances.json, or lvis.json
    loaded = COCO(str(file))
    print(f"pycocotools {version('pycocotools')}: {len(loaded.imgs)} images, {len(loaded.anns)} annotations")
    for number, (ids, masks) in wanted.items():
        tally.require(loaded.getAnnIds(imgIds=number) == ids, f"image {number}: the ids of its masks")
        for id, mask in zip(ids, masks, strict=True):
            tally.compare(f"mask {id}", loaded.annToMask(loaded.anns[id]) > 0, mask)
    named = {id: loaded.cats[each["category_id"]]["name"] for id, each in loaded.anns.items()}
    tally.require(named == load_labels(expected), "the labels")
    tally.require(loaded.getImgIds() == list(wanted), "the images")
    tally.end("coco", sum(len(ids) for ids, _ in wanted.values()))


main(*sys.argv[1:])
