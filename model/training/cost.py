"""Cost of training, counted on tensors without data: floating-point operations, and the memory of one worker.

torch counts the operations of matrix products, convolutions, and attention in the forward and the backward pass. A
multiply-add counts as two operations. Activations are all tensors that autograd stores, in float32. They exclude the
probabilities of attention, because the fused kernels of GPUs recompute them.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from segmint.model.sam.common import EMBEDDING_CHANNELS
from segmint.model.sam.geometry import SAM1
from segmint.model.sam.load import Architecture, build_sam
from segmint.model.sam.prompt_encoder import PromptEmbedding
from segmint.model.sam.sam import Sam
from segmint.model.training.encoder_layers import encoder_layers, recomputed_blocks
from segmint.model.training.losses import prompt_losses
from segmint.model.training.optimizer import build_optimizer
from segmint.model.training.recipe import Recipe
from segmint.model.training.settings import LossSettings, SamplingSettings
from segmint.model.training.step import at_resolution

_FLOAT = 4  # bytes
_COPIES = 3  # float32 copies of each trained weight: its gradient, and two moments of AdamW


@dataclass(frozen=True)
class TrainingCost:
    """Number of weights and operations, and bytes of activations."""

    weights: int
    trained: int  # number of trained weights
    encode_flop: int  # for encoding an image once, without gradients
    image_flop: int  # per image and step, for training the encoder and for the decoder's work that all masks share
    mask_flop: int  # per mask and step, in all iterations
    image_bytes: int  # per image, if the encoder is trained
    mask_bytes: int  # per mask, in the iteration that stores most

    @property
    def state_bytes(self) -> int:
        """Bytes of the weights, the gradients, and the optimizer state."""
        return _FLOAT * (self.weights + _COPIES * self.trained)


def training_cost(
    architecture: Architecture, decoder_layers: int, recipe: Recipe, recompute: bool = False
) -> TrainingCost:
    """Count the cost of training with a recipe. For ViT-H, this takes seconds.

    With `recompute`, the encoder's blocks are recomputed in the backward pass (see `recomputed_blocks`).
    """
    with torch.device("meta"):
        sam = build_sam(architecture, decoder_layers)
        build_optimizer(sam, recipe)
        image = torch.zeros(1, 3, SAM1.image_size, SAM1.image_size)
        trains_encoder = "image_encoder" in recipe.parts
        with torch.no_grad():
            encode_flop = _flop(lambda: sam.image_encoder(image))
        image_flop = image_bytes = 0
        if trains_encoder:
            with recomputed_blocks(sam.image_encoder) if recompute else nullcontext():
                image_flop = _flop(lambda: sam.image_encoder(image).sum().backward())
            image_bytes = _encoder_bytes(sam, image, recompute)
        one, two = (_decoder_cost(sam, masks, recipe, trains_encoder) for masks in (1, 2))
    sizes = [(weight.numel(), weight.requires_grad) for weight in sam.parameters()]
    return TrainingCost(
        sum(size for size, _ in sizes),
        sum(size for size, trained in sizes if trained),
        encode_flop,
        image_flop + 2 * one[0] - two[0],
        two[0] - one[0],
        image_bytes,
        two[1] - one[1],
    )


def _flop(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def _encoder_bytes(sam: Sam, image: Tensor, recompute: bool) -> int:
    """Return the bytes that the encoder stores in training.

    With `recompute`, it stores the inputs of all blocks and the activations of one whole block.
    """
    inputs: list[int] = []
    marks: list[int] = []
    with ExitStack() as contexts:
        stored = contexts.enter_context(_stored(sam))
        for layer in encoder_layers(sam.image_encoder):

            def before(_: object, given: tuple[Tensor, ...]) -> None:
                inputs.append(given[0].nbytes)
                marks.append(stored.bytes)

            def after(_: object, given: object, output: object) -> None:
                marks.append(stored.bytes)

            contexts.callback(layer.block.register_forward_pre_hook(before).remove)
            contexts.callback(layer.block.register_forward_hook(after).remove)
        sam.image_encoder(image)
    if not recompute:
        return stored.bytes
    blocks = [end - start for start, end in zip(marks[::2], marks[1::2], strict=True)]
    return stored.bytes - sum(blocks) + sum(inputs) + max(blocks)


def _decoder_cost(sam: Sam, masks: int, recipe: Recipe, features_trained: bool) -> tuple[int, int]:
    """Return the operations of all iterations for `masks` masks, and the bytes of the iteration that stores most."""
    flop, largest = 0, 0
    size = SAM1.embedding_size
    features = torch.zeros(1, EMBEDDING_CHANNELS, size, size, requires_grad=features_trained)
    for points in _points(recipe.sampling):
        with _stored(sam) as stored:
            flop += _flop(lambda points=points: _iterate(sam, features, masks, points, recipe.losses))  # type: ignore[misc]
        largest = max(largest, stored.bytes)
    return flop, largest


def _points(sampling: SamplingSettings) -> list[int]:
    """Return the number of points in each iteration. The first iteration, which predicts three masks, is 0.

    A box counts as one point, because both take two tokens. Iterations that add no point count as if they came last.
    """
    clicks = [1 + each for each in range(1, sampling.clicks + 1)]
    return [0, *clicks, *[clicks[-1]] * (sampling.iterations - 1 - len(clicks))]


def _iterate(sam: Sam, features: Tensor, masks: int, points: int, losses: LossSettings) -> None:
    encoder, side = sam.prompt_encoder, losses.resolution
    places, labels = torch.zeros(masks, max(1, points), 2), torch.ones(masks, max(1, points), dtype=torch.int64)
    sparse = encoder(places, labels, None, None).sparse
    low = 4 * SAM1.embedding_size
    dense = encoder.mask_downscaling(torch.zeros(masks, 1, low, low)) if points else encoder.dense_without_mask()
    prompt = PromptEmbedding(sparse, dense)
    logits, ious = sam.mask_decoder(features, encoder.dense_positions(), prompt, multimask=not points)
    targets, valid = torch.zeros(masks, side, side, dtype=torch.bool), torch.ones(side, side, dtype=torch.bool)
    prompt_losses(at_resolution(logits, side), ious, targets, valid, losses, masks).total.backward()  # type: ignore[no-untyped-call]


class _Stored(TorchFunctionMode):
    """Counter of the bytes that autograd stores. Each storage counts only once, and weights don't count."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.bytes = 0
        self._seen = [weight.untyped_storage() for weight in sam.parameters()]  # kept, so that no address is reused
        self._keys = {storage._cdata for storage in self._seen}
        self._paused = False

    def add(self, tensor: Tensor) -> Tensor:
        """Count a tensor, and return it unchanged."""
        storage = tensor.untyped_storage()
        if not self._paused and storage._cdata not in self._keys:
            self._keys.add(storage._cdata)
            self._seen.append(storage)
            self.bytes += storage.nbytes()
        return tensor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """For an attention, count only the inputs and the output, because fused kernels store nothing else."""
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self._paused = True
        output = func(*args, **(kwargs or {}))
        self._paused = False
        for tensor in (*args, output):
            self.add(tensor)
        return output


@contextmanager
def _stored(sam: Sam) -> Iterator[_Stored]:
    stored = _Stored(sam)
    with stored, saved_tensors_hooks(stored.add, lambda tensor: tensor):
        yield stored
