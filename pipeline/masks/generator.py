"""Mask generation and prediction for notebooks and scripts, with models by name, images by path, and progress bars."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack
from dataclasses import fields, replace
from functools import partial
from typing import Any, TypeAlias, get_args

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor

from segmint.infra.arrays import Pixels, Size
from segmint.infra.assets import AUTO, default_weights, resolve_default
from segmint.infra.device import BF16_NEEDS_GPU, kind_here, resolve_compute
from segmint.infra.errors import SegmintError
from segmint.infra.progress import Progress
from segmint.model.automatic import generator as base
from segmint.model.automatic.generator import RawMasks, Report
from segmint.model.automatic.rle import Funnel
from segmint.model.automatic.settings import MaskSettings, Profile
from segmint.model.sam import predictor as sam_predictor
from segmint.model.sam.load import CompileMode, Sam, SamWeightsError, encoder_architecture
from segmint.model.sam.predictor import Embedding
from segmint.model.sam.preprocess import Array, Prompts, check_prompts
from segmint.operators.child import lacks_memory
from segmint.operators.segment.models import cpu_kernels, load_model
from segmint.pipeline.masks.predict import prompted_record
from segmint.pipeline.masks.results import Image, ImageMasks, PredictedMasks, describe, pixels_of

_LINE_S = 2.0  # seconds between progress lines without a terminal, as in a notebook

Weights: TypeAlias = str | os.PathLike[str]
"""Name of weights (mobile_sam, vit_b, vit_l, vit_h), or the path or URI of a checkpoint. auto: vit_h on a GPU,
mobile_sam on a CPU."""


def sam_of(model: Sam | Weights, device: str = "auto", precision: str = "fp32") -> Sam:
    """Return a loaded SAM unchanged, or load one from weights by name, path, or URI.

    A loaded model already has a device and a precision, so passing either of them with it raises ValueError. bf16 on a
    CPU also raises ValueError. Raises `UsageError` if the weights can't be found or the device isn't available, and
    TypeError for any other type of `model`.
    """
    if isinstance(model, Sam):
        if (device, precision) != ("auto", "fp32"):
            raise ValueError(
                f"device={device!r} and precision={precision!r} can't be combined with a loaded model. "
                "Pass them to load_sam."
            )
        if model.device.type == "cpu" and model.dtype == torch.bfloat16:
            raise ValueError(BF16_NEEDS_GPU)
        return model
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(
            f"the model is a {type(model).__name__}: expected a name (mobile_sam, vit_b, vit_l, vit_h), the path of a "
            "checkpoint, or the result of load_sam"
        )
    if precision == "bf16" and kind_here(device) == "cpu":
        raise ValueError(BF16_NEEDS_GPU)
    compute = resolve_compute(device, precision)
    name = default_weights(compute.kind) if model == AUTO else os.fspath(model)
    return load_model(resolve_default(name, os.fspath(model), "the model"), compute)


class Predictor(sam_predictor.Predictor):
    """Predictor of masks for prompts. Its SAM is a loaded model, the name of weights, or the path of a checkpoint.

    `device` (auto, cpu, cuda, cuda:N) and `precision` (fp32, bf16, auto) apply to weights that this class loads.
    Wherever a method takes an image, you can pass a path, a URI, a Pillow image, or an array. All other behavior is
    described in `segmint.model.sam.predictor.Predictor`.
    """

    def __init__(
        self,
        sam: Sam | Weights = AUTO,
        compile_encoder: CompileMode | None = None,
        must_compile: bool = False,
        *,
        device: str = "auto",
        precision: str = "fp32",
    ) -> None:
        model = sam_of(sam, device, precision)
        kernels = cpu_kernels(model.device.type)
        super().__init__(model, compile_encoder, must_compile, kernels)

    def embed(self, image: Image | Tensor, frame_size: Size | None = None) -> Embedding:
        """Encode an image of any type that `pixels_of` accepts. The base class describes `frame_size`."""
        return self.embed_many([image], [frame_size], 1)[0]

    def embed_many(
        self,
        images: Sequence[Image | Tensor],
        frame_sizes: Sequence[Size | None] | None = None,
        batch_size: int | None = None,
    ) -> list[Embedding]:
        """Encode images in batches of `batch_size`. All images are decoded into memory first."""
        found = super().embed_many([_pixels(image) for image in images], frame_sizes, batch_size)
        return [replace(embedding, source=image) for embedding, image in zip(found, images, strict=True)]

    def predict(
        self,
        embedding: Embedding | Image | Tensor,
        points: Array | None = None,
        labels: Array | None = None,
        boxes: Array | None = None,
        masks: Array | None = None,
        multimask: bool = True,
    ) -> PredictedMasks:
        """Predict masks like the base class, and draw the mask with the best predicted IoU for each prompt.

        If you pass an image instead of an embedding, the image is encoded first. If you pass points without labels,
        they are foreground points. Raises ValueError if a point is outside the image, or if a box is empty or doesn't
        overlap the image.
        """
        if not isinstance(embedding, Embedding):
            embedding = self.embed(embedding)
        if points is not None and labels is None:
            labels = np.ones(np.shape(points)[:-1])
        prompts = None if points is None and boxes is None else check_prompts(points, labels, boxes, None)
        if prompts is not None:
            _check_inside(prompts, embedding.frame_size)
        found = super().predict(embedding, points, labels, boxes, masks, multimask)
        prompt_points, records = [], []
        for number, (logits, ious) in enumerate(zip(found.low_res_logits, found.predicted_iou, strict=True)):
            best = int(ious.argmax())
            prompt_points.append(_points_of_prompt(prompts, number))
            first = prompt_points[-1][0] if prompt_points[-1] else (math.nan, math.nan)
            drawn = self.upscale(logits[None, best : best + 1], embedding)[0]
            record = prompted_record(drawn, float(ious[best]), first, MaskSettings().stability_score_offset)
            records.append(replace(record, output=best if multimask else None))
        return PredictedMasks(
            records=tuple(records),
            funnel=Funnel(),
            source=embedding.source,
            low_res_logits=found.low_res_logits,
            predicted_iou=found.predicted_iou,
            prompt_points=prompt_points,
            upscale=partial(  # a method of `self` would keep the model and the embedding, and couldn't be pickled
                sam_predictor.upscale,
                geometry=self.sam.geometry,
                input_size=embedding.input_size,
                frame_size=embedding.frame_size,
            ),
        )

    def __repr__(self) -> str:
        return f"Predictor({model_name(self.sam)})"


def model_name(sam: Sam) -> str:
    """Return a short description of a model: its image encoder, device, and dtype."""
    try:
        name: str = encoder_architecture(sam.state_dict())
    except SamWeightsError:
        name = type(sam.image_encoder).__name__
    return f"{name} on {sam.device}, {str(sam.dtype).removeprefix('torch.')}"


def _check_inside(prompts: Prompts, frame_size: Size) -> None:
    """Raise ValueError if a point is outside the frame, or if a box is empty or doesn't overlap the frame."""
    height, width = frame_size
    if prompts.points is not None and prompts.labels is not None:
        points = prompts.points[prompts.labels >= 0]
        outside = ((points < 0) | (points > points.new_tensor([width, height]))).any(1)
        if outside.any():
            x, y = points[outside][0].tolist()
            raise ValueError(
                f"points: expected x and y inside the {width} x {height} pixels of the image, got {x:g}, {y:g}"
            )
    if prompts.boxes is not None:
        first, last = prompts.boxes[:, :2], prompts.boxes[:, 2:]
        if ((first >= last) | (first >= first.new_tensor([width, height])) | (last <= 0)).any():
            raise ValueError(f"boxes: expected x0 < x1 and y0 < y1, overlapping the {width} x {height} pixels")


def _points_of_prompt(prompts: Prompts | None, number: int) -> list[tuple[float, float]]:
    if prompts is None or prompts.points is None or prompts.labels is None:
        return []
    return [(x, y) for x, y in prompts.points[number][prompts.labels[number] >= 0].tolist()]


def _pixels(image: Image | Tensor) -> Tensor | Pixels:
    return image if isinstance(image, Tensor) else pixels_of(image)


class MaskGenerator(base.MaskGenerator):
    """Automatic mask generator for one or many images (SAM paper, Section 4 and Appendix B).

    Example: `MaskGenerator("mobile_sam", "official", points_per_side=16)`.

    Pass the model as the name of weights, a checkpoint's path, a loaded SAM, or a predictor. Pass the settings as a
    `MaskSettings`, or as a profile's name (`sa1b` by default) with keys of `MaskSettings` to override. With a profile's
    name, the generator uses no crops unless you pass `crop_n_layers`. `device` and `precision` apply to weights that
    this class loads. `segmint.model.automatic.generator.MaskGenerator` describes `crops_per_batch`.

    Raises the errors of `sam_of` and `MaskSettings.of`, and ValueError if keys are combined with a `MaskSettings`.
    """

    def __init__(
        self,
        predictor: sam_predictor.Predictor | Sam | Weights = AUTO,
        settings: MaskSettings | str | None = None,
        crops_per_batch: int | None = None,
        *,
        device: str = "auto",
        precision: str = "fp32",
        **keys: Any,
    ) -> None:
        settings = _settings(settings, keys)  # validate before loading a model, which is slow
        if not isinstance(predictor, sam_predictor.Predictor):
            predictor = Predictor(predictor, device=device, precision=precision)
        elif (device, precision) != ("auto", "fp32"):
            raise ValueError(f"device={device!r} and precision={precision!r} can't be combined with a predictor")
        super().__init__(predictor, settings, crops_per_batch)

    def generate(self, image: Image, original: Image | None = None, *, progress: bool = False) -> ImageMasks:
        """Return the masks of one image, in the image's frame. With `progress`, report progress on standard error.

        The image may be a path, a URI, a Pillow image, or an array; see `pixels_of`. The base class describes
        `original`. Raises `ImageError` if the image has any other type or can't be read.
        """
        with ExitStack() as stack:
            report = None
            if progress:
                bar = stack.enter_context(Progress(interval_s=_LINE_S))
                report = _points_of(bar)
                bar.stage("points")
            found = self.find(image, original, report)
        generated = self.finish(found)
        return ImageMasks(generated.records, generated.funnel, image)

    def generate_many(self, images: Iterable[Image], *, progress: bool = False) -> Iterator[ImageMasks]:
        """Yield the masks of each image in order. Invalid images don't stop the generator.

        If an image can't be read or doesn't fit into memory, its result contains an `error` instead of masks. `images`
        is consumed lazily, so a generator of paths can have any length. Other device errors propagate. Raises TypeError
        if `images` is a single image.
        """
        if isinstance(images, (str, bytes)):
            raise TypeError(f"generate_many got a string, {images!r}: expected several images, such as a list of paths")
        dimensions = len(getattr(images, "shape", ()))
        if isinstance(images, (os.PathLike, PillowImage.Image)) or dimensions in (2, 3):
            raise TypeError(
                f"generate_many got {describe(images)}, which may be a single image: expected a list of images or an "
                "array of shape (N, height, width, 3)"
            )
        total = len(images) if isinstance(images, Sized) else None
        with ExitStack() as stack:
            bar = stack.enter_context(Progress(interval_s=_LINE_S)) if progress else None
            if bar is not None:
                bar.stage("images", total=total)
            for number, image in enumerate(images, start=1):
                try:
                    result = self.generate(image)
                except Exception as error:
                    reason = str(error)
                    if lacks_memory(error):
                        reason = f"{describe(image)}: not enough memory"
                    elif not isinstance(error, (SegmintError, OSError)):
                        raise
                    result = ImageMasks((), Funnel(), image, reason)
                if bar is not None:
                    bar.update("images", number)
                yield result

    def find(self, image: Image, original: Image | None = None, report: Report | None = None) -> RawMasks:
        """Find masks like the base class, for an image of any type that `pixels_of` accepts."""
        return super().find(pixels_of(image), None if original is None else pixels_of(original, "original"), report)

    def __repr__(self) -> str:
        usual = _settings(self.settings.profile, {})
        changed = "".join(
            f", {field.name}={getattr(self.settings, field.name)!r}"
            for field in fields(MaskSettings)
            if getattr(self.settings, field.name) != getattr(usual, field.name)
        )
        return f"MaskGenerator({model_name(self.predictor.sam)}; {self.settings.profile}{changed})"


def _settings(settings: MaskSettings | str | None, keys: dict[str, Any]) -> MaskSettings:
    if isinstance(settings, MaskSettings):
        if keys:
            raise ValueError(
                f"{', '.join(keys)} can't be combined with a MaskSettings. Pass the keys to it, as in "
                f"MaskSettings.{settings.profile}({next(iter(keys))}={next(iter(keys.values()))!r})"
            )
        return settings
    if settings is not None and not isinstance(settings, str):
        raise TypeError(
            f"settings is a {type(settings).__name__}: expected {', '.join(map(repr, get_args(Profile)))}, or a "
            "MaskSettings"
        )
    return MaskSettings.of(settings or "sa1b", **{"crop_n_layers": 0, **keys})


def _points_of(bar: Progress) -> Report:
    def report(done: int, points: int) -> None:
        bar.stage("points", total=points)
        bar.update("points", done)

    return report
