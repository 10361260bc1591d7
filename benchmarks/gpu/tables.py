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
