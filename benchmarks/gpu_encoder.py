"""The parts of the GPU benchmark on the image encoder: matrix products, one attention, the ViT."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_run import Run, attempt, memory, noise, profile, timed


def measure_peak(run: Run) -> dict[str, Any]:
    """TFLOP/s of one large square matrix product of random numbers, in bfloat16 and float32."""
    size = run.sizes.matrix
    rates = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = (torch.randn(size, size, device=run.device, dtype=dtype) for _ in range(2))
        seconds = timed(lambda a=a, b=b: a @ b, run)["median_s"]
        rates[f"{name}_tflops"] = 2 * size**3 / seconds / 1e12
    run.peak_tflops = rates["bf16_tflops"]
    return rates


def measure_attention(run: Run) -> dict[str, Any]:
    """One global attention of the ViT's shape, in bfloat16, both ways, and the reference's plain formula."""
    from segmint.model.sam.image_encoder_vit import attend_in_bands, attend_with_extended_keys

    width, _, heads, _ = run.sizes.vit
    side, dimensions = run.sizes.image_side // 16, width // heads
    shapes = [(1, heads, side * side, last) for last in (dimensions, dimensions, dimensions, side, side)]
    parts = [torch.randn(shape, device=run.device, dtype=torch.bfloat16) for shape in shapes]

    def plain(q: Any, k: Any, v: Any, rows: Any, columns: Any) -> Any:
        logits = (q * dimensions**-0.5) @ k.transpose(-2, -1)
        logits = logits.unflatten(-1, (side, side)) + rows[..., :, None] + columns[..., None, :]
        return logits.flatten(-2).softmax(-1) @ v

    expected = plain(*(part.float() for part in parts))
    found: dict[str, Any] = {}
    for name, attend in (("bands", attend_in_bands), ("extended", attend_with_extended_keys), ("plain", plain)):
        difference = float((attend(*parts).float() - expected).abs().max())
        found[name] = {**timed(partial(attend, *parts), run), "largest_difference": difference}
    return found


def measure_encoder(run: Run) -> dict[str, Any]:
    """The ViT encoder in bfloat16 by batch size, eager and compiled, and the reference's one image at a time."""
    from segmint.model.sam.image_encoder_vit import ImageEncoderViT, VitShape

    width, depth, heads, global_blocks = run.sizes.vit
    shape = VitShape(width, depth, heads, global_blocks)
    with torch.device(run.device):
        encoder = ImageEncoderViT(shape, run.sizes.image_side).eval()
        for parameter in encoder.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    encoder = encoder.to(torch.bfloat16)
    flops = encoder_flops(shape, run.sizes.image_side)
    found: dict[str, Any] = {"tflop_an_image": flops / 1e12}
    for batch in run.sizes.batches:
        found[f"eager_batch_{batch}"] = attempt(encoder_rate, run, encoder, batch, flops)
    largest = run.sizes.batches[-1]
    if run.compile_mode is not None:
        compiled = torch.compile(encoder, mode=run.compile_mode, dynamic=False)
        found[f"compiled_batch_{largest}"] = attempt(encoder_rate, run, compiled, largest, flops)
        del compiled
    found["profile"] = profile(lambda: encoder(noise(run, largest)), run)
    found["reference"] = attempt(reference_encoder_rate, run, encoder, shape, flops)
    best = max((part.get("images_s", 0.0) for part in found.values() if isinstance(part, dict)), default=0.0)
    if "images_s" in found["reference"]:
        found["times_the_reference"] = best / found["reference"]["images_s"]
    return found


def encoder_rate(run: Run, encoder: Callable[[Any], Any], batch: int, flops: float) -> dict[str, Any]:
    """Images a second of an encoder at one batch size, as a fraction of the peak, and the memory it took."""
    images = noise(run, batch)
    with memory(run) as peak:
        seconds = timed(lambda: encoder(images), run)
    rate = batch / seconds["median_s"]
    tflops = rate * flops / 1e12
    return {**seconds, "images_s": rate, "tflops": tflops, "of_peak": run.of_peak(tflops), **peak}


def reference_encoder_rate(run: Run, encoder: Any, shape: Any, flops: float) -> dict[str, Any]:
    """The reference package's encoder on the same weights, in bfloat16; one image, since it has no batches."""
    from benchmarks.reference import reference_vit

    with torch.device("meta"):
        reference = reference_vit(shape, run.sizes.image_side)
    reference.load_state_dict(encoder.state_dict(), strict=True, assign=True)
    images = noise(run, 1)
    expected, ours = reference(images).float(), encoder(images).float()
    found = encoder_rate(run, reference, 1, flops)
    return {**found, "mean_difference": float((ours - expected).abs().mean()), "std": float(expected.std())}


def encoder_flops(shape: Any, image_side: int) -> float:
    """Operations of one image, a multiply-add counted as two, including the tokens that pad windows."""
    side, width = image_side // 16, shape.width
    tokens = side * side
    windows = (-(-side // 14)) ** 2
    linear = 2 * tokens * 12 * width * width
    everywhere = 4 * tokens * tokens * width
    windowed = 4 * windows * 196 * 196 * width
    blocks = shape.depth * linear + len(shape.global_blocks) * everywhere
    blocks += (shape.depth - len(shape.global_blocks)) * windowed
    return float(blocks + 2 * tokens * (768 * width + 256 * width + 9 * 256 * 256))
