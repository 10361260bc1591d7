"""Part of docs/performance.md about `benchmarks/gpu/against_reference.py`, as Markdown from its result."""

from typing import Any

from benchmarks.gpu.tables import missing, number, where, without_numbers
from benchmarks.tables import Result, part_of, ratio, table, wrapped

AS_SHIPPED, TUNED, SEGMINT = "as shipped", "tuned", "segmint bf16"


@part_of("gpu_against_reference")
def reference_part(result: Result) -> str:
    """Format the sides: speed, ratios, agreement, and memory."""
    found = {name: one for name, one in result["measurements"].items() if not missing(one)}
    texts = [main_ratio(found), sides_table(found), conditions(result), without_numbers(result)]
    texts.append(where(result, "The comparison"))
    return "\n\n".join(text if text.startswith("|") else wrapped(text) for text in texts if text)


def main_ratio(found: dict[str, Result]) -> str:
    """Return the sentences about segmint and the package. Empty unless all of its figures were measured."""
    if not {AS_SHIPPED, TUNED, SEGMINT} <= found.keys():
        return ""
    segmint, tuned = found[SEGMINT], found[TUNED]
    matches = []
    for one in (segmint, tuned):
        matched = one["agreement"]["matched"]
        matches.append(f"{matched['0.99']} at an IoU of 0.99 or higher and {matched['0.9']} at 0.9")
    return (
        f"In bfloat16, segmint is {ratio(segmint[f'ratio to {AS_SHIPPED}'])} times as fast as the package as shipped "
        f"and {ratio(segmint[f'ratio to {TUNED}'])} times as fast as the tuned package. Of the "
        f"{segmint['agreement']['reference']} masks of the package as shipped, segmint matches {matches[0]}, and the "
        f"tuned package {matches[1]}."
    )


def sides_table(found: dict[str, Result]) -> str:
    """Return the table of all sides with numbers."""
    rows = []
    for name, one in found.items():
        agreement = one.get("agreement")
        matched: list[Any] = ["", "", "", ""]
        if agreement is not None:
            matched = [*agreement["matched"].values(), f"{agreement['least_iou']:.3f}"]
        ratios = []
        for other in (AS_SHIPPED, TUNED):
            compared = one.get(f"ratio to {other}")
            ratios.append("" if compared is None else ratio(compared))
        times = [number(one, key) for key in ("median_s", "least_s", "most_s")]
        rows.append([name, *times, number(one, "images_s"), *ratios, one["masks"], *matched, number(one, "peak_gib")])
    head = ["side", "median (s)", "minimum (s)", "maximum (s)", "images/s", "speed against as shipped"]
    head += ["speed against tuned", "masks", "matched at IoU ≥ 0.99", "at IoU ≥ 0.95", "at IoU ≥ 0.9", "lowest IoU"]
    return table([*head, "memory (GiB)"], rows)


def conditions(result: Result) -> str:
    """Describe the inputs that all sides share."""
    settings = result["settings"]
    points = settings["points_per_side"]
    sizes = {tuple(size) for size in settings["photographs"].values()}
    shown = ", ".join(f"{width} × {height}" for height, width in sorted(sizes))
    return (
        f"Each side processed {len(settings['photographs'])} photographs ({shown} pixels) in {settings['rounds']} "
        f"rounds, with {points} × {points} points. The encoder is {settings['encoder']} (weights: "
        f"{settings['weights']})."
    )
