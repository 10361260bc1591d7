"""Hugging Face's `datasets` reads an export: read_hf.py EXPORT EXPECTED."""

import sys

import datasets
import numpy as np
from expected import MaskCounter, load_expected


def main(export: str, expected: str) -> None:
    """Load the folder by its card, whole and as a stream, and compare."""
    wanted = load_expected(expected)
    tally = MaskCounter()
    whole = datasets.load_dataset(export, split="train")
    stream = datasets.load_dataset(export, split="train", streaming=True)
    print(f"datasets {datasets.__version__}: {whole.num_rows} rows, columns {', '.join(whole.column_names)}")
    for rows in (whole, stream):
        for row in rows:
            ids, masks = wanted[row["id"]]
            tally.require(row["image"].size == (row["width"], row["height"]), f"image {row['id']}: its size")
            tally.require([each["id"] for each in row["objects"]] == ids, f"image {row['id']}: the ids of its masks")
            tally.require(bool(row["license"]), f"image {row['id']}: no license")
            for id, picture, mask in zip(ids, row["masks"], masks, strict=True):
                tally.compare(f"mask {id}", np.asarray(picture), mask)
    tally.require(whole["id"][:] == list(wanted), "the images")
    tally.end("hf", 2 * sum(len(ids) for ids, _ in wanted.values()))


main(*sys.argv[1:])
