"""Mask generation for whole crops on an accelerator, and the decoder for it.

For each crop, the host waits once for numbers and once for runs:

1. The host uploads the points. The device decodes them in chunks, draws the masks, and measures them. Then it starts to
   copy the measurements to the host: for each mask, seven counts and coordinates, the predicted IoU, and the `wanted`
   flag.
2. The host waits for this copy, filters the masks, and applies NMS. Then the device starts to draw the remaining masks
   as runs.
3. The host waits for the runs.

Between two steps, callers start another crop (`device_stream.py`), so the device has work while the host waits.

Decoder for single points on an accelerator, with the sums of `point_decoder.py` laid out for three kernels.

`model/kernels/factored_image.py` implements the steps that process the whole image, and defines the layout of tokens
and rows. This module implements the rest, which is small: the attention among the tokens, projections, perceptrons, and
the input of the kernels. An image's plan contains no products of vectors, unlike `point_decoder.PointPlan`, because the
kernels compute a norm's statistics from the image itself in float32.

Shapes: B points, T = 7 tokens in 8 seats for each of H = 8 heads of D = 16 channels, N = 64 rows, C = 256 channels, R
rows of an image, P = 4096 positions.
"""

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segmint.infra.arrays import Floats, Size
from segmint.model.automatic.candidates import CandidateMasks, over_iou
from segmint.model.automatic.crops import Crop, crop_points
from segmint.model.automatic.mask_tiles import host_taps
from segmint.model.automatic.proposals import filtered, suppress, to_candidates
from segmint.model.automatic.rle import Funnel
from segmint.model.automatic.settings import MaskSettings, small_chunk
from segmint.model.automatic.tiled_upscaling import TiledUpscaling, mask_operations, stable_outlines
from segmint.model.device import CapturedGraph, HostTransfer, PerThread, upload
from segmint.model.kernels.factored_image import answer, draw, formulas, look
from segmint.model.kernels.factored_plainly import CONSTANT, HEADS, ROWS, SEATS
from segmint.model.sam.common import join_heads, split_heads, split_rows
from segmint.model.sam.load import Sam
from segmint.model.sam.mask_decoder import MASK_TOKENS, Attention, MaskDecoder
from segmint.model.sam.point_decoder import (
    POINT_TOKENS,
    as_linear,
    attend_to_shared_image,
    predicted_iou_of,
    used_tokens,
)
from segmint.model.sam.predictor import Embedding, Predictor
from segmint.model.sam.preprocess import resized_size


@dataclass(frozen=True)
class ProjectedImage:
    """Shared image after one projection of an attention.

    Attributes:
        own: (H * D, P), the projected image. Before the first block, it includes the positions and the bias.
        places: (H * D, P), the projected positional encoding plus the bias. (0, P) before the first block.
        weight: (H, D, C), the weight of the projection.
    """

    own: Tensor
    places: Tensor
    weight: Tensor


@dataclass(frozen=True)
class AttentionView:
    """Shared input to the tokens' attention to the image: keys, values (P, H * D), and the values' weight (H, D, C)."""

    keys: ProjectedImage
    values: Tensor
    weight: Tensor


@dataclass(frozen=True)
class SharedBlock:
    """Values of one two-way block that all points on an image share.

    Attributes:
        view: input to the tokens' attention to the image. None in the first block, where all tokens attend to the
            shared image.
        queries: the image's queries for its attention to the tokens.
        outward: (H, D, C), maps from values to the centered vectors that they add to the image.
        shared: (P, C), the centered shared image.
    """

    view: AttentionView | None
    queries: ProjectedImage
    outward: Tensor
    shared: Tensor


@dataclass(frozen=True)
class DecodePlan:
    """Values that all points on one image share.

    `keys` and `values` (1, H, P, D) belong to the first block, and `final` belongs to the last attention. `drawn` (P,
    C) is the shared image after the first upscaling step, without the bias.
    """

    keys: Tensor
    values: Tensor
    blocks: tuple[SharedBlock, ...]
    final: AttentionView
    drawn: Tensor


@dataclass(frozen=True)
class PointImages:
    """Images of B points, scale * X + coefficients^T vectors.

    Attributes:
        scale: (B, P) float32.
        coefficients: (B, R, P).
        vectors: (B, R, C).
    """

    scale: Tensor
    coefficients: Tensor
    vectors: Tensor


def plan_decoding(decoder: MaskDecoder, features: Tensor, positions: Tensor, no_mask: Tensor) -> DecodePlan:
    """Precompute the values that all points share, from an image's embedding, positions, and no-mask embedding.

    All three inputs are (1, C, 64, 64).
    """
    image = (features + no_mask).flatten(2).transpose(1, 2)
    places = positions.flatten(2).transpose(1, 2)
    first = decoder.transformer.blocks[0].cross_attn_token_to_image
    keys, values = first.k_proj(image + places), first.v_proj(image)
    shared, places = image[0], places[0]
    blocks = []
    for block in decoder.transformer.blocks:
        back = block.cross_attn_image_to_token
        if block.first:
            view = None
            whole = (back.q_proj.weight @ (shared + places).T + back.q_proj.bias[:, None]).contiguous()
            queries = ProjectedImage(whole, whole[:0], split_rows(back.q_proj.weight, HEADS))
            shared = shared + back.out_proj.bias
        else:
            view = _view(block.cross_attn_token_to_image, shared, places)
            queries = _projected(back.q_proj.weight, back.q_proj.bias, shared, places)
        centered = shared - shared.mean(dim=1, keepdim=True)
        outward = split_rows(back.out_proj.weight.T, HEADS)
        blocks.append(SharedBlock(view, queries, outward - outward.mean(dim=2, keepdim=True), centered))
        shared = centered * block.norm4.weight
    final = _view(decoder.transformer.final_attn_token_to_image, shared, places)
    weight, _ = as_linear(decoder.upscaling_steps[0])
    return DecodePlan(split_heads(keys, HEADS), split_heads(values, HEADS), tuple(blocks), final, shared @ weight.T)


def _view(attention: Attention, shared: Tensor, places: Tensor) -> AttentionView:
    # Omit the keys' bias, because it would add the same value to all scores of a query.
    keys = _projected(attention.k_proj.weight, None, shared, places)
    return AttentionView(keys, shared @ attention.v_proj.weight.T, split_rows(attention.v_proj.weight, HEADS))


def _projected(weight: Tensor, bias: Tensor | None, shared: Tensor, places: Tensor) -> ProjectedImage:
    of_places = weight @ places.T
    if bias is not None:
        of_places = of_places + bias[:, None]
    return ProjectedImage((weight @ shared.T).contiguous(), of_places.contiguous(), split_rows(weight, HEADS))


def decode(decoder: MaskDecoder, plan: DecodePlan, sparse: Tensor) -> tuple[Tensor, Tensor, PointImages]:
    """Decode three masks for each of B points: predicted IoUs (B, 3) float32, mask tokens (B, 3, C), and images.

    `sparse` (B, 2, C) contains the embedding of each point, followed by the embedding of the padding token ("not a
    point").
    """
    places = torch.cat([decoder.own_tokens.expand(len(sparse), -1, -1), sparse], dim=1)
    tokens = places
    images: PointImages | None = None
    for block, shared in zip(decoder.transformer.blocks, plan.blocks, strict=True):
        attention = block.cross_attn_token_to_image
        tokens = block.attend_among_tokens(tokens, places)
        if shared.view is None or images is None:
            attended = attend_to_shared_image(attention, tokens + places, plan.keys, plan.values)
        else:
            attended = _attend(attention, shared.view, tokens + places, images)
        tokens = block.refine_tokens(tokens, attended)

        back = block.cross_attn_image_to_token
        few = _seated(back.k_proj(tokens + places)) * float(back.head_width**-0.5)
        added = torch.einsum("bhtd,hdc->bhtc", _seated(back.v_proj(tokens)), shared.outward).flatten(1, 2)
        if images is None:
            nothing = few.new_zeros(len(sparse), 0, plan.drawn.shape[0])
            images = PointImages(
                few.new_ones(len(sparse), plan.drawn.shape[0], dtype=torch.float32), nothing, added[:, :0]
            )
        else:
            added = torch.cat([added, _with_bias(images.vectors, back.out_proj.bias)], dim=1)
        scale, coefficients = answer(
            few.flatten(1, 2),
            shared.queries.own,
            shared.queries.places,
            _prior(few, shared.queries.weight, images),
            images.scale,
            images.coefficients,
            added,
            shared.shared,
            places.shape[1],
            block.norm4.eps,
        )
        vectors = added * block.norm4.weight
        vectors[:, CONSTANT] = block.norm4.bias
        images = PointImages(scale, coefficients, vectors)
    assert images is not None
    final = decoder.transformer.final_attn_token_to_image
    attended = _attend(final, plan.final, used_tokens(tokens + places), images)
    tokens = decoder.transformer.norm_final_attn(used_tokens(tokens) + attended)
    return predicted_iou_of(decoder, tokens[:, 0]), tokens[:, 1:], images


@dataclass(frozen=True)
class DrawArguments:
    """Arguments of `factored_image.draw`: images after the first upscaling step, weights, and mask filters."""

    images: PointImages
    shared: Tensor
    norm: Tensor
    weight: Tensor
    bias: Tensor
    filters: Tensor
    eps: float

    def draw(self, wanted: Tensor) -> Tensor:
        """Draw logits (B, 3, 256, 256) float32. If a point has no mask in `wanted` (B, 3), its logits are arbitrary."""
        logits: Tensor = draw(
            self.images.scale,
            self.images.coefficients,
            self.images.vectors,
            self.shared,
            self.norm,
            self.weight,
            self.bias,
            self.filters,
            wanted,
            self.eps,
        )
        return logits


def prepare_drawing(decoder: MaskDecoder, plan: DecodePlan, tokens: Tensor, images: PointImages) -> DrawArguments:
    """Prepare the arguments for drawing the masks with these tokens (B, 3, C) on the points' images."""
    filters = torch.stack([mlp(tokens[:, n]) for n, mlp in enumerate(decoder.hypernetworks[1:MASK_TOKENS])], dim=1)
    first, norm, second = decoder.upscaling_steps
    (weight1, bias1), (weight2, bias2) = as_linear(first), as_linear(second)
    vectors = images.vectors @ weight1.T
    vectors[:, CONSTANT] += bias1
    return DrawArguments(
        PointImages(images.scale, images.coefficients, vectors),
        plan.drawn,
        torch.stack([norm.weight, norm.bias]),
        weight2.T.contiguous(),
        bias2,
        filters,
        norm.eps,
    )


def _attend(attention: Attention, view: AttentionView, q: Tensor, images: PointImages) -> Tensor:
    """Compute `attention(q, images + positions, images)` for queries (B, T, C), and return (B, T, C)."""
    few = _seated(attention.q_proj(q)) * float(attention.head_width**-0.5)
    own, mixed = look(
        few.flatten(1, 2),
        view.keys.own,
        view.keys.places,
        _prior(few, view.keys.weight, images),
        images.scale,
        images.coefficients,
        view.values,
    )
    seen = torch.unflatten(mixed @ images.vectors, 1, (HEADS, SEATS))
    values = torch.unflatten(own, 1, (HEADS, SEATS)) + torch.einsum("bhtc,hdc->bhtd", seen, view.weight)
    out: Tensor = attention.out_proj(join_heads(values[:, :, : q.shape[1]]) + attention.v_proj.bias)
    return out


def _seated(x: Tensor) -> Tensor:
    """Arrange projected tokens (B, T, H * D) in their seats, (B, H, 8, D). Free seats contain zeros."""
    return F.pad(split_heads(x, HEADS), (0, 0, 0, SEATS - x.shape[1]))


def _prior(few: Tensor, weight: Tensor, images: PointImages) -> Tensor:
    """Score projected tokens (B, H, 8, D) against the images' vectors projected by `weight` (H, D, C): (B, N, R)."""
    if not images.vectors.shape[1]:
        return few.new_zeros(len(few), ROWS, 0)
    projected = torch.unflatten(images.vectors @ weight.flatten(0, 1).T, 2, (HEADS, -1))
    return torch.einsum("bhtd,brhd->bhtr", few, projected).flatten(1, 2)


def _with_bias(vectors: Tensor, bias: Tensor) -> Tensor:
    """Add `bias` (C,) to the constant vector, and center all of the images' vectors (B, R, C) over the channels."""
    vectors = vectors.clone()
    vectors[:, CONSTANT] += bias
    return vectors - vectors.mean(dim=2, keepdim=True)


@dataclass(frozen=True)
class DecodedChunk:
    """Three masks for each of B points, decoded but not drawn yet.

    Attributes:
        predicted_iou: (B, 3) float32.
        wanted: (B, 3) bool, True if the predicted IoU is above the threshold and the point isn't padding.
        drawing: the arguments for drawing the masks.
    """

    predicted_iou: Tensor
    wanted: Tensor
    drawing: DrawArguments


@dataclass(frozen=True)
class ChunkMasks:
    """Three drawn masks for each of B points.

    Attributes:
        logits: (B, 3, 256, 256) float32. The values are arbitrary for masks that aren't wanted.
        predicted_iou: (B, 3) float32.
        wanted: (B, 3) bool.
    """

    logits: Tensor
    predicted_iou: Tensor
    wanted: Tensor


def plan_image(sam: Sam, features: Tensor) -> DecodePlan:
    """Precompute the values that all points on an image embedding (1, 256, 64, 64) share."""
    encoder = sam.prompt_encoder
    return plan_decoding(sam.mask_decoder, features, encoder.dense_positions(), encoder.dense_without_mask())


def decode_chunk(sam: Sam, plan: DecodePlan, points: Tensor, threshold: float) -> DecodedChunk:
    """Decode B points.

    `points` (B, 3) float64 contains x and y in pixels of the encoder's input, followed by 1. For points that pad the
    chunk, the last value is 0. Masks with a predicted IoU above `threshold` are wanted.
    """
    labels = torch.ones_like(points[:, :1])
    sparse = sam.prompt_encoder(points[:, None, :2], labels, None, None).sparse
    predicted_iou, tokens, images = decode(sam.mask_decoder, plan, sparse)
    wanted = over_iou(predicted_iou, threshold) & (points[:, 2:] > 0)
    return DecodedChunk(predicted_iou, wanted, prepare_drawing(sam.mask_decoder, plan, tokens, images))


def draw_chunk(decoded: DecodedChunk) -> ChunkMasks:
    """Draw the masks of a decoded chunk into new memory, so that later graph replays don't overwrite them."""
    logits = decoded.drawing.draw(decoded.wanted)
    return ChunkMasks(logits, decoded.predicted_iou.clone(), decoded.wanted.clone())


class KernelError(RuntimeError):
    """Raised when a GPU kernel's results differ from torch's by more than rounding."""


KERNEL_TOLERANCE = 0.1
"""Maximum norm of the difference from torch's results, relative to their norm. Rounding to bf16 causes 0.01 to 0.03."""

LARGEST_TOLERANCE = 0.25
"""Maximum of the largest difference, relative to the largest of torch's results. It detects a few wrong values, which
hardly change the norm. Rounding to bf16 causes up to about 0.05."""


def check_kernels(sam: Sam, plan: DecodePlan, points: Tensor, threshold: float, found: DecodedChunk) -> None:
    """Compare a chunk that the kernels decoded with torch's operations, and raise `KernelError` if they disagree.

    Differences due to rounding are allowed. This check exists because Triton 3.6 miscompiled one of our kernels on an
    H200: the kernel computed wrong sums without any error. The arguments are the same as for `decode_chunk`, and
    `found` is its result. The check draws and compares all masks.
    """
    with formulas():
        expected = decode_chunk(sam, plan, points, threshold)
        expected_logits = expected.drawing.draw(torch.ones_like(expected.wanted))
    logits = found.drawing.draw(torch.ones_like(found.wanted))
    pairs = {"predicted IoU": (found.predicted_iou, expected.predicted_iou), "logits": (logits, expected_logits)}
    for name, (one, other) in pairs.items():
        expect_close(name, one, other)


def expect_close(name: str, found: Tensor, expected: Tensor) -> None:
    """Raise `KernelError` if results of kernels, called `name`, differ from torch's by more than rounding."""
    error = found.float() - expected.float()
    difference = float(error.norm() / expected.float().norm())
    largest = float(error.abs().max() / expected.abs().max())
    # The comparisons are also false if a difference isn't a number.
    if not (difference <= KERNEL_TOLERANCE and largest <= LARGEST_TOLERANCE):
        much = f"by {difference:.0%}, and in one place by {largest:.0%} of the largest value"
        raise wrong_kernels(f"{name} differ from those of torch's operations {much}")


def wrong_kernels(what: str) -> KernelError:
    """Create the error for kernels with wrong results. `what` describes the results and their differences."""
    return KernelError(
        f"this GPU would generate wrong masks: the kernels' {what}. Use a different version of torch and Triton."
    )


def suits(mask_decoder: MaskDecoder, settings: MaskSettings) -> bool:
    """Return whether the kernels support the decoder and the settings.

    The kernels need enough seats for the decoder's tokens, and they decode each point only once.
    """
    return len(mask_decoder.own_tokens) + POINT_TOKENS <= CONSTANT and not settings.use_m2m


class DeviceCrops:
    """Mask finder for crops on the model's device, with CUDA graphs for an image's plan and for two chunk sizes.

    Each thread captures its own graphs on first use, and keeps their memory. Before using a graph, the thread compares
    the graph's results with torch's operations, and raises `KernelError` if they differ. Until a crop is finished, its
    masks take 768 KB per point.
    """

    def __init__(self, predictor: Predictor, settings: MaskSettings) -> None:
        self._predictor = predictor
        self._settings = settings
        self._graphs: PerThread[_Graphs] = PerThread()
        self.weights_thread = ThreadPoolExecutor(1, "segmint-taps")

    def prepare(self, crops: Sequence[Crop], sizes: Sequence[Size]) -> None:
        """Compute the interpolation weights of an image's crops in another thread, before `find` needs them.

        `sizes` are the (height, width) of the crops' pixels, which the encoder's input is resized from.
        """
        geometry = self._predictor.sam.geometry
        axes: dict[tuple[int, int, int, int], None] = {}
        for crop, size in zip(crops, sizes, strict=True):
            axes |= dict.fromkeys(geometry.mask_axes(resized_size(*size, geometry.image_size), crop.size))
        for axis in axes:
            self.weights_thread.submit(host_taps, *axis)

    def find(
        self, crop: Crop, embedding: Embedding, frame_size: Size
    ) -> Generator[None, None, tuple[CandidateMasks, Funnel]]:
        """Find the masks of one crop's grid in steps. The same thread must run all steps.

        Each step but the first begins by waiting for the device to finish the previous step. Each step but the last
        ends by starting more work on the device. `frame_size` is (height, width). Returns the crop's masks after NMS,
        best first, and the counts so far.
        """
        settings, device = self._settings, self._predictor.sam.device
        points = crop_points(crop, settings.grid_of_layer(crop.layer))
        upscaling = TiledUpscaling(embedding, self._predictor.sam.geometry, mask_operations(self._predictor))
        chunks = self.start_chunks(embedding, points)
        numbers = [measure_chunk(upscaling, chunk, settings.stability_score_offset) for chunk in chunks]
        fetched = HostTransfer(torch.cat(numbers))
        yield
        found = fetched.numpy()
        wanted = np.flatnonzero(found[:, 8])
        predicted_iou = found[wanted, 7].astype(np.int32).view(np.float32)
        logits = [chunk.logits.flatten(0, 1) for chunk in chunks]
        stable = stable_outlines(found[wanted, :7], logits, wanted, settings.stability_score_thresh)
        measured, counts = filtered(stable, predicted_iou, points[wanted // 3], wanted % 3, crop, frame_size, settings)
        kept = suppress([measured], settings.box_nms_thresh, device)
        del chunks, logits, stable, measured  # the logits of dropped masks aren't needed anymore
        candidates = to_candidates(kept, (yield from upscaling.draw_in_steps(kept.sketches)), crop)
        decoded = Funnel(predicted=3 * len(points), over_iou=len(wanted))
        return candidates, decoded + counts + Funnel(after_nms1=len(candidates))

    def find_bytes(self, crop: Crop) -> int:
        """Return the bytes of device memory that `find` needs for a crop's masks: float32 logits of all points."""
        points = self._settings.count_of_layer(crop.layer)
        sizes = chunk_sizes(points, self._settings.chunk_on(self._predictor.sam.device.type))
        return sum(sizes) * 3 * self._predictor.sam.geometry.low_res_size**2 * 4

    def start_chunks(self, embedding: Embedding, points: Floats) -> list[ChunkMasks]:
        """Decode points (P, 2) as (x, y) in pixels of the crop, in chunks. Graph replays don't overwrite the masks."""
        sizes = chunk_sizes(len(points), self._settings.chunk_on(self._predictor.sam.device.type))
        placed = _in_input(points, embedding)[np.minimum(np.arange(sum(sizes)), len(points) - 1)]
        placed[len(points) :, 2] = 0  # the last chunk is padded with copies of the last point
        graphs = self._graphs.get(lambda: _Graphs(self._predictor, self._settings.pred_iou_thresh, embedding.features))
        graphs.plan(embedding.features)
        uploaded = upload(torch.from_numpy(placed), self._predictor.sam.device)
        return [graphs.decode(chunk) for chunk in torch.split(uploaded, sizes)]


def chunk_sizes(points: int, points_per_chunk: int) -> list[int]:
    """Split a number of points into full chunks and, for the remainder, the smallest chunk size that fits.

    Each chunk size needs its own graph, so there are only two sizes: `points_per_chunk` and its `small_chunk`.
    """
    whole, rest = divmod(points, points_per_chunk)
    small = small_chunk(points_per_chunk)
    return [points_per_chunk] * whole + ([small if rest <= small else points_per_chunk] if rest else [])


def measure_chunk(upscaling: TiledUpscaling, masks: ChunkMasks, offset: float) -> Tensor:
    """Return the values of a chunk's masks that the host needs, (3B, 9) int64 on the masks' device.

    Each row contains the seven numbers from `mask_tiles.measure`, the bits of the predicted IoU, and 1 if the mask is
    wanted or 0 if not.
    """
    wanted = masks.wanted.flatten()
    found = upscaling.measure(masks.logits.flatten(0, 1), offset, wanted)
    iou = masks.predicted_iou.flatten().view(torch.int32)
    return torch.cat([found, iou[:, None], wanted[:, None]], dim=1)


class _Graphs:
    """CUDA graphs of one model for one thread, with the memory of their inputs."""

    def __init__(self, predictor: Predictor, threshold: float, features: Tensor) -> None:
        self._sam = predictor.sam
        self._threshold = threshold
        self._features = features.clone()
        self._must_capture = predictor.must_compile
        self._plan = CapturedGraph(
            lambda: plan_image(self._sam, self._features), features.device, must_capture=self._must_capture
        )
        self._planned = self._plan()
        self._chunks: dict[int, tuple[Tensor, CapturedGraph[DecodedChunk]]] = {}

    def plan(self, features: Tensor) -> None:
        """Prepare for decoding points on an image embedding (1, 256, 64, 64)."""
        self._features.copy_(features)
        self._planned = self._plan()

    def decode(self, points: Tensor) -> ChunkMasks:
        """Decode points (B, 3) on the image that was planned last, and draw their masks."""
        if len(points) not in self._chunks:
            held = points.clone()
            # A graph reads the plan from fixed memory, and the plan is in fixed memory only if a graph computes it.
            device = held.device if self._plan.is_graph else torch.device("cpu")
            decode = CapturedGraph(
                lambda: decode_chunk(self._sam, self._planned, held, self._threshold), device, self._must_capture
            )
            if points.device.type == "cuda":  # kernels run even if the capture failed
                check_kernels(self._sam, self._planned, points, self._threshold, decode())
            self._chunks[len(points)] = held, decode
        held, decode = self._chunks[len(points)]
        held.copy_(points)
        return draw_chunk(decode())


def _in_input(points: Floats, embedding: Embedding) -> Floats:
    """Convert points (P, 2) from the frame to pixels of the encoder's input, and append 1 to each: (P, 3)."""
    (height, width), (frame_height, frame_width) = embedding.input_size, embedding.frame_size
    scaled = points * np.array([width / frame_width, height / frame_height])
    return np.concatenate([scaled, np.ones((len(points), 1))], axis=1)
