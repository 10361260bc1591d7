"""Part of docs/performance.md about a GPU day, as Markdown from the five results of `benchmarks/gpu/day.py`."""

from collections.abc import Iterable
from typing import Any

from benchmarks.tables import Result, percent, table, wrapped

Found = dict[str, Result]


def gpu_part(results: dict[str, Result]) -> str:
    """Return all measurements by part, with the reasons for those without numbers."""
    texts: list[str] = []
    for number, make in enumerate((machine_text, encoders_text, images_text, bits_text, pipeline_text), start=1):
        result = results.get(f"gpu_day-{number}")
        if result is not None:
            found = {name: one for name, one in result["measurements"].items() if not missing(one)}
            texts += [*make(found), wrapped(without_numbers(result)), wrapped(where(result))]
    return "\n\n".join(text for text in texts if text)


def machine_text(found: Found) -> Iterable[str]:
    """Yield the peak, products, and attention."""
    if "peak" in found:
        peak = found["peak"]
        yield wrapped(
            f"In bfloat16, matrix products run at {peak['cold_tflops']:,.0f} TFLOP/s after a pause and at "
            f"{peak['sustained_tflops']:,.0f} after {peak['seconds']:.0f} seconds. Measured in the same way as in an "
            f"actor, the peak is {peak['bf16_tflops']:,.0f} TFLOP/s in bfloat16 and {peak['fp32_tflops']:,.0f} in "
            "float32."
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
                "share of peak",
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
                "share of peak",
                "share of peak (find only)",
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
            f"{share(one, 'of_sustained_peak') or 'an unknown share'} of the sustained peak and "
            f"{share(one, 'of_bare')} of the generator's speed without an actor. The GPU was busy for {busy} of the "
            f"time, and the thread that drives it for {share(one, 'device_thread_busy')}. The actor ran "
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


def estimate_part(results: dict[str, Result]) -> str:
    """Return the estimate of `benchmarks/gpu/cost_model.py`."""
    result = results.get("gpu_cost_model")
    if result is None:
        return ""
    gpus, launches = result["gpus"], result["constants"]["launches"]
    single, batch = "full image, 1 per batch", "full image, 8 per batch"
    recipes = table(
        ["full recipe", "before (images/s)", "now (images/s)", "share of the ceiling", "by the former definition"],
        (
            [
                name,
                ends(one["before"]["full recipe"]["images_s"]),
                ends(one["now"]["full recipe"]["images_s"]),
                *(ends_percent(one["now"]["full recipe"]["share"][key]) for key in ("current", "plain")),
            ]
            for name, one in gpus.items()
        ),
    )
    images = table(
        [
            "full image",
            "before (images/s)",
            "1 per batch (images/s)",
            "8 per batch (images/s)",
            "share of the ceiling (8)",
            "by the former definition (8)",
        ],
        (
            [
                name,
                ends(one["before"]["full image"]["images_s"]),
                *(ends(one["now"][kind]["images_s"]) for kind in (single, batch)),
                *(ends_percent(one["now"][batch]["share"][key]) for key in ("current", "plain")),
            ]
            for name, one in gpus.items()
        ),
    )
    parts = table(
        ["time per image with the full recipe (ms)", *gpus],
        ([part, *(ends(one["parts_ms"][part]) for one in gpus.values())] for part in gpus["H100"]["parts_ms"]),
    )
    goal, tested = result["target_share"], [gpus["H100"], gpus["H200"]]
    needed = {
        key: " and ".join(f"{goal * one['ceiling_images_s'][key]:.2f}" for one in tested)
        for key in ("current", "plain")
    }
    phrases = {
        "no": "isn't reached, even at the fast end",
        "only near the fast end": "is only reached near the fast end",
        "yes": "is reached, even at the slow end",
    }
    reached = {
        key: next(words for answer, words in phrases.items() if answer in [one["target"][key] for one in tested])
        for key in needed
    }
    saved, peaks = gpus["H100"]["effects_ms"], result["constants"]["peak_tflops"]
    words = [
        f"**This is an estimate.** {measured(results)}`benchmarks/gpu/cost_model.py` updates an earlier estimate of "
        "mask generation with ViT-H in half precision. The columns “before” show the earlier rates. The model takes "
        "them as input, so it can't confirm them. Each range goes from the slow to the fast end of the estimate. "
        "`prepare` and the host pipeline aren't included.",
        f"Our target for the full recipe is {percent(goal)} of the ceiling, which is {needed['current']} images/s on "
        f"an H100 and an H200. By the [current definition](metric.md), this {reached['current']}. The former "
        f"definition counted plain SAM's operations. By that definition, the target is {needed['plain']} images/s, "
        f"and it {reached['plain']}. The ceilings assume peaks of {peaks['H100']:.0f} and {peaks['H200']:.0f} "
        "TFLOP/s.",
        "Since the earlier estimate, segmint has changed in three ways. The figures are for an H100. The device no "
        f"longer idles between two images of a stream, which saves {saved_ms(saved['overlap across images'])} per "
        "image. Encoding 8 full images per batch saves "
        f"{saved_ms(saved['8 full images per encoder batch'])} per image. With the full recipe, the host starts "
        f"{launches['full recipe']:,} kernels and graphs per image instead of {launches['full recipe, before']:,}. "
        "This doesn't save any time, because the device takes longer than the host.",
        "All rates depend on the earlier estimate's assumptions. The model makes three more: the time per launch and "
        "the tiles of matrix products on all GPUs, the peak and the memory bandwidth on all GPUs except the H200, "
        "and the idle time between images on the A100 and the L4.",
        "The encoder's matrix products take the largest share of an image's time. The model assumes that they reach "
        "the peak. On an H100, memory traffic accounts for only "
        f"{gpus['H100']['decoder_traffic_ms']:.0f} ms of the time for decoding, drawing, and measuring.",
    ]
    first, *rest = map(wrapped, words)
    return "\n\n".join([first, recipes, images, *rest, parts])


def measured(results: dict[str, Result]) -> str:
    """Return the sentence about the measured rates, if any were recorded, or that nothing has run on a GPU."""
    day = results.get("gpu_day-3")
    if day is None:
        return "Nothing has run on a GPU. "
    rates = {name: day["measurements"].get(name, {}).get("find_images_s") for name in ("full recipe", "full image")}
    known = " and ".join(f"{rate:.3g} images/s with the {name}" for name, rate in rates.items() if rate is not None)
    if not known:
        return ""
    gpu = day["machine"]["gpu"]
    return f"It was made before the measurement above, in which an {gpu} reached {known} (find only). "


def ends(pair: list[float]) -> str:
    """Return both ends of an estimate."""
    return "–".join(
        dict.fromkeys(f"{one:,.0f}" if one >= 10 else f"{one:.1f}" if one >= 2 else f"{one:.2f}" for one in pair)
    )


def saved_ms(pair: list[float]) -> str:
    """Return the milliseconds that an effect saves."""
    return f"{-pair[1]:.0f} to {-pair[0]:.0f} ms"


def ends_percent(pair: list[float]) -> str:
    """Return both ends of a share in percent."""
    return f"{100 * pair[0]:.0f}–{percent(pair[1])}"


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


def where(result: Result) -> str:
    """Return the date and machine of a result."""
    machine = result["machine"]
    return (
        f"Part {result['part']} was measured on {result['date']} on one GPU ({machine['gpu']}) and "
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
