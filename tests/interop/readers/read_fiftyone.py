"""FiftyOne reads an export: read_fiftyone.py EXPORT EXPECTED."""

import sys

import fiftyone
from expected import MaskCounter, load_expected, load_labels


def main(export: str, expected: str) -> None:
    """Load the folder as FiftyOne's own format, and let it paint each mask into its image."""
    wanted = load_expected(expected)
    tally, labels = MaskCounter(), load_labels(expected)
    dataset = fiftyone.Dataset.from_dir(dataset_dir=export, dataset_type=fiftyone.types.FiftyOneDataset)
    print(f"fiftyone {fiftyone.__version__}: {len(dataset)} samples, {dataset.count('masks.detections')} detections")
    dataset.compute_metadata(overwrite=True)  # opens each picture
    for sample in dataset:
        ids, masks = wanted[sample.segmint_id]
        size = (sample.metadata.width, sample.metadata.height)
        detections = sample.masks.detections
        tally.require([each.segmint_id for each in detections] == ids, f"image {sample.segmint_id}: its masks' ids")
        tally.require(bool(sample.license), f"image {sample.segmint_id}: no license")
        named = {each.segmint_id: each.label for each in detections}
        tally.require(all(labels[id] == named.get(id) for id in ids), f"image {sample.segmint_id}: its masks' labels")
        for detection, mask in zip(detections, masks, strict=True):
            tally.compare(f"mask {detection.segmint_id}", detection.to_segmentation(frame_size=size).mask > 0, mask)
    tally.require(sorted(dataset.values("segmint_id")) == list(wanted), "the images")
    tally.require(len(dataset.match(fiftyone.ViewField("masks.detections").length() > 0)) > 0, "no match")
    tally.require("dataset_digest" in dataset.info, "the dataset's digest")
    dataset.delete()
    tally.end("fiftyone", sum(len(ids) for ids, _ in wanted.values()))


main(*sys.argv[1:])
