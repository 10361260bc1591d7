"""Tables of docs/annotate.md, docs/audit.md, docs/evaluate.md, docs/performance.md, and docs/report.md."""

from collections.abc import Callable, Sequence

from benchmarks.datasets.audit_scale import audit_row, statistics_row
from benchmarks.tables import Result, table, where, wrapped

_AUDITED = ("masks", "images", "seconds", "seconds per million masks", "MiB before", "peak MiB")


def clicks_part(results: dict[str, Result]) -> str:
    """Format the response times of clicks, on each CPU."""
    names = ("click_latency", "click_latency-avx2", "click_latency-avx2-apart")
    found = [results[name] for name in names if name in results]
    if not found:
        return ""
    rows = []
    for result in found:
        cpu, clicks = f"{result['machine']['cpu']}, {result['machine']['capability']}", result["first"]["clicks"]
        cpu += ", server and browser on one core each" if result.get("apart") else ""
        for name, times in (
            (f"from the request to the whole response, {clicks} clicks of each kind", result),
            ("from the pointer's event to the frame that shows the mask, the same number", result["in_browser"]),
        ):
            cells = [f"{times[kind]['median']:.0f} ({times[kind]['p95']:.0f})" for kind in ("first", "later")]
            rows.append([cpu, name, *cells])
    heads = ["CPU", "measured", "first click, three masks", "later clicks"]
    return "\n\n".join([table(heads, rows), *(wrapped(where(result)) for result in found)])


def audit_part(results: dict[str, Result]) -> str:
    """Format the time and memory of audits."""
    return _audited(results, (*_AUDITED, "peak MiB per worker"), audit_row)


def statistics_part(results: dict[str, Result]) -> str:
    """Format the time and memory of statistics."""
    return _audited(results, _AUDITED, statistics_row)


def intervals_part(results: dict[str, Result]) -> str:
    """Format the simulated coverage of 95% intervals: the lowest and the highest by number of images."""
    result = results.get("interval_coverage")
    if result is None:
        return ""
    known = {row["kind"].partition(",")[0] for row in result["rows"]}
    kinds = [(head, kind) for head, kind in (("means", "mean"), ("shares", "share"), ("AP", "AP")) if kind in known]
    rows, runs = [], {row["runs"] for row in result["rows"]}
    for images in sorted({row["images"] for row in result["rows"]}):
        cells = []
        for _, kind in kinds:
            cases = [row for row in result["rows"] if row["images"] == images and row["kind"].startswith(kind)]
            found = [row["coverage"] for row in cases]
            cells.append(f"{100 * min(found):.1f} to {100 * max(found):.1f} ({len(found)})" if found else "-")
        rows.append([images, *cells])
    note = (
        f"The table shows the percentage of simulated runs ({' or '.join(f'{each:,}' for each in sorted(runs))} per "
        "case) in which the interval contains the true value. Each cell contains the range over several cases with 1 "
        "to 100 masks per image, and the number of cases in parentheses. "
    )
    return "\n\n".join([table(["images", *(head for head, _ in kinds)], rows), wrapped(note + where(result))])


def precision_part(results: dict[str, Result]) -> str:
    """Format how many of the reference package's masks the decoder matches in bf16 and in fp16, by photograph."""
    result = results.get("decoder_precision")
    if result is None:
        return ""
    rows = []
    for row in result["photographs"]:
        cells = [row["name"], row["reference"]]
        for precision in ("bf16", "fp16"):
            found = row[precision]
            cells += [found["matched"]["0.99"], f"{found['least_iou']:.4f}", found["largest_logit"]]
        rows.append(cells)
    heads = ["photograph", "reference masks"]
    for precision in ("bf16", "fp16"):
        heads += [f"{precision}: matched at IoU ≥ 0.99", "lowest IoU", "largest logit"]
    return "\n\n".join([table(heads, rows), wrapped(where(result))])


def _audited(results: dict[str, Result], heads: Sequence[str], row: Callable[[Result], str]) -> str:
    result = results.get("audit_scale")
    if result is None:
        return ""
    lines = [*table(heads, []).splitlines(), *(row(run) for run in result["runs"])]
    return "\n".join(lines) + f"\n\n{wrapped(where(result))}"
