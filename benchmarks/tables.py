"""Parts of docs/performance.md as Markdown from the JSON of recorded results."""

import functools
import statistics
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

PRECISIONS = {"fp32": "float32"}
GROUPS = {
    "encode": ("encode",),
    "decode": ("plan", "decode"),
    "draw": ("draw",),
    "upscale and filter": ("upscale and filter",),
    "the rest": ("suppression", "clean-up", "RLE", "other"),
}
"""Groups of stages in the plot."""

Result = dict[str, Any]


def part_of(name: str) -> Callable[[Callable[[Result], str]], Callable[[dict[str, Result]], str]]:
    """Decorate a part that uses one result, so that it takes all results, and is empty if its result is missing."""

    def decorate(make: Callable[[Result], str]) -> Callable[[dict[str, Result]], str]:
        return functools.wraps(make)(lambda results: make(results[name]) if name in results else "")

    return decorate


def generator_part(results: dict[str, Result]) -> str:
    """Format whole images without crops, and the plot of all."""
    result = results.get("generator_vs_reference")
    if result is None:
        return ""
    return f"![{alternative(results)}](images/performance.svg)\n\n{comparison(result)}"


def crops_part(results: dict[str, Result]) -> str:
    """Format whole images with crops."""
    found = [
        results[name] for name in ("generator_vs_reference-crops1", "generator_vs_reference-crops2") if name in results
    ]
    return "\n\n".join(comparison(result) for result in found)


def comparison(result: Result) -> str:
    """Describe a comparison: speed, agreement, memory, and the conditions of the measurement."""
    settings, rows = result["settings"], result["photographs"]
    precisions = settings["precisions"]
    words = wrapped(" ".join(in_words(precision, rows) for precision in precisions))
    speed = table(
        [
            "photograph",
            "pixels",
            "reference (s)",
            *(f"{one} {unit}" for one in precisions for unit in ("(s)", "speedup")),
        ],
        (
            [
                row["name"],
                f"{row['width']} × {row['height']}",
                seconds(row["reference"]["seconds"]),
                *(
                    cell
                    for one in precisions
                    for cell in (seconds(row["ours"][one]["seconds"]), ratio(row["ours"][one]["ratio"]))
                ),
            ]
            for row in rows
        ),
    )
    agreement = table(
        [
            "photograph",
            "precision",
            "segmint masks",
            "reference masks",
            *(f"matched at IoU ≥ {least}" for least in thresholds(rows)),
            "lowest IoU",
        ],
        (
            [
                row["name"],
                one,
                row["ours"][one]["masks"],
                row["reference"]["masks"],
                *row["ours"][one]["matched"].values(),
                f"{row['ours'][one]['least_iou']:.3f}",
            ]
            for row in rows
            for one in precisions
        ),
    )
    sides = ["reference", *precisions]
    beside = table(
        ["photograph", *(f"{side} (MiB)" for side in sides), *(f"{side} setup (s)" for side in sides)],
        (
            [
                row["name"],
                *(f"{side_of(row, side)['peak_mib']:,}" for side in sides),
                *(seconds(side_of(row, side)["setup_s"]) for side in sides),
            ]
            for row in rows
        ),
    )
    return "\n\n".join(
        [
            words,
            speed,
            agreement,
            beside,
            *([kernels_table(rows, precisions)] if "torch" in rows[0] else []),
            *([avx2_table(rows)] if any("avx2" in row for row in rows) else []),
            wrapped(f"The benchmark ran {rounds_of(rows)}, using {grid_of(settings)}. {where(result)}"),
        ]
    )


def rounds_of(rows: Sequence[Result]) -> str:
    """Describe the rounds per photograph: `3 rounds`, or `2 rounds for truck and 1 round for the others`."""
    names: dict[int, list[str]] = {}
    for row in rows:
        names.setdefault(len(row["rounds"]), []).append(row["name"])
    usual = max(names, key=lambda count: len(names[count]))
    others = [
        f"{count} round{'s' * (count != 1)} for {' and '.join(names[count])}" for count in names if count != usual
    ]
    rest = " for the others" if others else ""
    return ", and ".join([*others, f"{usual} round{'s' * (usual != 1)}{rest}"])


def kernels_table(rows: Sequence[Result], precisions: Sequence[str]) -> str:
    """Format the speed of the CPU kernels next to torch's, from the same rounds."""
    return table(
        ["photograph", "without CPU kernels (s)", *(f"{one} speedup" for one in precisions), "fp32 masks", "equal"],
        (
            [
                row["name"],
                seconds(row["torch"]["seconds"]),
                *(ratio(row["ours"][one]["ratio_to_torch"], 2) for one in precisions),
                row["ours"]["fp32"]["masks"],
                row["ours"]["fp32"]["same_as_torch"],
            ]
            for row in rows
        ),
    )


def avx2_table(rows: Sequence[Result]) -> str:
    """Format the speed of the CPU kernels next to torch's, with both limited to AVX2."""
    return table(
        ["photograph", "AVX2 without CPU kernels (s)", "AVX2 (s)", "speedup", "masks", "equal"],
        (
            [
                row["name"],
                seconds(held["torch_seconds"]),
                seconds(held["seconds"]),
                ratio(held["ratio_to_torch"], 2),
                held["masks"],
                held["same_as_torch"],
            ]
            for row in rows
            if "avx2" in row
            for held in [row["avx2"]]
        ),
    )


def in_words(precision: str, rows: Sequence[Result]) -> str:
    """Describe one precision over all photographs in a sentence."""
    ours = [row["ours"][precision] for row in rows]
    ratios = [one["ratio"]["median"] for one in ours]
    images = "this photograph" if len(rows) == 1 else f"these photographs (median {statistics.median(ratios):.1f})"
    best, *_, loosest = thresholds(rows)
    total = sum(row["reference"]["masks"] for row in rows)
    found = {least: sum(one["matched"][least] for one in ours) for least in (best, loosest)}
    count = f"all {total} of the reference's" if found[best] == total else f"{found[best]} of the reference's {total}"
    rest = "" if found[best] == total else f" and {found[loosest]} at {loosest}"
    return (
        f"In {PRECISIONS[precision]}, segmint is {span(ratios)} times as fast as the reference on {images} and "
        f"matches {count} masks at an IoU of {best} or higher{rest}."
    )


def stages_part(results: dict[str, Result]) -> str:
    """Format the seconds of each stage with one thread."""
    result = results.get("stages")
    if result is None:
        return ""
    found = result["precisions"]
    names = [row["name"] for row in next(iter(found.values()))["stages"]]
    stages = table(
        ["stage", *(f"{one} {unit}" for one in found for unit in ("(s)", "share"))],
        [
            *(
                [name, *(cell for one in found.values() for cell in stage_cells(one["stages"][index]))]
                for index, name in enumerate(names)
            ),
            ["whole image", *(cell for one in found.values() for cell in (f"{one['seconds']:.2f}", ""))],
        ],
    )
    network = table(
        [
            "stage of the network",
            "precision",
            "computed in",
            "time (s)",
            "work (GFLOP)",
            "peak (GFLOP/s)",
            "share of peak",
        ],
        (
            [
                stage,
                one,
                row["computes_in"],
                f"{row['seconds']:.2f}",
                f"{row['gflop']:,.0f}",
                f"{row['peak_gflops']:,.0f}",
                percent(row["of_peak"]),
            ]
            for one, each in found.items()
            for stage, row in each["network"].items()
        ),
    )
    whole = table(
        ["whole image", "threads", "time (s)", "share of peak"],
        (
            [
                one,
                each["whole"]["threads"],
                seconds(each["whole"]["seconds"]["median"]),
                percent(each["whole"]["of_peak"]),
            ]
            for one, each in found.items()
        ),
    )
    photograph = result["settings"]["photograph"]
    note = (
        f"We processed {photograph['name']} ({photograph['width']} × {photograph['height']} pixels) with the "
        f"{result['settings']['profile']} profile, using {grid_of(result['settings'])}. The stages ran on one thread. "
        f"{where(result)}"
    )
    kernels = [kernel_stages_table(result["kernels"])] if "kernels" in result else []
    parts = [f"![{alternative_stages(result)}](images/stages.svg)", stages, network, whole, *kernels, wrapped(note)]
    return "\n\n".join(parts)


def kernel_stages_table(pairs: Result) -> str:
    """Format the seconds of the stages that have CPU kernels, with and without the kernels."""
    return table(
        ["stage", "limited to", "without CPU kernels (s)", "with (s)", "speedup", "masks", "equal"],
        (
            [
                stage,
                "AVX2" if name == "avx2" else "nothing",
                seconds(row["torch_seconds"]),
                seconds(row["seconds"]),
                ratio(row["ratio"], 2),
                pair["masks"],
                pair["equal"],
            ]
            for name, pair in pairs.items()
            for stage, row in pair["stages"].items()
        ),
    )


def stage_cells(row: Result) -> tuple[str, str]:
    """Format the seconds and the share of a stage."""
    return f"{row['seconds']:.3f}", percent(row["share"], 1)


@part_of("stages")
def scaling_part(result: Result) -> str:
    """Format the seconds by grid, by layers of crops, and by size."""
    found = result["precisions"]
    first = next(iter(found.values()))["scaling"]
    if not any(first.values()):
        return ""
    columns: dict[str, tuple[str, Callable[[Result], str]]] = {
        "points_per_side": ("grid", lambda row: f"{row['points_per_side']} × {row['points_per_side']} points"),
        "crop_n_layers": ("crop layers", lambda row: str(row["crop_n_layers"])),
        "long_side": ("image size (pixels)", lambda row: f"{row['width']} × {row['height']}"),
    }
    parts = [
        table(
            [head, "encodes", "prompts", *(f"{one} (s)" for one in found)],
            (
                [
                    label(row),
                    row["encodes"],
                    f"{row['prompts']:,}",
                    *(seconds(each["scaling"][over][index]["seconds"]["median"]) for each in found.values()),
                ]
                for index, row in enumerate(first[over])
            ),
        )
        for over, (head, label) in columns.items()
        if first[over]
    ]
    settings = result["settings"]
    note = (
        f"Unless a table says otherwise, these runs process {settings['photograph']['name']} with "
        f"{grid_of(settings)}. {where(result)}"
    )
    return "\n\n".join([*parts, wrapped(note)])


@part_of("pipeline_vs_loop")
def pipeline_part(result: Result) -> str:
    """Compare a build with a plain loop."""
    settings = result["settings"]
    rows = table(
        ["round", "loop (s)", "build (s)", "relative throughput", "threads per actor"],
        (
            [
                str(index),
                seconds(row["loop_s"]),
                seconds(row["build_s"]),
                f"{row['ratio']:.2f}",
                f"{row['build_threads']}",
            ]
            for index, row in enumerate(result["rounds"], start=1)
        ),
    )
    points = settings["masks"]["points_per_side"]
    note = f"Both sides process {settings['images']} images with a grid of {points} × {points} points. {where(result)}"
    return f"{rows}\n\n{wrapped(note)}"


@part_of("encoder_vs_reference")
def encoder_part(result: Result) -> str:
    """Format the results of the ViT encoders."""
    rows = table(
        [
            "encoder",
            "segmint (s)",
            "reference (s)",
            "segmint (CPU s)",
            "reference (CPU s)",
            "segmint (MiB)",
            "reference (MiB)",
        ],
        (
            [
                row["model"],
                *(seconds(row[side][key]["median"]) for key in ("wall_s", "cpu_s") for side in ("ours", "reference")),
                *(f"{row[side]['peak_mib']:,}" for side in ("ours", "reference")),
            ]
            for row in result["models"]
        ),
    )
    difference = max(row["largest_difference"] for row in result["models"])
    note = (
        f"Times are medians of {result['settings']['runs']} runs, and memory is the peak of a separate process. The "
        f"embeddings have a standard deviation of 1, and the two sides differ by at most {difference:.1e}. "
        f"{where(result)}"
    )
    return f"{rows}\n\n{wrapped(note)}"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Format a Markdown table. The first column is left-aligned, and the others are right-aligned."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def wrapped(text: str) -> str:
    """Wrap prose to lines of at most 120 characters."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def where(result: Result) -> str:
    """Describe the date and machine of a result."""
    machine = result["machine"]
    threads, cores = (
        f"{count} {name}{'s' * (count != 1)}"
        for count, name in ((machine["threads"], "thread"), (machine["cores_usable"], "CPU core"))
    )
    return (
        f"Measured on {result['date']} using {threads} on {cores} ({machine['cpu']}, "
        f"{machine['capability']}), with torch {machine['torch'].partition('+')[0]} and Python {machine['python']}. "
        f"The load average before the run was {machine['load_average_before']}."
    )


def grid_of(settings: Result) -> str:
    """Describe the grid and the crops in words."""
    points, layers = settings["points_per_side"], settings["crop_n_layers"]
    crops = {0: "no crops", 1: "one layer of crops"}.get(layers, f"{layers} layers of crops")
    return f"{points} × {points} points and {crops}"


def side_of(row: Result, side: str) -> Result:
    """Return the reference's part of a photograph's row, or our part in a precision."""
    found: Result = row["reference"] if side == "reference" else row["ours"][side]
    return found


def thresholds(rows: Sequence[Result]) -> list[str]:
    """Return the IoUs at which masks count as found, highest first."""
    return list(next(iter(rows[0]["ours"].values()))["matched"])


def seconds(value: float) -> str:
    """Format seconds with at least three digits, of which at most two are decimals."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def percent(share: float, digits: int = 0) -> str:
    """Format a share in percent."""
    return f"{100 * share:.{digits}f}%"


def ratio(found: Result, digits: int = 1) -> str:
    """Format a ratio with its spread. A single round has no spread."""
    spread = f" ({found['least']:.{digits}f}–{found['most']:.{digits}f})" if found["least"] < found["most"] else ""
    return f"**{found['median']:.{digits}f}**{spread}"


def span(values: Sequence[float]) -> str:
    """Format the minimum and the maximum, or only one of them if they look the same."""
    least, most = f"{min(values):.1f}", f"{max(values):.1f}"
    return least if least == most else f"{least} to {most}"


def alternative(results: dict[str, Result]) -> str:
    """Write the alternative text for the plot of whole images."""
    result = results["generator_vs_reference"]
    ratios = {
        one: span([row["ours"][one]["ratio"]["median"] for row in result["photographs"]])
        for one in result["settings"]["precisions"]
    }
    note = " and ".join(f"{times} times as fast in {PRECISIONS[one]}" for one, times in ratios.items())
    return f"Seconds per photograph for segmint and the reference package; segmint is {note}"


def alternative_stages(result: Result) -> str:
    """Write the alternative text for the plot of the stages."""
    note = []
    for precision, found in result["precisions"].items():
        shares = ", ".join(f"{name} {percent(value / found['seconds'])}" for name, value in grouped(found))
        note.append(f"in {PRECISIONS[precision]}, {shares}")
    return f"Share of the time per image by stage: {'; '.join(note)}"


def grouped(found: Result) -> list[tuple[str, float]]:
    """Sum up the seconds of each group of stages in the plot."""
    by_name = {row["name"]: row["seconds"] for row in found["stages"]}
    return [(name, sum(by_name[stage] for stage in stages)) for name, stages in GROUPS.items()]
