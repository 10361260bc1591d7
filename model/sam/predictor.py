"""Stateless predictor of masks for prompts: embed an image once, then predict masks for any number of prompts.

Mask decoder for prompts with few tokens on a CPU: the sums of `MaskDecoder` in a different order.

A click in the annotator has 7 to 15 tokens, but the image has 4096 positions. With so few tokens, projecting the
tokens' queries to the image's 256 channels takes less work than projecting the image to the 128 channels of each
attention. This module doesn't approximate anything. It reorders three computations:

1. *Scores.* A token's query times a position's key is q (K x) = (K^T q) x. So instead of a map of keys, each head needs
   only T vectors. The queries of the image work the same way. The keys' bias is the same for all positions, so the
   softmax over the positions cancels it.
2. *Values.* The mean of the projected values equals the projected mean, so the decoder averages the positions before it
   projects. In the other direction, the decoder first applies the output projection to the tokens' values. Each
   position then adds the projected values with its weights.
3. *Layout.* The image stays in channels-last layout, so upscaling takes two products and no transposition.

With CPU kernels, prompts are decoded like the points of a grid (`point_decoder`). A mask prompt fits into that scheme
because it adds a weighted sum of 17 vectors to the image. These vectors are the same for all masks, because the last
step of a mask's embedding is a 1x1 convolution of 16 channels. So even with a mask, each prompt's image is the shared
image plus a few vectors.

Shapes: T tokens, C = 256 channels, H = 8 heads of D = 16 channels, P = 4096 positions, R = H * T.
"""

import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import get_spawning_popen
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segmint.infra.arrays import Pixels, Size
from segmint.model.device import check_process, inference, upload
from segmint.model.kernels.cpu.library import Kernels, usable_kernels
from segmint.model.sam import point_decoder
from segmint.model.sam.common import linear, product, split_rows
from segmint.model.sam.geometry import Geometry
from segmint.model.sam.load import BatchEncoder, CompileMode, Sam
from segmint.model.sam.mask_decoder import MASK_TOKENS, Attention, MaskDecoder, PromptEmbedding, TwoWayBlock
from segmint.model.sam.point_decoder import (
    BAND,
    KernelPlan,
    PointMasks,
    PointPlan,
    as_linear,
    as_parts,
    decode_with_kernels,
    draw_with_kernels,
    finish_band,
    unfold_parts,
)
from segmint.model.sam.preprocess import Array, Prompts, check_prompts, resize, resize_on_device, resized_size, stretch

MOST_TOKENS = 16
"""Maximum number of tokens. Beyond it, projecting the image takes less work."""


def suits(decoder: MaskDecoder, features: Tensor, sparse: Tensor) -> bool:
    """Return whether this module can decode the prompts: on a CPU, in float32, without gradients, and with few tokens.

    `sparse` (B, T, C) contains the prompts' tokens.
    """
    plain = features.device.type == "cpu" and features.dtype == torch.float32 and not torch.is_grad_enabled()
    return plain and len(decoder.own_tokens) + sparse.shape[1] <= MOST_TOKENS


def decode_with_plan(
    decoder: MaskDecoder, plan: PointPlan, sparse: Tensor, mask: tuple[Tensor, Tensor], chosen: range
) -> tuple[Tensor, Tensor]:
    """Return mask logits and predicted IoUs like `decode_prompts`, but use the CPU kernels and their plan.

    `sparse` (B, T, C) contains the prompts' tokens. `mask` contains the prompts' masks as coefficients (B or 1, K, P)
    and vectors (K, C). Create the plan with the same vectors.
    """
    kernels = cast(KernelPlan, plan.kernels)
    own = decoder.own_tokens
    coefficients, vectors = mask
    first, side = as_linear(decoder.upscaling_steps[0]), kernels.upscaler.low_res_size
    threads = max(1, torch.get_num_threads() - 1)  # torch's threads still spin, at least on one core
    logits = sparse.new_empty(len(sparse), len(chosen), side, side)
    ious = sparse.new_empty(len(sparse), len(chosen))
    for number, prompt in enumerate(sparse):
        of_mask = coefficients[number if len(coefficients) > 1 else 0][None]
        tokens, images = decode_with_kernels(decoder, plan, torch.cat([own, prompt])[None], chosen, (of_mask, vectors))
        ious[number] = decoder.predicted_ious(tokens[:, 0])[0, chosen.start : chosen.stop]
        filters = [decoder.hypernetworks[index](tokens[:, 1 + n]) for n, index in enumerate(chosen)]
        draw_with_kernels(first, kernels.upscaler, images, 0, torch.cat(filters), logits[number], threads)
    return logits, ious


def decode_prompts(
    decoder: MaskDecoder,
    features: Tensor,
    places: Tensor,
    prompt: PromptEmbedding,
    chosen: range,
    high_res: tuple[Tensor, ...] = (),
) -> tuple[Tensor, Tensor]:
    """Return mask logits (B, N, 256, 256) and predicted IoUs (B, N), like `MaskDecoder.decode` for the `chosen` masks.

    `features` (1, C, 64, 64) is the image embedding, and `places` (P, C) is its positional encoding. Prompts are
    decoded one at a time, so the number of prompts doesn't affect the bits.
    """
    own, added = decoder.own_tokens, as_parts(high_res)
    found = []
    for number, sparse in enumerate(prompt.sparse):
        dense = prompt.dense[number if len(prompt.dense) > 1 else 0]
        image = (features[0] + dense).flatten(1).T.contiguous()
        found.append(_decode(decoder, image, places, torch.cat([own, sparse]), chosen, added))
    if not found:
        side = 4 * math.isqrt(len(places))
        return features.new_zeros(0, len(chosen), side, side), features.new_zeros(0, len(chosen))
    logits, ious = zip(*found, strict=True)
    return torch.stack(logits), torch.stack(ious)


def _decode(
    decoder: MaskDecoder,
    image: Tensor,
    places: Tensor,
    token_places: Tensor,
    chosen: range,
    added: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor]:
    """Decode one prompt's tokens (T, C) on its image (P, C): logits (N, 256, 256) and predicted IoUs (N,)."""
    transformer = decoder.transformer
    tokens = token_places
    for block in transformer.blocks:
        tokens = block.attend_among_tokens(tokens[None], token_places[None])[0]
        placed = image + places
        attended = _attend_to_image(block.cross_attn_token_to_image, tokens + token_places, placed, image)
        tokens = block.refine_tokens(tokens[None], attended[None])[0]
        image = _attend_from_image(block, image, placed, tokens + token_places, tokens)
    final = transformer.final_attn_token_to_image
    attended = _attend_to_image(final, tokens + token_places, image + places, image)
    tokens = transformer.norm_final_attn(tokens + attended)
    ious = decoder.predicted_ious(tokens[:1])[0, chosen.start : chosen.stop]
    filters = torch.cat([decoder.hypernetworks[index](tokens[1 + index : 2 + index]) for index in chosen])
    return _draw(decoder, image, filters, added), ious


def _attend_to_image(attention: Attention, queries: Tensor, placed: Tensor, image: Tensor) -> Tensor:
    """Attend from queries (T, C) to the image (P, C), with keys from `placed`, and return the output (T, C)."""
    heads, width = attention.heads, attention.head_width
    q = torch.unflatten(attention.q_proj(queries), 1, (heads, width)).transpose(0, 1)
    rows = (q @ split_rows(attention.k_proj.weight, heads)).flatten(0, 1) / math.sqrt(width)
    weights = linear(rows, placed).softmax(dim=1)
    means = split_rows(weights @ image, heads)
    values = means @ split_rows(attention.v_proj.weight, heads).transpose(1, 2)
    joined = values.transpose(0, 1).flatten(1) + attention.v_proj.bias
    out: Tensor = attention.out_proj(joined)
    return out


def _attend_from_image(block: TwoWayBlock, image: Tensor, placed: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return the image (P, C) after it has attended to the tokens (T, C) and was normalized."""
    attention = block.cross_attn_image_to_token
    heads, width = attention.heads, attention.head_width
    k = torch.unflatten(attention.k_proj(keys), 1, (heads, width)).transpose(0, 1) / math.sqrt(width)
    v = torch.unflatten(attention.v_proj(values), 1, (heads, width)).transpose(0, 1)
    rows = (k @ split_rows(attention.q_proj.weight, heads)).flatten(0, 1)
    offsets = (k * attention.q_proj.bias.view(heads, 1, width)).sum(dim=2).flatten()
    # The softmax over a few tokens is faster when positions are contiguous in memory.
    scores = split_rows(linear(rows, placed) + offsets[:, None], heads)
    weights = scores.softmax(dim=1).flatten(0, 1).T.contiguous()
    carried = v @ split_rows(attention.out_proj.weight.T, heads)
    carried[0] += attention.out_proj.bias  # the weights of a head add up to 1
    after: Tensor = block.norm4(product(weights, carried.flatten(0, 1), onto=image))
    return after


def _draw(decoder: MaskDecoder, image: Tensor, filters: Tensor, added: tuple[Tensor, ...]) -> Tensor:
    """Draw logits (N, side, side) from the image (P, C), the mask filters (N, 32), and the result of `as_parts`."""
    weight, bias = as_linear(decoder.upscaling_steps[0])
    drawn = []
    for start in range(0, len(image), BAND):
        band = slice(start, start + BAND)
        parts = tuple(part[band] for part in added)
        drawn.append(finish_band(decoder, linear(image[band], weight, bias), filters[None], parts)[0])
    return unfold_parts(torch.cat(drawn, dim=-1)[None], 4 * math.isqrt(len(image)))[0]


@dataclass(frozen=True)
class Embedding:
    """Embedding of one image, with the sizes that map the image's pixels to the embedding.

    `features` is (1, 256, 64, 64). For SAM 2, `high_res` contains the high-resolution features, (1, 64, 128, 128) and
    (1, 32, 256, 256); for other models, it's empty. The encoder's input is a square, and the image fills its top left
    part; `input_size` is the (height, width) of that part in pixels. `frame_size` is the (height, width) of the frame
    in which prompts and masks are given. The predictor ignores `source`, where callers can keep the image in any form.
    """

    features: Tensor
    input_size: Size
    frame_size: Size
    high_res: tuple[Tensor, ...] = ()
    source: Any = field(default=None, compare=False, kw_only=True)

    def __repr__(self) -> str:
        height, width = self.frame_size
        features = f"{tuple(self.features.shape)} on {self.features.device}"
        return f"Embedding(frame {width} x {height} pixels, features {features})"


@dataclass(frozen=True)
class PromptMasks:
    """Predicted masks of B prompts, C per prompt.

    `low_res_logits` (B, C, 256, 256) float32 covers the encoder's square input, including the padding. Positive logits
    are foreground. `predicted_iou` (B, C) float32 is the model's estimate of each mask's quality.
    """

    low_res_logits: Tensor
    predicted_iou: Tensor

    def __repr__(self) -> str:
        prompts, masks = self.predicted_iou.shape
        scores = ", ".join(f"{score:.3f}" for score in self.predicted_iou.flatten()[:6].tolist())
        more = ", …" if prompts * masks > 6 else ""
        return f"Masks({masks} for each of {prompts} prompts, predicted IoU {scores}{more})"


class Predictor:
    """Mask predictor for one SAM. It runs on the device and in the dtype of the model's weights.

    Load the weights, cast the model, and move it to its device before you create the predictor. Later changes don't
    affect values that the predictor has already computed.

    `compile_encoder` is the `torch.compile` mode for the image encoder. The predictor compiles the encoder the first
    time that it sees a batch size. Compiling takes minutes, pays off on a GPU, and changes the last bits of the
    results. If compilation fails, the predictor issues a RuntimeWarning and runs the encoder eagerly. With
    `must_compile`, it raises `CompilationError` instead. If a CUDA graph of the decoder can't be captured, the
    predictor behaves the same way, but the error is `CaptureError`.

    `kernels` are the CPU kernels to use. By default, the predictor uses the kernels for this CPU if the library exists
    and the model is on a CPU. With None, torch computes everything.

    Attributes:
        kernels: the CPU kernels in use, or None.
        must_compile: the argument of the same name.
    """

    def __init__(
        self,
        sam: Sam,
        compile_encoder: CompileMode | None = None,
        must_compile: bool = False,
        kernels: Kernels | Literal["auto"] | None = "auto",
    ) -> None:
        self.sam = sam
        self.must_compile = must_compile
        if kernels == "auto":
            kernels = usable_kernels() if sam.device.type == "cpu" else None
        self.kernels = kernels
        self.batch_encoder = BatchEncoder(sam, compile_encoder, must_compile)
        self._placed: Tensor | None = None
        self._planned: tuple[Embedding, PointPlan] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the arguments, because compiled code can't be pickled. Registered callbacks are lost."""
        sam: Any = self.sam
        if self.sam.device.type == "cpu" and getattr(get_spawning_popen(), "method", None) == "forkserver":
            sam = pickle.dumps(sam)  # torch would send a file descriptor per tensor, but the limit is 250
        options = {"must_compile": self.must_compile, "kernels": self.kernels}
        return {"sam": sam, "compile_encoder": self.batch_encoder.compile_mode, **options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        sam = state.pop("sam")
        Predictor.__init__(self, pickle.loads(sam) if isinstance(sam, bytes) else sam, **state)

    def before_each_layer(self, call: Callable[[], None]) -> None:
        """Register a callback that runs before each layer of the image encoder, in the thread that encodes.

        Use it for work that can't wait until a whole image is encoded. A compiled encoder ignores the callback.
        """
        self.batch_encoder.before_each_layer(call)

    def embed(self, image: Pixels | Tensor, frame_size: Size | None = None) -> Embedding:
        """Encode an image, (H, W, 3) uint8 RGB.

        Prompts and masks are in pixels of this image by default. If the masks are for a larger or smaller version of
        the image, set `frame_size` to the (height, width) of that version. Raises ValueError if the image has a
        different shape or dtype, or if the frame is empty.
        """
        return self.embed_many([image], [frame_size], batch_size=1)[0]

    def embed_many(
        self,
        images: Sequence[Pixels | Tensor],
        frame_sizes: Sequence[Size | None] | None = None,
        batch_size: int | None = None,
    ) -> list[Embedding]:
        """Encode images in batches of `batch_size`. Only the last bits of the results can differ from `embed`.

        `frame_sizes` contains a (height, width) or None for each image, as in `embed`. `batch_size` is 1 to 64 and
        defaults to 1 on a CPU and 7 on CUDA. It affects the last bits of the embeddings, but the number of images
        doesn't, because the last batch is padded. The embeddings of a batch share memory, which is freed only when all
        of them are gone. Raises ValueError like `embed`, and if the number of frames doesn't match the number of images
        or the batch size is out of range.
        """
        frames = [None] * len(images) if frame_sizes is None else list(frame_sizes)
        if len(frames) != len(images):
            raise ValueError(f"frame_sizes has {len(frames)} frames for {len(images)} images: expected one per image")
        checked = [self.on_device(image) for image in images]
        framed = [_checked_frame(frame, pixels) for frame, pixels in zip(frames, checked, strict=True)]
        resized = [resize_to_input(pixels, self.sam.geometry) for pixels in checked]
        with inference(self.sam.device):
            features = self.batch_encoder(resized, batch_size)
        return [
            Embedding(part, (pixels.shape[0], pixels.shape[1]), frame, tuple(high_res))
            for (part, *high_res), pixels, frame in zip(features, resized, framed, strict=True)
        ]

    def embed_resized(self, pixels: Tensor, frame_size: Size | None = None) -> Embedding:
        """Encode an image that already has the encoder's size: (h, w, 3) RGB from 0 to 255, uint8 or float.

        Prompts and masks are in pixels of this image unless you set `frame_size` to another (height, width). Raises
        ValueError if the shape is different, if the longer side doesn't match the encoder's input, or if the model's
        placement isn't `padded`.
        """
        self.sam.geometry.expect_padded("embed_resized")
        side = self.sam.image_size
        if pixels.ndim != 3 or pixels.shape[2] != 3 or max(pixels.shape[:2]) != side or 0 in pixels.shape:
            shape = tuple(pixels.shape)
            raise ValueError(f"the image has the shape {shape}: expected (h, w, 3) with a longer side of {side} pixels")
        with inference(self.sam.device):
            ((features, *_),) = self.batch_encoder([pixels], 1)
        return Embedding(features, (pixels.shape[0], pixels.shape[1]), _checked_frame(frame_size, pixels))

    def on_device(self, image: Pixels | Tensor) -> Tensor:
        """Copy an image to the model's device, so that you can pass parts of it to `embed_many` without more copies.

        On a CPU, the result shares the array's memory. Raises ValueError like `embed`.
        """
        check_process(self.sam.device)
        return upload(self.checked(image), self.sam.device)

    @staticmethod
    def checked(image: Pixels | Tensor) -> Tensor:
        """Return an image as a tensor that shares its memory, on the same device. Raises ValueError like `embed`."""
        return _checked_image(image)

    def predict(
        self,
        embedding: Embedding,
        points: Array | None = None,
        labels: Array | None = None,
        boxes: Array | None = None,
        masks: Array | None = None,
        multimask: bool = True,
    ) -> PromptMasks:
        """Predict masks for B prompts at once. A prompt is any combination of points, a box, and a mask.

        `points` (B, N, 2) as (x, y) and `boxes` (B, 4) as (x0, y0, x1, y1) are in pixels of the embedding's frame.
        `labels` (B, N) are 1 for foreground and 0 for background; use -1 to pad prompts that have fewer points. `masks`
        (B, 1, 256, 256) are logits of an earlier prediction, or binary masks in the same frame, whose pixels are bools,
        0 and 1, or 0 and 255. For a single prompt, you can omit the batch dimension and pass points (N, 2) with labels
        (N,), a box (4,), or a mask (1, 256, 256). Raises ValueError if there is no prompt, or if a shape, type, or
        value is invalid. The message describes the expected input.

        With `multimask`, each prompt gets three masks: whole, part, and subpart. Without it, each prompt gets a single
        mask, which is meant for correcting an earlier prediction whose logits you pass as `masks`. If you have no
        logits, the best of the three masks is more accurate, even for several points.
        """
        prompts = check_prompts(points, labels, boxes, masks, self.sam.geometry.low_res_size)
        if not multimask:
            return self.predict_single(embedding, prompts)
        return self._decode(embedding, prompts, range(1, MASK_TOKENS))

    def predict_single(self, embedding: Embedding, prompts: Prompts) -> PromptMasks:
        """Predict one mask per prompt, like `predict` without `multimask`, for prompts from `check_prompts`.

        If a subclass overrides `predict` to draw masks itself, this method still uses the model's masks.
        """
        if not self.sam.mask_decoder.traits.single_mask_stability:
            return self._decode(embedding, prompts, range(1))
        every = self._decode_all(embedding, prompts)
        return PromptMasks(every.low_res_logits[:, :1], every.predicted_iou[:, :1])

    def predict_all(
        self,
        embedding: Embedding,
        points: Array | None = None,
        labels: Array | None = None,
        boxes: Array | None = None,
        masks: Array | None = None,
    ) -> PromptMasks:
        """Predict four masks per prompt: the single mask of `predict`, then the three masks of its `multimask`."""
        prompts = check_prompts(points, labels, boxes, masks, self.sam.geometry.low_res_size)
        return self._decode_all(embedding, prompts)

    def plan_points(self, embedding: Embedding) -> PointPlan:
        """Precompute the values that all single points on this image share, for use with `decode_points`."""
        with inference(self.sam.device):
            return self._plan(embedding)

    def plan_prompts(self, embedding: Embedding) -> PointPlan:
        """Precompute the values that all prompts on this image share for the CPU kernels.

        The predictor keeps the plan of the last image. `predict` calls this method when it needs a plan. If several
        threads share a predictor, call it before you start them, or each thread repeats the work.
        """
        planned = self._planned
        if planned is None or planned[0] is not embedding:
            with inference(self.sam.device):
                planned = embedding, self._plan(embedding, self.sam.prompt_encoder.mask_vectors())
            self._planned = planned  # another thread may replace it
        return planned[1]

    def decode_points(self, embedding: Embedding, plan: PointPlan, points: Array) -> PointMasks:
        """Decode B single foreground points much faster than `predict`, with the same predictions, but draw no masks.

        `points` (B, 2) as (x, y) are in pixels of the embedding's frame. Create `plan` from the same embedding with
        `plan_points`. Raises ValueError if the shape is different.
        """
        points = torch.as_tensor(points)
        if points.ndim != 2:
            raise ValueError(f"points have the shape {tuple(points.shape)}: expected (B, 2), one point per prompt")
        prompts = check_prompts(points[:, None], torch.ones(len(points), 1), None, None)
        with inference(self.sam.device):
            embedded = self._embed_prompts(self._on_input(prompts, embedding))
            return point_decoder.decode_points(self.sam.mask_decoder, plan, embedded.sparse)

    def draw_masks(self, plan: PointPlan, masks: PointMasks, wanted: Tensor) -> Tensor:
        """Draw the masks that `wanted` (B, 3) bool selects, as low-resolution logits (N, 256, 256) float32.

        Pass the same `plan` that you used to decode the points.
        """
        with inference(self.sam.device):
            return point_decoder.draw_masks(self.sam.mask_decoder, plan, masks, wanted)

    def upscale(self, logits: Tensor, embedding: Embedding) -> Tensor:
        """Upscale low-resolution logits (B, C, 256, 256) to the embedding's frame, (B, C, height, width).

        Each mask takes 4 bytes per pixel of the frame, plus 4 MiB of temporary memory, so upscale only a few masks at a
        time. Raises ValueError if the logits have a different shape.
        """
        return upscale(logits, self.sam.geometry, embedding.input_size, embedding.frame_size)

    def _decode_all(self, embedding: Embedding, prompts: Prompts) -> PromptMasks:
        found = self._decode(embedding, prompts, range(MASK_TOKENS))
        logits, ious = self.sam.mask_decoder.with_stable_single_mask(found.low_res_logits, found.predicted_iou)
        return PromptMasks(logits, ious)

    def _decode(self, embedding: Embedding, prompts: Prompts, chosen: range) -> PromptMasks:
        with inference(self.sam.device):
            decoder, features = self.sam.mask_decoder, embedding.features
            prompts = self._on_input(prompts, embedding)
            with_kernels = self._decode_with_kernels(embedding, prompts, chosen)
            if with_kernels is not None:
                return with_kernels
            embedded = self._embed_prompts(prompts)
            if suits(decoder, features, embedded.sparse):
                places, high_res = self._places(), embedding.high_res
                logits, ious = decode_prompts(decoder, features, places, embedded, chosen, high_res)
            else:
                positions = self.sam.prompt_encoder.dense_positions()
                logits, ious = decoder.decode(features, positions, embedded, chosen, embedding.high_res)
            return PromptMasks(logits.float(), ious.float())

    def _decode_with_kernels(self, embedding: Embedding, prompts: Prompts, chosen: range) -> PromptMasks | None:
        """Decode like `_decode`, but with the CPU kernels. Return None if they don't suit the model or the prompts."""
        encoder, features = self.sam.prompt_encoder, embedding.features
        if self.kernels is None:
            return None
        sparse = encoder.embed_sparse(prompts.points, prompts.labels, prompts.boxes, prompts.masks)
        if not suits(self.sam.mask_decoder, features, sparse):
            return None
        plan = self.plan_prompts(embedding)
        if plan.kernels is None:
            return None
        mask = encoder.mask_coefficients(prompts.masks), encoder.mask_vectors()
        return PromptMasks(*decode_with_plan(self.sam.mask_decoder, plan, sparse, mask, chosen))

    def _plan(self, embedding: Embedding, mask_vectors: Tensor | None = None) -> PointPlan:
        decoder, encoder = self.sam.mask_decoder, self.sam.prompt_encoder
        positions, no_mask = encoder.dense_positions(), encoder.dense_without_mask()
        maps = embedding.features, positions, no_mask
        return point_decoder.plan_points(decoder, *maps, self.kernels, mask_vectors, embedding.high_res)

    def _places(self) -> Tensor:
        """Return the positional encoding (P, 256) of the image embedding. It's computed once and then cached."""
        if self._placed is None:
            self._placed = self.sam.prompt_encoder.dense_positions()[0].flatten(1).T.contiguous()
        return self._placed

    def _on_input(self, prompts: Prompts, embedding: Embedding) -> Prompts:
        """Convert prompts from the embedding's frame to pixels of the encoder's input, on the model's device."""
        return prompts.to(self.sam.device, self.sam.dtype).scaled(
            x=embedding.input_size[1] / embedding.frame_size[1],
            y=embedding.input_size[0] / embedding.frame_size[0],
        )

    def _embed_prompts(self, prompts: Prompts) -> PromptEmbedding:
        parts = prompts.points, prompts.labels, prompts.boxes, prompts.masks
        embedded: PromptEmbedding = self.sam.prompt_encoder(*parts)
        return embedded


def upscale(logits: Tensor, geometry: Geometry, input_size: Size, frame_size: Size) -> Tensor:
    """Upscale logits like `Predictor.upscale`, for callers that have an embedding's sizes but not the embedding."""
    if logits.ndim != 4:
        low, shape = geometry.low_res_size, tuple(logits.shape)
        raise ValueError(f"logits have the shape {shape}: expected (B, C, {low}, {low})")
    with inference(logits.device):
        if geometry.placement == "padded":
            side = geometry.image_size
            height, width = input_size
            square = F.interpolate(logits, (side, side), mode="bilinear", align_corners=False)
            logits = square[..., :height, :width]
        return F.interpolate(logits, frame_size, mode="bilinear", align_corners=False)


def resize_to_input(pixels: Tensor, geometry: Geometry) -> Tensor:
    """Resize an image to the encoder's input.

    If the model pads its input, Pillow resizes the image on a CPU. Other devices resize it themselves, with identical
    bits.
    """
    side = geometry.image_size
    if geometry.placement == "stretched":
        return stretch(pixels, side)
    if pixels.device.type == "cpu":
        return torch.from_numpy(resize(pixels.numpy(), side))
    return resize_on_device(pixels, resized_size(pixels.shape[0], pixels.shape[1], side))


def _checked_frame(frame_size: Size | None, pixels: Tensor) -> Size:
    height, width = frame_size or (pixels.shape[0], pixels.shape[1])
    if height < 1 or width < 1:
        raise ValueError(f"frame_size is {frame_size}: expected a height and width of at least 1 pixel")
    return int(height), int(width)


def _checked_image(image: Any) -> Tensor:
    """Check an image's shape and dtype, and return it as a tensor without moving it to another device."""
    pixels = image if isinstance(image, Tensor) else np.asarray(image)
    shape, dtype = tuple(pixels.shape), str(pixels.dtype).removeprefix("torch.")
    if dtype != "uint8" or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise ValueError(
            f"the image is an array of shape {shape} and type {dtype}: "
            "expected (height, width, 3) uint8, with RGB channels"
        )
    if isinstance(pixels, Tensor):
        return pixels.detach()
    # A tensor can't share memory that is read-only or has negative strides.
    return torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
