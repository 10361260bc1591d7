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
from torch import Tensor, nn

SIDE = 1024
PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
RIDGE = 1e-3
JPEG_QUALITY = 90
NOISE = 2
"""Standard deviation of the added noise, in gray levels. Without noise, enlarged pictures would decode too fast."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})


def write_photographs(sources: Path, count: int, folder: Path, size: tuple[int, int]) -> Path:
    """Write `count` different JPEGs of `size` (width, height), and a catalog of them. Return the catalog's path.

    Each is an enlarged cutout of a picture in the folder `sources`, with a different position, brightness, and noise.
    Raises FileNotFoundError if the folder contains no pictures.
    """
    pictures = pictures_of(sources)
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


def pictures_of(folder: Path) -> list[Path]:
    """Return the pictures in a folder, sorted. Raises FileNotFoundError if it contains none."""
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not pictures:
        raise FileNotFoundError(f"{folder} has no photographs")
    return pictures


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
    enlarged = cv2.resize(random_part(picture, random, 0.6), size, interpolation=cv2.INTER_CUBIC)
    if number % 2:
        enlarged = cv2.flip(enlarged, 1)
    noise = random.standard_normal(enlarged.shape, dtype=np.float32) * NOISE
    toned = enlarged * np.float32(random.uniform(0.85, 1.15)) + noise
    pixels = np.clip(toned, 0, 255).astype(np.uint8)
    if not cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]):
        raise OSError(f"{path} could not be written")


def random_part(picture: Any, random: np.random.Generator, least: float) -> Any:
    """Return a random part of a picture (H, W, 3). Its sides have at least the share `least` of the picture's."""
    height, width = picture.shape[:2]
    share = random.uniform(least, 1.0)
    part_height, part_width = int(height * share), int(width * share)
    top = random.integers(0, height - part_height + 1)
    left = random.integers(0, width - part_width + 1)
    return picture[top : top + part_height, left : left + part_width]


def write_checkpoint(
    mobile_sam: Path, architecture: str, device: torch.device, path: Path, pictures: Path, samples: int
) -> None:
    """Write a checkpoint with a random image encoder, and the prompt encoder and mask decoder of MobileSAM.

    The encoder costs the same as a trained one. The layers of its neck are fitted so that its features of `samples`
    cutouts of the pictures in the folder `pictures` resemble MobileSAM's. Otherwise the decoder would predict so low
    IoUs that no mask would be kept.
    """
    from segmint.model.sam.load import load_sam, sam_from_state_dict

    trained = torch.load(mobile_sam, map_location="cpu", weights_only=True)
    state = random_encoder(trained, architecture, device)
    encoder = sam_from_state_dict(state).to(device).image_encoder
    teacher = load_sam(mobile_sam, device).image_encoder
    images = [cutout(pictures, number, device) for number in range(samples)]
    state |= fitted_neck(encoder, teacher, images)
    torch.save(state, path)


def random_encoder(trained: Mapping[str, Tensor], architecture: str, device: torch.device) -> dict[str, Tensor]:
    """Return a SAM's tensors: random ones of its image encoder, and those of `trained` for everything else."""
    from segmint.model.sam.load import build_sam

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
    return made


def cutout(pictures: Path, number: int, device: torch.device) -> Tensor:
    """Return a random cutout of a picture as SAM's encoder gets it, (1, 3, 1024, 1024) float32, padded with zeros."""
    paths = pictures_of(pictures)
    picture = cv2.imread(str(paths[number % len(paths)]))
    random = np.random.default_rng(number)
    part = random_part(picture, random, 0.3)[..., ::-1]
    scale = SIDE / max(part.shape[:2])
    size = round(part.shape[1] * scale), round(part.shape[0] * scale)
    resized = cv2.resize(np.ascontiguousarray(part), size, interpolation=cv2.INTER_CUBIC)
    pixels = (resized - np.array(PIXEL_MEAN)) / np.array(PIXEL_STD)
    padded = np.zeros((3, SIDE, SIDE), np.float32)
    padded[:, : size[1], : size[0]] = pixels.transpose(2, 0, 1)
    return torch.from_numpy(padded)[None].to(device)


def fitted_neck(encoder: nn.Module, teacher: nn.Module, images: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return weights of an encoder's neck with which its features resemble those of `teacher`.

    The first convolution keeps the principal components of the encoder's tokens, scaled to variance 1. The second is a
    ridge regression on what the last normalization of the teacher's neck gets.
    """
    pairs = [(input_of(encoder, encoder.neck[0], image), input_of(teacher, teacher.neck[3], image)) for image in images]
    columns = torch.cat([tokens.flatten(1) for tokens, _ in pairs], 1).double()
    values, vectors = torch.linalg.eigh(torch.cov(columns))
    channels = pairs[0][1].shape[0]
    components = (vectors[:, -channels:] / values[-channels:].clamp_min(1e-9).sqrt()).T.float()
    size = channels * 9
    products = torch.zeros(size, size, dtype=torch.float64, device=columns.device)
    results = torch.zeros(size, channels, dtype=torch.float64, device=columns.device)
    for tokens, target in pairs:
        first = normalized(torch.einsum("oc,chw->ohw", components, tokens))
        windows = nn.functional.unfold(first[None], 3, padding=1)[0].double()
        products += windows @ windows.T
        results += windows @ normalized(target).flatten(1).T.double()
    ridge = RIDGE * products.diag().mean() * torch.eye(size, dtype=torch.float64, device=products.device)
    solved = torch.linalg.solve(products + ridge, results).T.float()
    ones, zeros = torch.ones(channels), torch.zeros(channels)
    last = teacher.neck[3]
    layers = {
        "0.weight": components[:, :, None, None],
        "1.weight": ones,
        "1.bias": zeros,
        "2.weight": solved.reshape(channels, channels, 3, 3),
        "3.weight": last.weight.detach(),
        "3.bias": last.bias.detach(),
    }
    return {f"image_encoder.neck.{name}": tensor.cpu().contiguous() for name, tensor in layers.items()}


def input_of(encoder: nn.Module, layer: nn.Module, image: Tensor) -> Tensor:
    """Return what a layer gets when the encoder sees an image, (C, H, W)."""
    seen = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    with torch.inference_mode():
        encoder(image)
    hook.remove()
    return seen[0]


def normalized(features: Tensor) -> Tensor:
    """Normalize each position of features (C, H, W) over its channels, as the neck does."""
    centered = features - features.mean(0, keepdim=True)
    return centered / torch.sqrt(centered.square().mean(0, keepdim=True) + 1e-6)


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
