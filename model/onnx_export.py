"""ONNX graphs of SAM: the prompt encoder with the mask decoder, and the image encoder.

The decoder's inputs and outputs have the same names, shapes, and meanings as in the export of the `segment-anything`
package. Programs that were written for that export can therefore use our files.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmint.model.sam.common import EMBEDDING_CHANNELS
from segmint.model.sam.load import Sam
from segmint.model.sam.mask_decoder import MASK_TOKENS, PromptEmbedding
from segmint.model.sam.preprocess import normalized

OPSET = 17
"""ONNX opset version. The `segment-anything` package uses the same version by default."""


HIGH_RES = ("high_res_feats_1", "high_res_feats_0")
"""Names of the high-resolution features, from the second stage and from the first stage."""


class DecoderGraph(nn.Module):
    """Prompt encoder, mask decoder, and upscaling to the image's size, for one prompt with any number of points."""

    def __init__(self, sam: Sam, single_mask: bool) -> None:
        super().__init__()
        self.sam = sam
        self.single_mask = single_mask

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
        orig_im_size: Tensor,
        *high_res: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return mask logits (1, C, H, W), predicted IoUs (1, C), and low-resolution logits (1, C, 256, 256).

        By default, C is 4. The first mask is meant for prompts with several points. The other three are the whole, the
        part, and the subpart, in no guaranteed order. With `single_mask`, C is 1, and the graph chooses among these
        four masks. For three or more points, it returns the first mask. For fewer points, it returns the one of the
        other three with the highest predicted IoU. A box counts as two points, even if padding follows it.

        All inputs are float32. `image_embeddings` is (1, 256, 64, 64). `point_coords` (1, N, 2) are (x, y) in pixels of
        the encoder's 1024x1024 input, with `point_labels` (1, N) as for `PromptEncoder.embed_labeled`. The corners of a
        box are points, and a prompt without a box must end with a padding point. For SAM 2, a prompt with a box must
        also end with a padding point. `mask_input` (1, 1, 256, 256) contains the logits of an earlier prediction, and
        is ignored if `has_mask_input` (1,) is 0. `orig_im_size` (2,) is the image's (H, W). `high_res` contains the
        image's high-resolution features if the model has any.
        """
        encoder = self.sam.prompt_encoder
        dense = torch.where(has_mask_input != 0, encoder.mask_downscaling(mask_input), encoder.dense_without_mask())
        prompt = PromptEmbedding(encoder.embed_labeled(point_coords, point_labels), dense)
        positions = encoder.dense_positions()
        decoder = self.sam.mask_decoder
        logits, ious = decoder.decode(image_embeddings, positions, prompt, range(MASK_TOKENS), high_res)
        logits, ious = decoder.with_stable_single_mask(logits, ious)
        if self.single_mask:
            boxes = (point_labels == 2).sum() if encoder.pads_boxes else 0
            # This offset exceeds the magnitude of any predicted IoU.
            lead = (point_coords.shape[1] - boxes - 2.5) * ious.new_tensor([1000.0] + [0.0] * (MASK_TOKENS - 1))
            best = (ious + lead)[0].argmax(keepdim=True)
            logits, ious = logits.index_select(1, best), ious.index_select(1, best)
        geometry, frame = self.sam.geometry, orig_im_size.long()
        if geometry.placement == "stretched":
            masks, filled = logits, torch.full((2,), geometry.low_res_size)
        else:
            filled = traced_resized_size(frame, geometry.image_size)
            square = (geometry.image_size, geometry.image_size)
            masks = F.interpolate(logits, square, mode="bilinear", align_corners=False)
        masks = _stretch(_stretch(masks, 2, filled[0], frame[0]), 3, filled[1], frame[1])
        return masks, ious, logits


class EncoderGraph(nn.Module):
    """Normalization, padding, and the image encoder, which are the steps of `Predictor.embed` after resizing."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.image_encoder = sam.image_encoder
        self.side = sam.image_size

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Encode an image, (h, w, 3) uint8 RGB with a longer side of 1024 pixels, as (1, 256, 64, 64).

        If a side exceeds 1024 pixels, its padding has a negative size, which is an error, even in the exported graph.
        For a stretched model, the image is (1024, 1024, 3) float32 from 0 to 255. Its high-resolution features follow
        the embedding.
        """
        pixels = normalized(image.float())
        pixels = torch.cat([pixels, pixels.new_zeros(3, pixels.shape[1], self.side - pixels.shape[2])], dim=2)
        pixels = torch.cat([pixels, pixels.new_zeros(3, self.side - pixels.shape[1], self.side)], dim=1)
        encoded: Tensor | tuple[Tensor, ...] = self.image_encoder(pixels.reshape(1, 3, self.side, self.side))
        return encoded


def export_decoder(sam: Sam, path: Path, single_mask: bool) -> None:
    """Write the graph of `DecoderGraph` to `path`. Requires the `onnx` package.

    `sam` must be in float32 and on the CPU.
    """
    grid, side = sam.geometry.embedding_size, sam.geometry.low_res_size
    inputs = {
        "image_embeddings": torch.zeros(1, EMBEDDING_CHANNELS, grid, grid),
        "point_coords": torch.zeros(1, 3, 2),
        "point_labels": torch.ones(1, 3),
        "mask_input": torch.zeros(1, 1, side, side),
        "has_mask_input": torch.ones(1),
        "orig_im_size": torch.tensor([60.0, 80.0]),
    }
    for n, (name, channels) in enumerate(zip(HIGH_RES, sam.high_res_channels, strict=False)):
        inputs[name] = torch.zeros(1, channels, grid * 2 << n, grid * 2 << n)
    dynamic = {"point_coords": {1: "num_points"}, "point_labels": {1: "num_points"}, "masks": {2: "height", 3: "width"}}
    _export(DecoderGraph(sam, single_mask), path, inputs, ["masks", "iou_predictions", "low_res_masks"], dynamic)


def export_encoder(sam: Sam, path: Path) -> None:
    """Write the graph of `EncoderGraph` to `path`. The requirements are the same as for `export_decoder`.

    Weights over 2 GiB don't fit into an ONNX file, so they are written to separate files next to it.
    """
    side, outputs = sam.image_size, ["image_embeddings", *HIGH_RES[: len(sam.high_res_channels)]]
    if sam.geometry.placement == "stretched":
        _export(EncoderGraph(sam), path, {"image": torch.zeros(side, side, 3)}, outputs, {})
        return
    inputs = {"image": torch.zeros(side, side // 2, 3, dtype=torch.uint8)}
    _export(EncoderGraph(sam), path, inputs, outputs, {"image": {0: "height", 1: "width"}})


def _export(
    graph: nn.Module,
    path: Path,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    dynamic: Mapping[str, Mapping[int, str]],
) -> None:
    # Enable gradients. Without them, products would use oneDNN operators, which ONNX doesn't have (`sam/common.py`).
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both the fixed sizes in the trace and the legacy exporter are intentional
        torch.onnx.export(
            graph.eval(),
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=outputs,
            dynamic_axes=dynamic,
            opset_version=OPSET,
            dynamo=False,  # the dynamo exporter fails if the size of the masks is an input
        )


def traced_resized_size(frame: Tensor, side: int) -> Tensor:
    """Compute `resized_size` in integer arithmetic, from and to (height, width) as (2,) int64."""
    longer = frame.max()
    return torch.div(2 * side * frame + longer, 2 * longer, rounding_mode="trunc").clamp(min=1)


def _stretch(x: Tensor, axis: int, length: Tensor, size: Tensor) -> Tensor:
    """Resize the first `length` elements along an axis to `size`, like `F.interpolate` in bilinear mode.

    This doesn't use the corresponding onnxruntime operator, because it rounds positions to 1e-4 pixels, which shifts
    logits by up to 4e-4.
    """
    places = ((torch.arange(size) + 0.5) * (length.float() / size.float()) - 0.5).clamp(min=0)  # type: ignore[call-overload]
    first = places.long()
    second = torch.minimum(first + 1, length - 1)
    weights = (places - first).reshape([-1 if each == axis else 1 for each in range(x.ndim)])
    return torch.lerp(x.index_select(axis, first), x.index_select(axis, second), weights)
