"""A small SAM, MobileSAM at 256 pixels, that learns within minutes to segment `drawn_scenes` by a point."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmint.model.sam.common import EMBEDDING_CHANNELS
from segmint.model.sam.geometry import Geometry
from segmint.model.sam.image_encoder_tinyvit import ImageEncoderTinyViT
from segmint.model.sam.mask_decoder import MaskDecoder
from segmint.model.sam.preprocess import normalized
from segmint.model.sam.prompt_encoder import PromptEncoder
from segmint.model.sam.sam import Sam
from segmint.model.training.losses import prompt_losses
from segmint.model.training.settings import LossSettings
from tests.support.drawn_scenes import COLORS, SHAPES, SIDE, Scene

INPUT = 1024
"""Side of the input, for which training is built; the encoder reduces it to the scenes' 256 pixels."""

GRID = 16


class SmallEncoder(ImageEncoderTinyViT):
    """MobileSAM's encoder of scenes in their own 256 pixels, from (B, 3, 1024, 1024) to (B, 256, 16, 16)."""

    def forward(self, images: Tensor) -> Tensor:
        """Map the input to the embedding."""
        return self.upper(self.lower(F.avg_pool2d(images, INPUT // SIDE)))

    def lower(self, pixels: Tensor) -> Tensor:
        """Map scenes (B, 3, 256, 256) to the features (B, 160, 16, 16) of the layers that aren't trained."""
        features: Tensor = self.layers[1](self.layers[0](self.patch_embed(pixels)))
        return features

    def upper(self, features: Tensor) -> Tensor:
        """Map these features to the embedding."""
        embedding: Tensor = self.neck(self.layers[3](self.layers[2](features)))
        return embedding


def small_sam(*_: object) -> Sam:
    """SAM with random weights. It takes and ignores the arguments of `build_sam`."""
    geometry = Geometry(INPUT, INPUT // GRID)
    return Sam(SmallEncoder(), PromptEncoder(geometry), MaskDecoder()).eval()


class _Hints(nn.Module):
    """What each position of an embedding shows: a color, a shape, and which of its 4 x 4 low-resolution pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = (len(COLORS) + 1, len(SHAPES) + 1, 16)
        self.project = nn.Conv2d(EMBEDDING_CHANNELS, sum(self.sizes), 1)

    def loss(self, embeddings: Tensor, scenes: Sequence[Scene]) -> Tensor:
        """How far what embeddings (B, 256, 16, 16) show is from what is in their scenes."""
        colors, shapes, fine = torch.split(self.project(embeddings), self.sizes, dim=1)
        color, shape, covered = _shown(scenes)
        return (
            F.cross_entropy(colors, color, torch.tensor([0.1] + [1.0] * len(COLORS)), ignore_index=-1)
            + F.cross_entropy(shapes, shape, torch.tensor([0.1] + [1.0] * len(SHAPES)), ignore_index=-1)
            + F.binary_cross_entropy_with_logits(F.pixel_shuffle(fine, 4)[:, 0], covered)
        )


def train_small_sam(parent: Sam, scenes: Sequence[Scene], steps: int, batch: int = 6, points: int = 2) -> Sam:
    """Train the weights of MobileSAM on scenes, by points and by what each position of the embedding shows.

    Texts can only find what embeddings show, and MobileSAM's hardly show colors. The lower layers stay as they are.
    """
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    sam, hints = small_sam(), _Hints()
    sam.load_state_dict(parent.state_dict())
    encoder = sam.image_encoder
    assert isinstance(encoder, SmallEncoder)
    with torch.no_grad():
        features = torch.cat([encoder.lower(_pixels(scenes[at : at + 8])) for at in range(0, len(scenes), 8)])
    trained = (encoder.layers[2:], encoder.neck, sam.prompt_encoder, sam.mask_decoder)
    groups = [
        {"params": list(hints.parameters()), "rate": 3e-3},
        {"params": [weight for part in trained for weight in part.parameters()], "rate": 3e-4},
    ]
    weights = [weight for group in groups for weight in group["params"]]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    losses = LossSettings(iou_supervision="all")
    valid = torch.ones(4 * GRID, 4 * GRID, dtype=torch.bool)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * min(1, (step + 1) / 25) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        indices = random.integers(0, len(scenes), batch)
        chosen = [scenes[index] for index in indices]
        embeddings = encoder.upper(features[indices])
        drawn = [_draw_points(random, scene, points) for scene in chosen]
        places, targets = (torch.cat([each[part] for each in drawn]) for part in (0, 1))
        prompt = sam.prompt_encoder(places[:, None], torch.ones(len(places), 1), None, None)
        of_image = embeddings.repeat_interleave(points, 0)
        logits, ious = sam.mask_decoder(of_image, sam.prompt_encoder.dense_positions(), prompt, multimask=True)
        by_points = prompt_losses(logits, ious, targets, valid, losses, len(targets)).total
        optimizer.zero_grad()
        (by_points + hints.loss(embeddings, chosen)).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
    return sam


def _pixels(scenes: Sequence[Scene]) -> Tensor:
    """Scenes as the encoder sees them after its input was enlarged and reduced, (B, 3, 256, 256)."""
    kernel = np.array([0.125, 0.75, 0.125])
    blurred = [cv2.sepFilter2D(scene.image, -1, kernel, kernel) for scene in scenes]
    return torch.stack([normalized(torch.from_numpy(each)) for each in blurred])


def _shown(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """The color and the shape at each position (B, 16, 16), 0 for none and -1 if unclear, and what is covered."""
    colors, shapes = np.zeros((2, len(scenes), GRID, GRID), np.int64)
    covered = np.zeros((len(scenes), 4 * GRID, 4 * GRID), np.float32)
    for index, scene in enumerate(scenes):
        for each in scene.objects:
            mask = each.mask.astype(np.float32)
            share = cv2.resize(mask, (GRID, GRID), interpolation=cv2.INTER_AREA)
            covered[index] = np.maximum(covered[index], cv2.resize(mask, (4 * GRID,) * 2, interpolation=cv2.INTER_AREA))
            for found, value in ((colors, list(COLORS).index(each.color)), (shapes, list(SHAPES).index(each.shape))):
                found[index][share > 0.1] = -1
                found[index][share > 0.4] = value + 1
    return torch.from_numpy(colors), torch.from_numpy(shapes), torch.from_numpy(covered)


def _draw_points(random: np.random.Generator, scene: Scene, count: int) -> tuple[Tensor, Tensor]:
    """Points (count, 2) in pixels of the input, and the masks that they are in, (count, 64, 64) bool."""
    places, targets = [], []
    for index in random.integers(0, len(scene.objects), count):
        mask = scene.objects[index].mask
        ys, xs = np.nonzero(mask)
        at = int(random.integers(len(xs)))
        places.append(((xs[at] + 0.5) * 4 - 0.5, (ys[at] + 0.5) * 4 - 0.5))
        share = cv2.resize(mask.astype(np.float32), (4 * GRID,) * 2, interpolation=cv2.INTER_AREA)
        targets.append(share >= 0.5)
    return torch.tensor(places), torch.from_numpy(np.stack(targets))
