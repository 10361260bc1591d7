"""Part of docs/performance.md about a GPU day, as Markdown from the five results of `benchmarks/gpu/day.py`."""

from collections.abc import Iterable
from typing import Any

from benchmarks.tables import Result, percent, table, wrapped
from segmint.model.sam.geometry import SAM1
from segmint.model.sam.load import VIT_SHAPES

Found = dict[str, Result]


def gpu_part(results: dict[str, Result]) -> str:
    """Return all measurements by part, with the reasons for those without numbers."""
    texts: list[str] = []
    for number, make in enumerate((machine_text, encoders_text, images_text, bits_text, pipeline_text), start=1):
        result = results.get(f"gpu_day-{number}")
        if result is not None:
            found = {name: one for name, one in result["measurements"].items() if not missing(one)}
            texts += [*make(found), wrapped(without_numbers(result)), wrapped(where(result))]
            texts.append(wrapped(result.get("shares", "")))
    return "\n\n".join(text for text in texts if text)


def shares_part(results: dict[str, Result]) -> str:
    """Return the measured shares of the ceiling on CPUs and GPUs, and the rate of the products in the full recipe."""
    rows: list[tuple[str, str]] = []
    if "stages" in results:
        stages = results["stages"]
        found, machine = stages["precisions"]["fp32"], stages["machine"]
        cpu = f"{machine['cpu']}, {machine['capability']}"
        for stage, one in found["network"].items():
            rows.append((f"MobileSAM on one thread ({cpu}), {stage}", percent(one["of_peak"])))
        whole = found["whole"]
        rows.append((f"MobileSAM on {whole['threads']} threads ({cpu}), full recipe", percent(whole["of_peak"])))
    if "pipeline_vs_loop" in results:
        build = results["pipeline_vs_loop"]
        machine, images = build["machine"], build["settings"]["images"]
        text = f"a build of {images} images with MobileSAM ({machine['cpu']}, {machine['capability']}), without crops"
        rows.append((text, percent(build["rounds"][0]["share_of_ceiling"])))
    image = measurement(results, 3, "full recipe")
    if image is not None:
        gpu = results["gpu_day-3"]["machine"]["gpu"]
        rows.append((f"ViT-H ({gpu}), full recipe, find only", share(image, "find_of_peak")))
    pipeline = measurement(results, 5, "pipeline")
    if pipeline is not None:
        gpu = results["gpu_day-5"]["machine"]["gpu"]
        rows.append((f"ViT-H ({gpu}), full recipe, segment actor without Ray", share(pipeline, "of_peak")))
    if not rows:
        return ""
    return "\n\n".join([table(["measurement", "share of the ceiling"], rows), *map(wrapped, products_text(results))])


def products_text(results: dict[str, Result]) -> Iterable[str]:
    """Yield the rate of the encoder's products in the full recipe with ViT-H, compared with a loop of products."""
    launches, rates = measurement(results, 3, "full recipe, launches"), measurement(results, 1, "peak")
    if launches is None or rates is None:
        return
    shape, encodes = VIT_SHAPES["vit_h"], 21
    # cuBLAS adds the bias in the kernels of a block's four products: qkv, proj, and both layers of the perceptron.
    products = [one for one in launches["kernels"] if one["name"].startswith("nvjet") and "_bias_" in one["name"]]
    if not products or sum(one["calls"] for one in products) % (4 * shape.depth):
        return
    ms = sum(one["ms"] for one in products)
    flop = encodes * shape.depth * 2 * SAM1.embedding_size**2 * 12 * shape.width**2
    rate, peak = flop / ms / 1e9, rates["bf16_tflops"]
    yield (
        f"Within the full recipe, the four products of each block of ViT-H took {ms:.1f} ms per image for "
        f"{flop / 1e12:.1f} TFLOP, according to the profiler. This is {rate:,.0f} TFLOP/s, or {percent(rate / peak)} "
        f"of the peak of {peak:,.0f} TFLOP/s. A loop that did nothing but multiply matrices ran at only "
        f"{rates['sustained_tflops']:,.0f} TFLOP/s after {rates['seconds']:.0f} seconds."
    )
    pipeline = measurement(results, 5, "pipeline")
    if pipeline is not None and "watts" in pipeline:
        yield (
            "We think that the loop reaches the GPU's power limit, but we didn't record its power. The full recipe "
            f"alternates products with other work. In the segment actor, the GPU drew {pipeline['watts']:.0f} W and "
            f"ran at {pipeline['sm_mhz']:,.0f} MHz (medians)."
        )


def measurement(results: dict[str, Result], part: int, name: str) -> Result | None:
    """Return a measurement of a part, or None if it has no numbers."""
    found: Result = results.get(f"gpu_day-{part}", {}).get("measurements", {}).get(name, {})
    if not found or missing(found):
        return None
    return found


def machine_text(found: Found) -> Iterable[str]:
    """Yield the peak, products, and attention."""
    if "peak" in found:
        peak = found["peak"]
        yield wrapped(
            f"Measured as in a build, the peak is {peak['bf16_tflops']:,.0f} TFLOP/s in bfloat16 and "
            f"{peak['fp32_tflops']:,.0f} in float32. A loop of bfloat16 products ran at {peak['cold_tflops']:,.0f} "
            f"TFLOP/s after a pause and at {peak['sustained_tflops']:,.0f} after {peak['seconds']:.0f} seconds."
        )
    products = {name.removeprefix("products, "): one for name, one in found.items() if name.startswith("products, ")}
    if products:
        shapes = [name for name in next(iter(products.values())) if name != "took_s"]
        yield table(
            ["matrix product of the encoder (TFLOP/s)", *products],
            ([shape, *(f"{one[shape]['tflops']:,.0f}" for one in products.values())] for shape in shapes),
        )
    attention = {tuple(name.split(", ")): one for name, one in found.items() if " attention, " in name}
    if attention:
        columns = list(dict.fromkeys(key[:2] for key in attention))
        ways = list(dict.fromkeys(key[2] for key in attention))
        yield table(
            ["attention kernels", *(f"{kind}, {width} channels (ms)" for kind, width in columns)],
            ([way, *(number(attention.get((*column, way)), "median_s", 1e3) for column in columns)] for way in ways),
        )


def encoders_text(found: Found) -> Iterable[str]:
    """Yield each encoder, eager and compiled."""
    rows = [(name.split(", "), one) for name, one in found.items() if ", batch " in name]
    if rows:
        yield table(
            [
                "encoder",
                "batch size",
                "mode",
                "attention",
                "images/s",
                "share of the ceiling",
                "memory (GiB)",
                "compile time (s)",
            ],
            (
                [
                    *(name, batch.removeprefix("batch "), how, way),
                    number(one, "images_s"),
                    share(one, "of_peak"),
                    number(one, "peak_gib"),
                    number(one, "compile_s"),
                ]
                for (name, batch, how, way), one in rows
            ),
        )


def images_text(found: Found) -> Iterable[str]:
    """Yield whole images, their stages, and the host's launches and waits."""
    images = {name: one for name, one in found.items() if "find_s" in one}
    if images:
        yield table(
            [
                "images",
                "find (ms)",
                "finish (ms)",
                "images/s",
                "share of the ceiling",
                "share of the ceiling (find only)",
                "masks",
                "memory (GiB)",
            ],
            (
                [
                    name,
                    number(one, "find_s", 1e3),
                    number(one, "finish_s", 1e3),
                    number(one, "images_s"),
                    share(one, "of_peak"),
                    share(one, "find_of_peak"),
                    sum(one["masks"].values()),
                    number(one, "peak_gib"),
                ]
                for name, one in images.items()
            ),
        )
    if any("original" not in one for name, one in images.items() if name.startswith("full image")):
        yield wrapped(
            "The time of `find` for the full image includes a copy of the photograph's original to the GPU, which "
            "segmint doesn't make anymore: only crops are cut from originals. We haven't measured the full image "
            "since. Builds never passed an original for full images."
        )
    streams = {name: one for name, one in found.items() if "images_per_batch" in one}
    if streams:
        yield table(
            [
                "stream of full images",
                "images per batch",
                "find (ms per image)",
                "images/s",
                "share of peak",
                "masks",
                "memory (GiB)",
            ],
            (
                [
                    f"{one['images']} images",
                    one["images_per_batch"],
                    number(one, "median_s", 1e3),
                    number(one, "find_images_s"),
                    share(one, "find_of_peak"),
                    sum(one["masks"].values()),
                    number(one, "peak_gib"),
                ]
                for one in streams.values()
            ),
        )
    stages = {name.removesuffix(", stages"): one["ms"] for name, one in found.items() if name.endswith(", stages")}
    if stages:
        names = list(dict.fromkeys(name for ms in stages.values() for name in ms))
        yield table(
            ["stage (ms on the GPU stream)", *stages],
            ([name, *(f"{ms[name]:,.1f}" if name in ms else "" for ms in stages.values())] for name in names),
        )
    launches = {name: one for name, one in found.items() if name.endswith(", launches")}
    if launches:
        keys = ("launches", "graph_launches", "copies", "syncs", "kernels_run")
        yield table(
            ["image", "launches", "graph launches", "copies", "waits", "kernels run", "busy time under the profiler"],
            (
                [name.removesuffix(", launches"), *(f"{one[key]:,}" for key in keys), share(one, "busy_share")]
                for name, one in launches.items()
            ),
        )


def bits_text(found: Found) -> Iterable[str]:
    """Yield agreement with the reference and the reproducibility of bits."""
    masks = {name: one for name, one in found.items() if name.startswith("masks ")}
    if masks:
        yield table(
            ["precision", "reference masks", "matched at IoU ≥ 0.99", "matched at IoU ≥ 0.95"],
            (
                [name.partition(", ")[2], one["masks"], *(share(one["share"], least, 1) for least in ("0.99", "0.95"))]
                for name, one in masks.items()
            ),
        )
    encoders = {name: one for name, one in found.items() if "std" in one}
    if encoders:
        yield table(
            ["embedding", "mean difference", "largest difference", "standard deviation"],
            (
                [name, *(f"{one[key]:.2g}" for key in ("mean_difference", "largest_difference", "std"))]
                for name, one in encoders.items()
            ),
        )
    repeats = {name: one for name, one in found.items() if "runs_same" in one}
    if repeats:
        kinds = ("runs_same", "threads_same", "processes_same")
        yield table(
            ["bit-equal results", "across runs", "across threads", "across processes"],
            ([name, *("yes" if one[kind] else "**no**" for kind in kinds)] for name, one in repeats.items()),
        )
    if "batch neighbors" in found:
        one = found["batch neighbors"]
        yield wrapped(
            f"We encoded {one['images']} crops of a photograph in batches of {one['batch']} with random neighbors, "
            f"and again one by one. {len(one['different']) or 'None'} of the embeddings differed."
        )


def pipeline_text(found: Found) -> Iterable[str]:
    """Yield the actor with its host pipeline, and the stage that feeds it."""
    if "pipeline" in found:
        one = found["pipeline"]
        busy = "an unknown share" if one["gpu_busy"] is None else percent(one["gpu_busy"])
        yield wrapped(
            f"The segment actor processed {one['images']:,} images with the full recipe in {one['seconds']:.0f} "
            f"seconds ({one['images_s']:.2f} images/s). This is "
            f"{share(one, 'of_peak') or 'an unknown share'} of the ceiling and {share(one, 'of_bare')} of the "
            f"generator's speed without an actor. The GPU was busy for {busy} of the time, and the thread that drives "
            f"it for {share(one, 'device_thread_busy')}. The actor ran "
            f"{one['threads']['decoders']} decoders and {one['threads']['decoders']} finishers on {one['cores']} "
            "cores. Threads called it directly, without Ray."
        )
    prepared = {name: one for name, one in found.items() if name.startswith("prepare, ")}
    if prepared:
        yield table(
            ["prepare", "processes", "CPU s per image", "images/s"],
            (
                [name.removeprefix("prepare, "), one["processes"], f"{one['cpu_s']:.2f}", f"{one['images_s']:.2f}"]
                for name, one in prepared.items()
            ),
        )


def missing(one: Result) -> str:
    """Return why a measurement has no numbers, or an empty string if it has some."""
    if "running" in one:
        return "the process was stopped"
    reason = str(one.get("skipped", one.get("failed", "")))
    return "not enough time was left" if reason.startswith("it takes about ") else reason


def without_numbers(result: Result) -> str:
    """Return the measurements without numbers and the reasons."""
    reasons: dict[str, list[str]] = {}
    for name, one in result["measurements"].items():
        if missing(one):
            reasons.setdefault(missing(one).splitlines()[0], []).append(name)
    listed = "; ".join(f"{'; '.join(names)} ({reason})" for reason, names in reasons.items())
    return f"Not measured: {listed}." if listed else ""


def where(result: Result, what: str = "") -> str:
    """Return the date and machine of a result. `what` was measured, by default a part of a GPU day."""
    machine = result["machine"]
    return (
        f"{what or 'Part ' + str(result['part'])} was measured on {result['date']} on one GPU ({machine['gpu']}) and "
        f"{machine['cores_usable']} CPU cores ({machine['cpu']}), with torch {machine['torch']} and "
        f"Python {machine['python']}."
    )


def number(one: Result | None, key: str, factor: float = 1.0) -> str:
    """Return a figure with three digits, or an empty string if it is missing."""
    value: Any = None if one is None else one.get(key)
    return "" if value is None else f"{value * factor:,.3g}" if value * factor < 1000 else f"{value * factor:,.0f}"


def share(one: Result, key: str, digits: int = 0) -> str:
    """Return a share in percent, or an empty string if it is missing."""
    return "" if one.get(key) is None else percent(one[key], digits)
