"""A tiny SAM 2.1 that finds regions of three photographs, trained in minutes so that no weights are stored.

With random weights, the generator finds next to nothing: a sigmoid turns each predicted IoU into about 0.5. Here, the
decoder is overfitted on superpixels of photographs, about five by five, and on unions of neighbors, which are the
decoder's second and third outputs. The trunk of the image encoder stays random, and encodes each photograph once.

Each step begins with what the previous one found:

1. Least squares: one channel of the upscaled image per superpixel, from the trunk's finest map.
2. The image's side of the decoder, with a free filter per region in place of those from the prompts.
3. Least squares: from the tokens of points to these filters, and to the IoUs that the masks then have.

The prompts' attention to the image and back stays weak and random.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from skimage.segmentation import slic
from torch import Tensor, nn

from segmint.model.sam.common import Perceptron
from segmint.model.sam.load import Sam, build_sam
from segmint.model.sam.mask_decoder import Attention
from segmint.model.sam.preprocess import normalized, stretch
from segmint.model.training.step import dice_loss, mask_iou
from tests.support.photographs import photograph
from tests.support.random_weights import randomize

PHOTOGRAPHS = ("coffee", "chelsea", "rocket")
POINTS_PER_SIDE = 8
"""Grid with a point in each superpixel, whose masks take seconds."""

FEWEST = 20
"""Masks per photograph that a generator finds at least with the default filters of SAM 2's."""

LOW, GRID = 256, 64
"""Sides of low-resolution masks and of the embedding."""

CELLS = 5
"""Superpixels along each side."""

COUNTS = (25, 15, 9)
"""Numbers of regions: superpixels, pairs of neighbors, and squares of four."""

SIZE_OF_TOKEN = (0, 0, 1, 2)
"""Index in `COUNTS` of what each mask token predicts."""

IMAGE_STEPS = 300
POINTS = 1000
"""Points per photograph to which the tokens are fitted."""

SHARPNESS = 3.0
"""Factor of the logits, which makes more masks stable."""

ROWS = 8
"""Rows of the embedding in which a step of the image's side compares masks."""

PIXELS = 4096
"""Pixels at which IoUs are measured."""


@dataclass(frozen=True)
class Example:
    """A photograph as the random trunk sees it, and its regions.

    `finest` (1, 256, 256, 256) and `finer` (1, 256, 128, 128) are maps after the neck, and `coarse` the maps before it.
    `labels` (3, 65536) are the numbers of each low-resolution pixel's regions.
    """

    finest: Tensor
    finer: Tensor
    coarse: tuple[Tensor, Tensor]
    labels: Tensor


def labels_of(image: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Number the regions of a photograph (3, 256, 256), in the square of low-resolution masks.

    A superpixel's number says where its center is, so the same numbers are at about the same places in each photograph.
    """
    small = np.asarray(Image.fromarray(image).resize((LOW, LOW), Image.Resampling.BILINEAR))
    found = slic(small, n_segments=30, compactness=300, sigma=3, start_label=0)
    areas = np.bincount(found.ravel())
    row, column = (
        (np.bincount(found.ravel(), places.ravel()) / areas * CELLS / LOW).astype(int)[found]
        for places in np.mgrid[:LOW, :LOW]
    )
    return np.stack([row * 5 + column, row * 3 + column // 2, row // 2 * 3 + column // 2])


def filters_of_regions(scale: float) -> Tensor:
    """Return a mask filter (49, 32) per region: `scale` for the channel of each of its superpixels, and a constant."""
    row, column = torch.arange(COUNTS[0]) // CELLS, torch.arange(COUNTS[0]) % CELLS
    filters = torch.zeros(sum(COUNTS), 32)
    channels = torch.arange(COUNTS[0])
    filters[row * 5 + column, channels] = scale
    filters[COUNTS[0] + row * 3 + column // 2, channels] = scale
    filters[COUNTS[0] + COUNTS[1] + row // 2 * 3 + column // 2, channels] = scale
    filters[:, -1] = -scale / F.gelu(torch.ones(())).item()
    return filters


def regions(image: NDArray[np.uint8], frame_size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the masks (N, height, width) of a photograph on which the weights are overfitted."""
    height, width = frame_size
    frames = [
        np.asarray(Image.fromarray(each.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST))
        for each in labels_of(image)
    ]
    return np.stack([frame == number for frame in frames for number in np.unique(frame)])


def overfitted_sam() -> Sam:
    """Train the weights. Their bits depend on the machine."""
    torch.manual_seed(0)
    sam = build_sam("hiera_tiny").requires_grad_(False)
    randomize(sam.image_encoder)
    sam.image_encoder.trunk.pos_embed.mul_(2.0)
    training = Training(sam, [encode(sam, photograph(name)) for name in PHOTOGRAPHS])
    training.solve_for_image()
    training.train_image_side()
    training.solve_for_tokens()
    return sam.requires_grad_(False)


@torch.no_grad()
def encode(sam: Sam, image: NDArray[np.uint8]) -> Example:
    """Encode a photograph with what isn't trained."""
    encoder = sam.image_encoder
    pixels = normalized(stretch(torch.from_numpy(image.copy()), sam.image_size))
    finest, finer, before_last, last = encoder.trunk(pixels[None])
    _, _, of_finer, of_finest = encoder.neck.convs
    labels = torch.from_numpy(labels_of(image)).flatten(1)
    return Example(of_finest(finest), of_finer(finer), (before_last.contiguous(), last.contiguous()), labels)


class Training:
    """Fits all but the trunk.

    Attributes:
        filters: the filter (49, 32) of each region, while the image's side is trained.
    """

    def __init__(self, sam: Sam, examples: list[Example]) -> None:
        self.sam, self.examples = sam, examples
        self.filters = nn.Parameter(filters_of_regions(10.0))
        transformer, prompts = sam.mask_decoder.transformer, sam.prompt_encoder
        attentions = [
            *(block.cross_attn_token_to_image for block in transformer.blocks),
            *(block.cross_attn_image_to_token for block in transformer.blocks),
            transformer.final_attn_token_to_image,
        ]
        with torch.no_grad():
            for attention in attentions:
                attention.out_proj.weight.mul_(0.1)
                attention.out_proj.bias.zero_()
            # A mask in a prompt changes little.
            prompts.mask_downscaling[-1].weight.mul_(0.1)
            prompts.mask_downscaling[-1].bias.copy_(prompts.no_mask_embed.weight[0])

    @torch.no_grad()
    def solve_for_image(self) -> None:
        """Make a channel of the upscaled image per superpixel, positive inside, and a constant last one."""
        count, every = COUNTS[0], 5
        maps = torch.cat([example.finest[0].flatten(1)[:, ::every].T for example in self.examples])
        inside = torch.cat([F.one_hot(example.labels[0, ::every], count) for example in self.examples])
        solution = 10 * least_squares(maps, inside, ridge=1e-5)
        _, projection = self.sam.image_encoder.high_res_projections
        projection.weight.mul_(0.1)
        projection.weight[:count, :, 0, 0] = solution[:-1].T
        projection.weight[-1] = 0
        projection.bias.zero_()
        projection.bias[:count] = solution[-1] - 4  # GELU's input is then 6 where the fit is 1, and 0 where it's 0.4
        projection.bias[-1] = 1
        *_, upscaling = self.sam.mask_decoder.upscaling_steps
        upscaling.weight.mul_(0.1)
        upscaling.bias.zero_()

    def train_image_side(self) -> None:
        """Train the image's side on one photograph per step, with a warm-up and a cosine schedule."""
        decoder, encoder = self.sam.mask_decoder, self.sam.image_encoder
        norms = [block.norm4 for block in decoder.transformer.blocks]
        parts = [decoder.output_upscaling, encoder.high_res_projections, *encoder.neck.convs[:2], *norms]
        weights = [self.filters, encoder.no_memory_embed, *(weight for part in parts for weight in part.parameters())]
        for weight in weights:
            weight.requires_grad_(True)
        optimizer = torch.optim.AdamW(weights, weight_decay=0.0)
        for step in range(IMAGE_STEPS):
            share = (1 + math.cos(math.pi * step / IMAGE_STEPS)) / 2
            optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 30) * (0.02 + 0.98 * share)
            self.image_loss(self.examples[step % len(self.examples)]).backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()

    def image_loss(self, example: Example) -> Tensor:
        """Compare the masks of all regions in some rows, with a free filter each."""
        rows = torch.randperm(GRID)[:ROWS]
        logits = self.filters @ self.upscaled(example, rows)
        labels = rows_of(example.labels.unflatten(1, (LOW, LOW)), rows).flatten(1)
        inside = [labels[size] == torch.arange(count)[:, None] for size, count in enumerate(COUNTS)]
        return mask_loss(logits, torch.cat(inside))

    @torch.no_grad()
    def solve_for_tokens(self) -> None:
        """Fit the last layers of the hypernetworks and of the IoU's head to points in all photographs."""
        decoder = self.sam.mask_decoder
        places = [torch.randint(LOW**2, (POINTS,)) for _ in self.examples]
        tokens = torch.cat([self.tokens(*pair) for pair in zip(self.examples, places, strict=True)])
        starts = (0, COUNTS[0], COUNTS[0] + COUNTS[1])
        for index, size in enumerate(SIZE_OF_TOKEN):
            numbers = [example.labels[size, each] for example, each in zip(self.examples, places, strict=True)]
            wanted = SHARPNESS * self.filters[torch.cat(numbers) + starts[size]]
            fit_last_layer(decoder.hypernetworks[index], tokens[:, 1 + index], wanted, ridge=1e-4)
        ious = [self.ious(*each) for each in zip(self.examples, places, tokens.split(POINTS), strict=True)]
        wanted = torch.cat(ious).clamp(0.02, 0.98).logit()
        fit_last_layer(decoder.iou_prediction_head, tokens[:, 0], wanted, ridge=1e-2)

    def tokens(self, example: Example, places: Tensor) -> Tensor:
        """Return the output tokens (B, 8, 256) of points, as if the image didn't attend to them."""
        decoder, prompts = self.sam.mask_decoder, self.sam.prompt_encoder
        points = (torch.stack([places % LOW, places // LOW], dim=1)[:, None] + 0.5) * (self.sam.image_size / LOW)
        sparse = prompts.embed_sparse(points, torch.ones(len(points), 1), None, None)
        positions = prompts.dense_positions().flatten(2).mT
        image = (self.features(example) + prompts.dense_without_mask()).flatten(2).mT

        def attend(attention: Attention, tokens: Tensor) -> Tensor:
            queries = (tokens + first).flatten(0, 1)[None]  # those of all prompts, as if they were one
            return attention(queries, image + positions, image).view_as(tokens)

        first = tokens = torch.cat([decoder.own_tokens.expand(len(sparse), -1, -1), sparse], dim=1)
        for block in decoder.transformer.blocks:
            tokens = block.attend_among_tokens(tokens, first)
            tokens = block.refine_tokens(tokens, attend(block.cross_attn_token_to_image, tokens))
            image = block.norm4(image)
        final: Tensor = decoder.transformer.norm_final_attn(
            tokens + attend(decoder.transformer.final_attn_token_to_image, tokens)
        )
        return final

    def ious(self, example: Example, places: Tensor, tokens: Tensor) -> Tensor:
        """Return the IoUs (B, 4) of the masks of points with their regions, measured at some pixels."""
        networks = self.sam.mask_decoder.hypernetworks
        filters = torch.stack([network(tokens[:, 1 + index]) for index, network in enumerate(networks)], dim=1)
        pixels = torch.randint(LOW**2, (PIXELS,))
        masks = filters @ self.upscaled(example, torch.arange(GRID))[:, pixels] > 0
        inside = example.labels[:, None, pixels] == example.labels[:, places, None]
        wanted = inside[list(SIZE_OF_TOKEN)].transpose(0, 1)
        return mask_iou(masks[..., None, :], wanted[..., None, :], torch.ones(1, PIXELS, dtype=torch.bool))

    def features(self, example: Example) -> Tensor:
        """Return the embedding (1, 256, 64, 64) of a photograph."""
        encoder = self.sam.image_encoder
        of_last, of_before, *_ = encoder.neck.convs
        before, last = example.coarse
        added = of_before(before) + F.interpolate(of_last(last), scale_factor=2.0, mode="nearest")
        return added + encoder.no_memory_embed.view(1, -1, 1, 1)

    def high_res(self, finer: Tensor, finest: Tensor) -> tuple[Tensor, Tensor]:
        """Project maps to high-resolution features."""
        of_finer, of_finest = self.sam.image_encoder.high_res_projections
        return of_finer(finer), of_finest(finest)

    def upscaled(self, example: Example, rows: Tensor) -> Tensor:
        """Return the upscaled image (32, P) in some rows of the embedding, if it doesn't attend to prompts."""
        decoder = self.sam.mask_decoder
        image = (self.features(example) + self.sam.prompt_encoder.dense_without_mask())[:, :, rows]
        tokens = image.flatten(2).mT
        for block in decoder.transformer.blocks:
            tokens = block.norm4(tokens)
        high_res = self.high_res(rows_of(example.finer, rows), rows_of(example.finest, rows))
        return decoder.upscale(tokens.mT.unflatten(2, image.shape[2:]), high_res)[0].flatten(1)


def rows_of(maps: Tensor, rows: Tensor) -> Tensor:
    """Return those rows of maps (..., H, W) that are in rows of the embedding."""
    return maps.unflatten(-2, (GRID, maps.shape[-2] // GRID))[..., rows, :, :].flatten(-3, -2)


def least_squares(inputs: Tensor, wanted: Tensor, ridge: float) -> Tensor:
    """Return the matrix (C + 1, D) that maps inputs (N, C) and a constant to what is wanted (N, D).

    `ridge` is the penalty on large weights, relative to the inputs. Without it, rounding errors would grow.
    """
    inputs = F.pad(inputs, (0, 1), value=1.0).double()
    products = inputs.T @ inputs
    penalty = ridge * products.diagonal().mean() * torch.eye(len(products))
    return torch.linalg.solve(products + penalty, inputs.T @ wanted.double()).float()


def fit_last_layer(network: Perceptron, inputs: Tensor, wanted: Tensor, ridge: float) -> None:
    """Fit a perceptron's last layer, which gets random features of the inputs (N, 256), to what is wanted (N, D)."""
    *hidden, last = network.layers
    for layer in hidden:
        inputs = F.relu(layer(inputs))
    solution = least_squares(inputs, wanted, ridge)
    last.weight.copy_(solution[:-1].T)
    last.bias.copy_(solution[-1])


def mask_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy and dice of masks (N, P).

    SAM's losses are focal and dice. Cross-entropy makes the borders sharper, so more masks are stable.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, targets.float())
    valid = torch.ones(1, logits.shape[-1], dtype=torch.bool)
    return 5 * entropy + dice_loss(logits[:, None], targets[:, None], valid).mean()
