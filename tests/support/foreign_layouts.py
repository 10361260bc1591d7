"""Sound datasets in the layouts of COCO, YOLO, and SA-1B, from crops of photographs, for tests that damage them."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

SIZE = 240, 200
"""Width and height of each picture."""

_PLACES = ((0.0, 0.0), (0.5, 0.5), (0.0, 0.5), (0.5, 0.0))  # of the crops, in shares of the photograph


def crops(photos: Path) -> list[Image.Image]:
    """Cut different pictures from the photographs, without metadata."""
    found = []
    for place in _PLACES:
        for name in ("dog.jpg", "groceries.jpg", "truck.jpg", "plate_car_1.png", "plate_car_2.webp", "multiface.jpg"):
            with Image.open(photos / name) as photo:
                picture = photo.convert("RGB")
            left, top = (round(share * side) for share, side in zip(place, picture.size, strict=True))
            box = left, top, left + picture.width // 2, top + picture.height // 2
            found.append(picture.crop(box).resize(SIZE, Image.Resampling.LANCZOS))
    return found


def encoded(picture: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    """Encode a picture without metadata, except for that in `options`."""
    bare = Image.fromarray(np.asarray(picture))
    sink = io.BytesIO()
    bare.save(sink, form, **({"quality": 90} if form == "JPEG" else {}), **options)
    return sink.getvalue()


def ellipse(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    """Return a mask of `SIZE`, and thereby its height and width, bool."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    middle = (left + right) / 2, (top + bottom) / 2
    inside = ((x - middle[0]) / (right - left) * 2) ** 2 + ((y - middle[1]) / (bottom - top) * 2) ** 2
    return inside <= 1


def run_lengths(mask: np.ndarray, *, compressed: bool = True) -> dict[str, Any]:
    """Encode a mask as COCO's run lengths, as text or as a list of numbers."""
    if compressed:
        code = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        return {"size": list(mask.shape), "counts": code["counts"].decode()}
    flat = mask.T.reshape(-1)
    changes = np.flatnonzero(np.diff(flat.astype(np.int8))) + 1
    runs = np.diff([0, *changes.tolist(), flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


def polygon(left: int, top: int, right: int, bottom: int) -> list[float]:
    """Return the outline of an ellipse as x, y, x, y, …, in pixels."""
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x = (left + right) / 2 + (right - left) / 2 * np.cos(angles)
    y = (top + bottom) / 2 + (bottom - top) / 2 * np.sin(angles)
    return np.stack([x, y], axis=1).round(2).reshape(-1).tolist()


def annotations(first: int, image: int, *, compressed: bool = True) -> list[dict[str, Any]]:
    """Return two annotations in COCO's form: a polygon, and run lengths of a crowd."""
    outline = polygon(30, 40, 110, 120)
    mask = ellipse(120, 60, 200, 160)
    x, y = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    box = [int(v) for v in (x[0], y[0], x[-1] - x[0] + 1, y[-1] - y[0] + 1)]
    about = {"image_id": image, "category_id": 1}
    shape = {"segmentation": [outline], "bbox": [30.0, 40.0, 80.0, 80.0], "area": 5_026.5, "iscrowd": 0}
    crowd = {
        "segmentation": run_lengths(mask, compressed=compressed),
        "bbox": box,
        "area": int(mask.sum()),
        "iscrowd": 1,
    }
    return [{"id": first, **about, **shape}, {"id": first + 1, **about, **crowd}]


def coco_document(names: list[str], *, compressed: bool = True) -> dict[str, Any]:
    """Return a COCO document with images of these names, numbered from 1, and two annotations of each."""
    images = [
        {"id": number, "file_name": name, "width": SIZE[0], "height": SIZE[1], "license": 1}
        for number, name in enumerate(names, 1)
    ]
    found = [each for image in images for each in annotations(10 * image["id"], image["id"], compressed=compressed)]
    return {
        "licenses": [{"id": 1, "name": "CC-BY-4.0"}],
        "categories": [{"id": 1, "name": "thing"}],
        "images": images,
        "annotations": found,
    }


def write_coco(folder: Path, splits: dict[str, list[bytes]]) -> Path:
    """Write a COCO dataset: `annotations/instances_<split>.json` beside a folder of pictures for each split."""
    (folder / "annotations").mkdir(parents=True)
    for split, pictures in splits.items():
        (folder / split).mkdir()
        names = [f"{index:03}.jpg" for index in range(len(pictures))]
        for name, data in zip(names, pictures, strict=True):
            (folder / split / name).write_bytes(data)
        put_json(folder / "annotations" / f"instances_{split}.json", coco_document(names))
    return folder


def write_yolo(folder: Path, splits: dict[str, list[bytes]]) -> Path:
    """Write a YOLO dataset with a polygon and a box for each picture."""
    for split, pictures in splits.items():
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for index, data in enumerate(pictures):
            (folder / "images" / split / f"{index:03}.jpg").write_bytes(data)
            (folder / "labels" / split / f"{index:03}.txt").write_text(f"{yolo_polygon()}\n1 0.5 0.5 0.25 0.3\n")
    lines = ["license: CC-BY-4.0", "names: [thing, other]", *(f"{split}: images/{split}" for split in splits)]
    (folder / "data.yaml").write_text("\n".join(lines))
    return folder


def yolo_polygon() -> str:
    """Return a line of a label file with a polygon."""
    points = np.array(polygon(30, 40, 110, 120)).reshape(-1, 2) / SIZE
    return f"0 {' '.join(f'{value:.6f}' for value in points.reshape(-1))}"


def write_sa1b(folder: Path, pictures: list[bytes]) -> Path:
    """Write pairs of a JPEG and a JSON as in SA-1B, with boxes between the outermost pixels."""
    folder.mkdir(parents=True)
    for index, data in enumerate(pictures, 1):
        (folder / f"sa_{index}.jpg").write_bytes(data)
        (_, crowd) = annotations(10 * index, index)
        x, y, width, height = crowd["bbox"]
        mask = {
            "id": 10 * index,
            "segmentation": crowd["segmentation"],
            "area": crowd["area"],
            "bbox": [x, y, width - 1, height - 1],
            "predicted_iou": 0.9,
            "stability_score": 0.95,
            "crop_box": [0, 0, *SIZE],
            "point_coords": [[150, 100]],
        }
        image = {"image_id": index, "width": SIZE[0], "height": SIZE[1], "file_name": f"sa_{index}.jpg"}
        put_json(folder / f"sa_{index}.json", {"image": image, "annotations": [mask]})
    return folder


def put_json(path: Path, document: Any) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(document))


def gps_exif() -> bytes:
    """Return EXIF data with the position of a camera."""
    exif = Image.Exif()
    exif[0x8825] = {1: "N", 2: (52.0, 30.0, 0.0), 3: "E", 4: (13.0, 24.0, 0.0)}
    return exif.tobytes()


def thumbnail_exif(thumbnail: Image.Image) -> bytes:
    """Return EXIF data with a thumbnail: a little-endian TIFF of two empty directories, the second with the JPEG."""
    small = thumbnail.copy()
    small.thumbnail((160, 160))
    jpeg = encoded(small)
    first = (0).to_bytes(2, "little") + (14).to_bytes(4, "little")
    entries = ((0x0201, 4, 44), (0x0202, 4, len(jpeg)))
    second = len(entries).to_bytes(2, "little")
    for tag, kind, value in entries:
        second += tag.to_bytes(2, "little") + kind.to_bytes(2, "little")
        second += (1).to_bytes(4, "little") + value.to_bytes(4, "little")
    return b"Exif\0\0II*\0" + (8).to_bytes(4, "little") + first + second + bytes(4) + jpeg
