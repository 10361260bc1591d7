"""Label Studio's converter reads an export: read_label_studio.py EXPORT EXPECTED."""

import json
import re
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np
from expected import MaskCounter, load_expected, load_labels
from label_studio_sdk.converter import Converter
from label_studio_sdk.label_interface import LabelInterface


def main(export: str, expected: str) -> None:
    """Take over each prediction as a person would, let the converter write the masks, and compare."""
    wanted = load_expected(expected)
    tally, labels = MaskCounter(), load_labels(expected)
    labeling = (Path(export) / "label_config.xml").read_text(encoding="utf-8")
    tasks = json.loads((Path(export) / "tasks.json").read_text(encoding="utf-8"))
    print(f"label-studio-sdk {version('label-studio-sdk')}: {len(tasks)} tasks")
    interface = LabelInterface(labeling)
    answered, found = [], {number: [] for number in wanted}
    for number, task in enumerate(tasks, 1):
        (prediction,) = task["predictions"]
        tally.require(bool(interface.validate_prediction(prediction)), f"task {number} is not valid")
        tally.require(len(prediction["result"]) <= 100, f"task {number} has {len(prediction['result'])} masks")
        annotation = {"id": number, "completed_by": 1, "was_cancelled": False, "result": prediction["result"]}
        for region in prediction["result"]:
            told = region["value"]["brushlabels"]
            tally.require(told == [labels[int(region["id"])]], f"region {region['id']}: its label")
        answered.append({"id": number, "data": task["data"], "annotations": [annotation], "predictions": []})
        found[task["data"]["segmint_id"]] += [(number, int(region["id"])) for region in prediction["result"]]
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "export.json", Path(folder) / "out"
        output.mkdir()
        source.write_text(json.dumps(answered), encoding="utf-8")
        Converter(labeling, folder).convert(str(source), str(output), "BRUSH_TO_NUMPY", is_dir=False)
        for number, (ids, masks) in wanted.items():
            tally.require([id for _, id in found[number]] == ids, f"image {number}: the ids of its masks")
            for path, id, mask in zip(_paths(output, found[number], labels), ids, masks, strict=False):
                tally.compare(f"mask {id}", np.load(path) == 255, mask)
        written = len(list(output.glob("*.npy")))
        tally.require(written == len(labels), f"{written} files")
    tally.end("label-studio", sum(len(ids) for ids, _ in wanted.values()))


def _paths(folder: Path, regions: list[tuple[int, int]], labels: dict[int, str]) -> list[Path]:
    """The file of each region (task, id): the converter counts the regions of a label in a task."""
    counts, paths = Counter(), []
    for task, id in regions:
        name = re.sub(r"[/\\]", "-", f"brush-{labels[id]}-{counts[task, labels[id]]}")
        paths.append(folder / f"task-{task}-annotation-{task}-by-1-{name}.npy")
        counts[task, labels[id]] += 1
    return paths


main(*sys.argv[1:])
