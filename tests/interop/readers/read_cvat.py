"""Datumaro, with which CVAT reads files, reads an export: read_cvat.py EXPORT EXPECTED."""

import sys
from importlib.metadata import version
from pathlib import Path

from datumaro import AnnotationType, Dataset
from expected import MaskCounter, load_expected, load_labels


def main(export: str, expected: str) -> None:
    """Import CVAT's *COCO 1.0*, and compare the masks of each image."""
    wanted = load_expected(expected)
    tally, labels = MaskCounter(), load_labels(expected)
    dataset = Dataset.import_from(export, "coco_instances")
    print(f"datumaro {version('datumaro')}: {len(dataset)} items")
    names = dataset.categories()[AnnotationType.label]
    for item in dataset:
        ids, masks = wanted[int(Path(item.id).stem.removeprefix("sa_"))]
        got = {each.id: each for each in item.annotations if each.type == AnnotationType.mask}
        tally.require(sorted(got) == sorted(ids), f"{item.id}: {len(got)} masks")
        for id, mask in zip(ids, masks, strict=True):
            if id in got:
                tally.compare(f"mask {id}", got[id].image, mask)
                tally.require(names[got[id].label].name == labels[id], f"mask {id}: its label")
    tally.require(len(dataset) == len(wanted), "the images")
    tally.end("cvat", sum(len(ids) for ids, _ in wanted.values()))


main(*sys.argv[1:])
