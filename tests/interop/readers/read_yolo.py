"""Ultralytics reads an export: read_yolo.py EXPORT EXPECTED."""

import copy
import csv
import sys
from pathlib import Path

import numpy as np
import ultralytics
from expected import MaskCounter, load_expected, load_labels
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset, polygons2masks


def main(export: str, expected: str) -> None:
    """Load the labels as training does, and paint each as Ultralytics paints it, before and after its resampling."""
    wanted = load_expected(expected)
    with (Path(export) / "left_out.csv").open(encoding="utf-8") as file:
        skipped = {int(row["mask"]): row["reason"] for row in csv.DictReader(file)}
    for reason in sorted({reason.partition(":")[0] for reason in skipped.values()}):
        print(f"  left out: {sum(each.startswith(reason) for each in skipped.values())} masks: {reason}")
    tally, labels = MaskCounter(), load_labels(expected)
    data = check_det_dataset(str(Path(export) / "data.yaml"))
    dataset = YOLODataset(img_path=data["train"], data=data, task="segment", augment=False)
    print(f"ultralytics {ultralytics.__version__}: {len(dataset.labels)} images, names {data['names']}")
    count = 0
    for label in dataset.labels:
        ids, masks = wanted[int(Path(label["im_file"]).stem.removeprefix("sa_"))]
        kept = [(id, mask) for id, mask in zip(ids, masks, strict=True) if id not in skipped]
        count += len(kept)
        tally.require(len(label["segments"]) == len(kept), f"{label['im_file']}: {len(label['segments'])} polygons")
        named = [data["names"][int(number)] for number in label["cls"].ravel()]
        tally.require(named == [labels[id] for id, _ in kept], f"{label['im_file']}: its classes")
        height, width = label["shape"]
        side = np.array([width, height], np.float32)
        # For training it adds points between, which it then cuts off to whole pixels.
        for segments, what, least in (
            (label["segments"], "mask", 0.99),
            (dataset.update_labels_info(copy.deepcopy(label))["instances"].segments, "resampled mask", 0.98),
        ):
            for segment, (id, mask) in zip(segments, kept, strict=True):
                (painted,) = polygons2masks((height, width), [(segment * side).reshape(-1)], color=1)
                tally.compare(f"{what} {id}", painted > 0, mask, least)
    tally.require(len(dataset.labels) == len(wanted), "the images")
    tally.end("yolo", 2 * count)


main(*sys.argv[1:])
