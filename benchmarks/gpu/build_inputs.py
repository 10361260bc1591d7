"""Inputs of the builds on a GPU machine: photographs with a catalog, a ViT checkpoint, and configurations."""

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

JPEG_QUALITY = 90
NOISE = 2
"""Standard deviation of the added noise, in gray levels. Without noise, enlarged pictures would decode too fast."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})


def write_photographs(sources: Path, count: int, folder: Path, size: tuple[int, int]) -> Path:
    """Write `count` different JPEGs of `size` (width, height), and a catalog of them. Return the catalog's path.

    Each is an enlarged cutout of a picture in the folder `sources`, with a different position, brightness, and noise.
    Raises FileNotFoundError if the folder contains no pictures.
    """
    pictures = sorted(path for path in sources.iterdir() if path.suffix.lower() in SUFFIXES)
    if not pictures:
        raise FileNotFoundError(f"{sources} has no photographs")
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    rows = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        written = []
        for number in range(count):
            name = f"photos/{number:04}.jpg"
            picture = pictures[number % len(pictures)]
            written.append(pool.submit(write_photograph, picture, number, folder / name, size))
            rows.append({"uri": name, "license": "CC0-1.0", "image_id": f"{number:04}", "redistributable": True})
        for one in written:
            one.result()
    return write_catalog(rows, folder / "catalog.jsonl")


def write_catalog(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Write a catalog as JSON Lines, and return its path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_photograph(source: Path, number: int, path: Path, size: tuple[int, int]) -> None:
    """Write the variant `number` of a picture as a JPEG of `size` (width, height)."""
    picture = cv2.imread(str(source))
    if picture is None:
        raise ValueError(f"{source} is not a picture")
    random = np.random.default_rng(number)
    height, width = picture.shape[:2]
    share = random.uniform(0.6, 1.0)
    cut_height, cut_width = int(height * share), int(width * share)
    top = random.integers(0, height - cut_height + 1)
    left = random.integers(0, width - cut_width + 1)
    cutout = picture[top : top + cut_height, left : left + cut_width]
    enlarged = cv2.resize(cutout, size, interpolation=cv2.INTER_CUBIC)
    if number % 2:
        enlarged = cv2.flip(enlarged, 1)
    noise = random.standard_normal(enlarged.shape, dtype=np.float32) * NOISE
    toned = enlarged * np.float32(random.uniform(0.85, 1.15)) + noise
    pixels = np.clip(toned, 0, 255).astype(np.uint8)
    if not cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]):
        raise OSError(f"{path} could not be written")


def write_checkpoint(mobile_sam: Path, architecture: str, device: torch.device, path: Path) -> None:
    """Write a checkpoint with a random image encoder, and the prompt encoder and mask decoder of MobileSAM.

    The encoder costs the same as a trained one, but its features don't show objects, so predicted IoUs are low.
    """
    from segmint.model.sam.load import build_sam

    trained = torch.load(mobile_sam, map_location="cpu", weights_only=True)
    torch.manual_seed(0)
    with torch.device("meta"):
        sam = build_sam(architecture)  # type: ignore[arg-type]
    made = {}
    for name, tensor in sam.state_dict().items():
        if not name.startswith("image_encoder."):
            made[name] = trained[name]
            continue
        weights = torch.empty(tensor.shape, device=device)
        if name.endswith("weight") and weights.ndim == 1:  # of a normalization
            weights.fill_(1.0)
        else:
            weights.normal_(std=0.02)
        made[name] = weights.cpu()
    torch.save(made, path)


def write_config(values: Mapping[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    """Write a configuration as JSON, which is also YAML. Return `differences(values)`.

    Raises pydantic's ValidationError if a value is invalid.
    """
    found = differences(values)
    path.write_text(json.dumps(values, indent=2))
    return found


def differences(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the keys whose values differ from segmint's defaults, as `{"masks.pred_iou_thresh": {"default", "here"}}`.

    Keys without a default (`name`, `catalog`, `output`, and `license.allow`) are omitted.
    """
    from segmint.pipeline.config.config import Config

    given = Config(**values)
    required = {name: values[name] for name in ("name", "catalog", "output")}
    usual = Config(**required, license={"allow": given.license.allow})
    here, default = flat(given.model_dump(mode="json")), flat(usual.model_dump(mode="json"))
    found = {}
    for key in sorted(here.keys() | default.keys()):
        if here.get(key) != default.get(key):
            found[key] = {"default": default.get(key), "here": here.get(key)}
    return found


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries to one with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
