"""Mask generation with the reference package and with segmint, side by side on one GPU.

    make bench-gpu-reference                                             on the GPU machine, with the bundle
    python benchmarks/gpu/against_reference.py --checkpoint FILE         with a checkpoint of SAM's ViT-B, L, or H
    python benchmarks/gpu/against_reference.py --device cpu --quick      the same code at reduced sizes

All sides run in one process with the same photographs, encoder, decoder weights, points, and thresholds:

- `as shipped`: `SamAutomaticMaskGenerator` of segment-anything 1.0 with its defaults, in float32.
- `tuned`: the same package with what segment-anything-fast does, as far as the package's interface allows: bfloat16
  weights, a compiled image encoder, and 256 points per batch. The prompt encoder stays in float32, because bfloat16
  would move the points.
- `segmint bf16`: segmint as in builds on a GPU.
- `autocast`: the package under torch's autocast to bfloat16.
- `segmint fp32`: segmint in float32. It fails unless it finds all masks of `as shipped` with an IoU of at least 0.99.

TF32 is off for all sides. The package can't convert bfloat16 scores to NumPy, so in `tuned` and `autocast`, the
benchmark converts the scores to float32.

Without a checkpoint, each side runs a ViT-H with random weights for its cost, and decodes MobileSAM's features (see
`both.py`). With a checkpoint, each side runs the checkpoint's own encoder and decoder.

A side's seconds go from the decoded pixels to the RLE of the last mask. Ratios compare the same photograph in the same
round. After each side, the result is written to `gpu_against_reference.json` in the folder `$OUT`, or in
`benchmarks/results/`. A side without numbers is recorded as `failed` or `skipped`, with the reason. The exit code is 1
if a side failed, and 2 if the machine lacks something.
"""

import argparse
import gc
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.gpu.both import BothEncoders, heavy_encoder, light_sam, photographs, use_gpu_code  # noqa: E402
from benchmarks.gpu.run import FULL, QUICK, PartRun, complete, memory, synchronize  # noqa: E402

BUDGET_S = 420.0
AS_SHIPPED, TUNED = "as shipped", "tuned"
TUNED_POINTS = 256
"""Points per batch of the tuned package. Its default is 64."""

VITS = ("vit_b", "vit_l", "vit_h")
SIDE = 1024
"""Side of the encoder's input in pixels."""

QUICK_SIZES = replace(QUICK, points_per_side=6, frame=(256, 384), photographs=3, warmups=0)
QUICK_THRESHOLDS = {"pred_iou_thresh": 0.5, "stability_score_thresh": 0.7, "box_nms_thresh": 0.85}
"""Thresholds for reduced sizes, at which a coarse grid still results in many masks."""

Masks = list[dict[str, Any]]
"""Masks of an image, as COCO's compressed RLE with `size` and `counts`."""


@dataclass
class Side:
    """Mask generator that is ready to run.

    Call `begin` with the photograph's name before `generate`. `masks_of` converts the result of `generate` outside the
    measured time.
    """

    begin: Callable[[str], None]
    generate: Callable[[Any], Any]
    masks_of: Callable[[Any], Masks]


@dataclass
class Comparison:
    """Inputs that all sides share, and the seconds and masks of the sides so far, by side and photograph.

    Each list of seconds has one value per round.
    """

    photographs: dict[str, Any]
    settings: Any  # segmint's `MaskSettings`
    checkpoint: Path | None = None
    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    masks: dict[str, dict[str, Masks]] = field(default_factory=dict)


def main() -> None:
    """Compare the sides, and write the result."""
    from benchmarks.gpu import day

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes, to check that everything runs")
    parser.add_argument("--checkpoint", type=Path, help="SAM checkpoint that all sides run")
    parser.add_argument(
        "--budget", type=float, default=BUDGET_S, help="seconds; sides that would exceed it are skipped"
    )
    parser.add_argument("--output", type=Path, help="folder of the result")
    arguments = parser.parse_args()
    device = day.prepare(parser, arguments.device)
    if arguments.checkpoint is not None:
        check_checkpoint(parser, arguments.checkpoint)
    folder = day.output_folder(arguments.output)
    run = run_sides(device, arguments.quick, arguments.budget, folder, arguments.checkpoint)
    sys.exit(1 if run.failures() else 0)


def check_checkpoint(parser: argparse.ArgumentParser, path: Path) -> None:
    """End the process with an error of the parser unless the file is a checkpoint that the package can load."""
    from segmint.model.sam.load import SamWeightsError, inspect_checkpoint

    try:
        architecture, _ = inspect_checkpoint(path)
    except (OSError, SamWeightsError) as error:
        parser.error(str(error))
    if architecture not in VITS:
        parser.error(f"{path} contains {architecture}: expected one of {', '.join(VITS)}, which both packages can load")


def run_sides(
    device: torch.device, quick: bool, budget_s: float, folder: Path, checkpoint: Path | None = None
) -> PartRun:
    """Compare the sides, write the result to the folder, and print the verdict."""
    from benchmarks.gpu.day import head_of, suffix

    path = folder / f"gpu_against_reference{suffix(device, quick)}.json"
    head = head_of("gpu_against_reference", device, quick, budget_s)
    run = PartRun(device, QUICK_SIZES if quick else FULL, path, budget_s, head)
    comparison = prepare_comparison(run, checkpoint)
    head["settings"] = describe(run, comparison)
    complete(run, "comparison with the reference", lambda run: measure_sides(run, comparison))
    return run


def prepare_comparison(run: PartRun, checkpoint: Path | None = None) -> Comparison:
    """Load the photographs, and choose the settings of both packages."""
    from segmint.model.automatic.settings import MaskSettings

    thresholds = QUICK_THRESHOLDS if run.quick else {}
    settings = MaskSettings.official(points_per_side=run.sizes.points_per_side, **thresholds)
    images = {name: pair[0] for name, pair in photographs(run).items()}
    return Comparison(images, settings, checkpoint)


def describe(run: PartRun, comparison: Comparison) -> dict[str, Any]:
    """Describe the inputs that all sides share, as JSON values."""
    from segmint.infra.assets import sha256_of

    found: dict[str, Any] = {
        **package_settings(comparison),
        "points_per_batch": {TUNED: TUNED_POINTS},
        "photographs": {name: image.shape[:2] for name, image in comparison.photographs.items()},
        "rounds": run.sizes.runs,
    }
    if comparison.checkpoint is None:
        found["encoder"], found["weights"] = next(iter(run.sizes.vits)), "random, with MobileSAM's features and decoder"
    else:
        found["encoder"] = architecture_of(comparison.checkpoint)
        found["weights"] = comparison.checkpoint.name
        found["sha256"] = sha256_of(comparison.checkpoint)
    return found


def measure_sides(run: PartRun, comparison: Comparison) -> None:
    """Measure all sides. Those that the main ratio needs go first."""
    run.measure(AS_SHIPPED, measure_side, comparison, AS_SHIPPED, reference_as_shipped, needs_s=60)
    run.measure(TUNED, measure_on_gpu, comparison, TUNED, reference_tuned, needs_s=90)
    run.measure("segmint bf16", measure_on_gpu, comparison, "segmint bf16", segmint_bf16, needs_s=75)
    run.measure("autocast", measure_on_gpu, comparison, "autocast", reference_autocast, needs_s=45)
    found = run.measure("segmint fp32", measure_side, comparison, "segmint fp32", segmint_fp32, needs_s=75)
    if "agreement" in found:
        found["same"] = found["agreement"]["matched"]["0.99"] == found["agreement"]["reference"]
        run.write()


def measure_on_gpu(run: PartRun, comparison: Comparison, name: str, make: Callable[..., Side]) -> dict[str, Any]:
    """Measure a side that computes in bfloat16. Raises `NotMeasuredError` on a CPU."""
    run.need_cuda()
    return measure_side(run, comparison, name, make)


def measure_side(run: PartRun, comparison: Comparison, name: str, make: Callable[..., Side]) -> dict[str, Any]:
    """Measure a side's seconds per image and peak memory, and compare its speed and masks with the sides before it.

    The peak includes weights and warm-up.
    """
    seconds: dict[str, list[float]] = {photograph: [] for photograph in comparison.photographs}
    masks: dict[str, Masks] = {}
    try:
        with memory(run) as peak:
            side = make(run, comparison)
            for _ in range(run.sizes.warmups):
                for photograph, image in comparison.photographs.items():
                    side.begin(photograph)
                    side.generate(image)
            for _ in range(run.sizes.runs):
                for photograph, image in comparison.photographs.items():
                    side.begin(photograph)
                    synchronize(run)
                    began = time.perf_counter()
                    generated = side.generate(image)
                    synchronize(run)
                    seconds[photograph].append(time.perf_counter() - began)
                    masks[photograph] = side.masks_of(generated)
                if run.left_s < 0:
                    break
            side = generated = None  # type: ignore[assignment]
    finally:
        if run.on_cuda:
            torch.compiler.reset()  # because it holds compiled encoders
        gc.collect()
    comparison.seconds[name], comparison.masks[name] = seconds, masks
    return {**summary(comparison, name), **peak}


def summary(comparison: Comparison, name: str) -> dict[str, Any]:
    """Return a side's speed, and its ratios and agreement with the sides before it.

    A ratio above 1 means that the side is faster than the other one.
    """
    from benchmarks.masks.generator_vs_reference import agreement
    from benchmarks.measuring import spread

    own, masks = comparison.seconds[name], comparison.masks[name]
    every = [seconds for rounds in own.values() for seconds in rounds]
    median = statistics.median(every)
    found: dict[str, Any] = {
        "median_s": median,
        "least_s": min(every),
        "most_s": max(every),
        "images_s": 1 / median,
        "masks": sum(len(one) for one in masks.values()),
        "seconds": own,
    }
    for other in (AS_SHIPPED, TUNED):
        if other == name or other not in comparison.seconds:
            continue
        ratios: list[float] = []
        for photograph, rounds in comparison.seconds[other].items():
            # A side that ran out of time has fewer rounds.
            ratios += [theirs / ours for theirs, ours in zip(rounds, own[photograph], strict=False)]
        found[f"ratio to {other}"] = spread(ratios)
    if name != AS_SHIPPED and AS_SHIPPED in comparison.masks:
        expected = comparison.masks[AS_SHIPPED]
        by_photograph = {photograph: agreement(masks[photograph], expected[photograph]) for photograph in masks}
        found["agreement"] = added_up(by_photograph, sum(len(one) for one in expected.values()))
    return found


def added_up(by_photograph: dict[str, dict[str, Any]], reference: int) -> dict[str, Any]:
    """Add up the matches of all photographs. `reference` is the number of masks to match."""
    matched: dict[str, int] = {}
    for one in by_photograph.values():
        for least, count in one["matched"].items():
            matched[least] = matched.get(least, 0) + count
    least_iou = min(one["least_iou"] for one in by_photograph.values())
    return {"reference": reference, "matched": matched, "least_iou": least_iou, "photographs": by_photograph}


class PackageEncoder(torch.nn.Module):
    """Image encoder for the reference package that computes in a data type.

    With `stand_in`, its features are returned in place of the encoder's. They are computed in float32 when a photograph
    first appears.
    """

    img_size = SIDE

    def __init__(self, encoder: torch.nn.Module, dtype: torch.dtype, stand_in: torch.nn.Module | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.stand_in = stand_in
        self._dtype = dtype
        self._photograph = ""
        self._features: dict[str, torch.Tensor] = {}

    def begin(self, photograph: str) -> None:
        """Name the photograph of the next call."""
        self._photograph = photograph

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Encode a batch of one image, and return its features."""
        encoded: torch.Tensor = self.encoder(image.to(self._dtype))
        if self.stand_in is None:
            return encoded
        if self._photograph not in self._features:
            with torch.autocast(image.device.type, enabled=False):
                self._features[self._photograph] = self.stand_in(image.float())
        return self._features[self._photograph]


class PackageDecoder(torch.nn.Module):
    """Mask decoder for the reference package that returns float32 scores. With a data type, it computes in it."""

    def __init__(self, decoder: torch.nn.Module, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.decoder = decoder if dtype is None else decoder.to(dtype)
        self._dtype = dtype

    def forward(self, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return low-resolution logits and predicted IoUs, like the package's decoder."""
        if self._dtype is not None:
            for name, value in inputs.items():
                if isinstance(value, torch.Tensor):
                    inputs[name] = value.to(self._dtype)
        masks, scores = self.decoder(**inputs)
        return masks, scores.float()


def reference_as_shipped(run: PartRun, comparison: Comparison) -> Side:
    """Return the package's generator with its defaults, in float32."""
    return package_side(comparison, package_sam(run, comparison))


def reference_autocast(run: PartRun, comparison: Comparison) -> Side:
    """Return the package's generator under autocast to bfloat16."""
    sam = package_sam(run, comparison)
    sam.mask_decoder = PackageDecoder(sam.mask_decoder)
    side = package_side(comparison, sam)

    def generate(image: Any) -> Any:
        with torch.autocast(run.device.type, torch.bfloat16):
            return side.generate(image)

    return replace(side, generate=generate)


def reference_tuned(run: PartRun, comparison: Comparison) -> Side:
    """Return the package's generator with bfloat16 weights, a compiled encoder, and larger batches of points."""
    sam = package_sam(run, comparison, torch.bfloat16, compiled=run.on_cuda)
    sam.mask_decoder = PackageDecoder(sam.mask_decoder, torch.bfloat16)
    return package_side(comparison, sam, points_per_batch=TUNED_POINTS)


def package_side(comparison: Comparison, sam: Any, **options: Any) -> Side:
    """Return the package's generator for a model of `package_sam`."""
    from segment_anything import SamAutomaticMaskGenerator

    generator = SamAutomaticMaskGenerator(sam, output_mode="coco_rle", **package_settings(comparison), **options)

    def masks_of(records: Any) -> Masks:
        return [record["segmentation"] for record in records]

    return Side(sam.image_encoder.begin, generator.generate, masks_of)


def package_settings(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison's settings as arguments of the package's generator."""
    names = ("points_per_side", "pred_iou_thresh", "stability_score_thresh", "stability_score_offset", "box_nms_thresh")
    return {name: getattr(comparison.settings, name) for name in names}


def package_sam(
    run: PartRun, comparison: Comparison, dtype: torch.dtype = torch.float32, compiled: bool = False
) -> Any:
    """Create the package's model. `dtype` is that of its image encoder; the rest is in float32."""
    from segment_anything import sam_model_registry

    from benchmarks.masks.reference import reference_sam, reference_vit
    from segmint.model.sam.image_encoder_vit import VitShape

    stand_in = None
    if comparison.checkpoint is not None:
        sam = sam_model_registry[architecture_of(comparison.checkpoint)](checkpoint=str(comparison.checkpoint))
        sam.to(run.device).eval()
        encoder = sam.image_encoder
    else:
        light = light_sam(run, "fp32")
        sam, stand_in = reference_sam(light), light.image_encoder
        with torch.device(run.device):
            encoder = reference_vit(VitShape(*next(iter(run.sizes.vits.values()))), SIDE)
    encoder = encoder.to(dtype)
    if compiled:
        encoder = torch.compile(encoder, dynamic=False)
    sam.image_encoder = PackageEncoder(encoder, dtype, stand_in)
    return sam


def architecture_of(checkpoint: Path) -> str:
    """Return the architecture of a checkpoint."""
    from segmint.model.sam.load import inspect_checkpoint

    return inspect_checkpoint(checkpoint)[0]


def segmint_fp32(run: PartRun, comparison: Comparison) -> Side:
    """Return segmint's generator in float32."""
    return segmint_side(run, comparison, "fp32")


def segmint_bf16(run: PartRun, comparison: Comparison) -> Side:
    """Return segmint's generator in bfloat16, as in builds on a GPU."""
    return segmint_side(run, comparison, "bf16")


def segmint_side(run: PartRun, comparison: Comparison, precision: str) -> Side:
    """Return segmint's generator with a compiled encoder, or an eager one on a CPU.

    At reduced sizes, it runs the GPU's code on a CPU as well.
    """
    from segmint.infra.device import Compute
    from segmint.model.automatic.generator import MaskGenerator
    from segmint.model.sam.predictor import Predictor
    from segmint.operators.segment.models import load_model

    begin: Callable[[str], None] = ignore
    if comparison.checkpoint is not None:
        compute = Compute(run.device.type, precision, torch.get_num_threads())  # type: ignore[arg-type]
        sam = load_model(comparison.checkpoint, compute)
        predictor = Predictor(sam, compile_encoder="default" if run.on_cuda else None, must_compile=True)
    else:
        sam = light_sam(run, precision)
        predictor = Predictor(sam, must_compile=True)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        both = BothEncoders(predictor.batch_encoder, heavy_encoder(run, sam, dtype=dtype), {})
        predictor.batch_encoder = both  # type: ignore[assignment]
        begin = both.begin
    generator = MaskGenerator(predictor, comparison.settings)
    if run.quick:
        use_gpu_code(generator)

    def masks_of(generated: Any) -> Masks:
        rles = [record.segmentation for record in generated.records]
        return [{"size": list(rle.size), "counts": rle.counts} for rle in rles]

    return Side(begin, generator.generate, masks_of)


def ignore(_: str) -> None:
    """Ignore the name of the next photograph."""


if __name__ == "__main__":
    warnings.simplefilter("default", RuntimeWarning)
    main()
