"""Hugging Face's `datasets` reads an export: read_hf.py EXPORT EXPECTED."""

import sys

import datasets
import numpy as np
from expected import MaskCounter, load_expected, load_labels


def main(export: str, expected: str) -> None:
    """Load the folder by its card, whole and as a stream, and compare."""
    wanted = load_expected(expected)
    tally, labels = MaskCounter(), load_labels(expected)
    whole = datasets.load_dataset(export, split="train")
    stream = datasets.load_dataset(export, split="train", streaming=True)
    print(f"datasets {datasets.__version__}: {whole.num_rows} rows, columns {', '.join(whole.column_names)}")
    for rows in (whole, stream):
        for row in rows:
            ids, masks = wanted[row["id"]]
            tally.require(row["image"].size == (row["width"], row["height"]), f"image {row['id']}: its size")
            tally.require([each["id"] for each in row["objects"]] == ids, f"image {row['id']}: the ids of its masks")
            named = [each.get("label") or "object" for each in row["objects"]]
            tally.require(named == [labels[id] for id in ids], f"image {row['id']}: its masks' labels")
            tally.require(bool(row["license"]), f"image {row['id']}: no license")
            for id, picture, mask in zip(ids, row["masks"], masks, strict=True):
                tally.compare(f"mask {id}", np.asarray(picture), mask)
    category = whole.features["objects"].feature.get("category")
    if category is not None:
        found = {each["id"]: category.int2str(each["category"]) for row in whole for each in row["objects"]}
        tally.require(found == labels, "the categories")
    tally.require(category is not None or set(labels.values()) == {"object"}, "no categories")
    tally.require(whole["id"][:] == list(wanted), "the images")
    tally.end("hf", 2 * sum(len(ids) for ids, _ in wanted.values()))


main(*sys.argv[1:])
