"""SA-1B-style data of another origin: a dataset's images and JSONs as loose files, or in tars."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pycocotools import mask as coco

Document = dict[str, Any]


def loosen(dataset: Path, folder: Path, change: Callable[[Document], None] = lambda _: None, name: str = "sa_") -> Path:
    """Put each image of a dataset and its JSON into a folder, the JSON as `change` leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((dataset / "shards").glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                stream = archive.extractfile(member)
                assert stream is not None
                data = stream.read()
                if member.name.endswith(".json"):
                    document = json.loads(data)
                    change(document)
                    data = json.dumps(document).encode()
                (folder / member.name.replace("sa_", name)).write_bytes(data)
    return folder


def pack(folder: Path, destination: Path, tars: int = 2) -> Path:
    """Move the pairs of a folder into tars of another."""
    destination.mkdir(parents=True, exist_ok=True)
    stems = sorted({path.stem for path in folder.iterdir()})
    for index in range(tars):
        with tarfile.open(destination / f"part_{index}.tar", "w") as archive:
            for stem in stems[index::tars]:
                for path in sorted(folder.glob(f"{stem}.*")):
                    archive.add(path, path.name)
    return destination


def count_pixels(document: Document) -> None:
    """Make boxes those of COCO, which count pixels."""
    for annotation in document["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [x, y, width + 1, height + 1]


def uncompress(document: Document) -> None:
    """Make run lengths lists of numbers, by pycocotools' decoder."""
    for annotation in document["annotations"]:
        code = annotation["segmentation"]
        pixels = coco.decode({"size": code["size"], "counts": code["counts"].encode()}).T.reshape(-1).tolist()
        runs, value = [0], 0
        for pixel in pixels:
            if pixel != value:
                runs.append(0)
                value = pixel
            runs[-1] += 1
        code["counts"] = runs
