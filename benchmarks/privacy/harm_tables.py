"""Tables of docs/privacy.md about harm: faces and plates that stay visible, and false redactions."""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.privacy.tables import SIZES
from benchmarks.tables import Result, part_of, percent, table, where, wrapped
from segmint.operators.intervals import share_interval

LARGE = 0.01
"""Share of the image over which a false redaction counts as large."""
WELL, FULLY = 0.8, 0.95
"""Shares of a mark's pixels that a mosaic must replace for the mark to count as covered."""

_VIEWS = ("frontal", "profile", "occluded")
_KINDS = {"face": "faces", "plate": "plates"}
Row = dict[str, Any]


@part_of("harm")
def harm_part(result: Result) -> str:
    """Describe what stays visible and what is redacted without need, by set of photographs and change."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in result["rows"]:
        groups.setdefault((row["set"], row["change"]), []).append(row)
    complete = {key: rows for key, rows in groups.items() if rows[0]["false"] is not None}
    parts = []
    if complete:
        parts.append(_harm_table(complete))
        parts.append(_visible_table(complete))
    others = {key: rows for key, rows in groups.items() if key not in complete}
    if others:
        parts.append(_found_table(others))
    note = (
        "Marks under 20 pixels don't count. In the first table, a face or plate is visible if no detection shows it, "
        f"and a large false redaction covers over {percent(LARGE)} of its image. A mark is found if a detection's box "
        f"has an IoU of at least {result['iou']:g} with it. Coverage is the share of the mark's pixels that mosaics "
        "replace. Intervals are 95% intervals over photographs. "
        f"`deidentify.rule` was {result['rule']}. {where(result)}"
    )
    return "\n\n".join([*parts, wrapped(note)])


def _harm_table(groups: dict[tuple[str, str], list[Row]]) -> str:
    head = [
        "photographs",
        "number",
        "visible faces per 1,000",
        "visible plates per 1,000",
        "false redactions per 1,000",
        "images with a large one",
        "area of false ones",
        "CPU s per image",
    ]
    lines = []
    for (name, change), rows in groups.items():
        false = [each for row in rows for each in row["false"]]
        large = [any(each["share"] > LARGE for each in row["false"]) for row in rows]
        area = sum(each["share"] for each in false) / len(rows)
        seconds = sum(row["cpu_seconds"] for row in rows) / len(rows)
        lines.append(
            [
                f"{name}, {change}",
                str(len(rows)),
                _per_thousand(len(_visible(rows, "face")), len(rows)),
                _per_thousand(len(_visible(rows, "plate")), len(rows)),
                _per_thousand(len(false), len(rows)),
                _share(large, [1] * len(rows)),
                percent(area, 2),
                f"{seconds:.2f}",
            ]
        )
    return table(head, lines)


def _visible_table(groups: dict[tuple[str, str], list[Row]]) -> str:
    sizes = list(zip(SIZES, (*SIZES[1:], float("inf")), strict=True))
    labels = [f"{low} to {high - 1:g} px" if high < float("inf") else f"{low} px and more" for low, high in sizes]
    lines = []
    for (name, change), rows in groups.items():
        for kind, plural in _KINDS.items():
            marks = [mark for row in rows for mark in row["marks"] if mark["kind"] == kind]
            cells = []
            for low, high in sizes:
                sized = [mark for mark in marks if low <= mark["side"] < high]
                cells.append(f"{sum(mark['visible'] for mark in sized)} of {len(sized)}")
            for view in _VIEWS:
                seen = [mark for mark in marks if mark.get("view") == view]
                cells.append(f"{sum(mark['visible'] for mark in seen)} of {len(seen)}" if seen else "")
            lines.append([f"{name}, {change}: {plural}", *cells])
    return table(["visible, by size and view", *labels, *_VIEWS], lines)


def _found_table(groups: dict[tuple[str, str], list[Row]]) -> str:
    head = ["photographs", "number", "marks", "found", f"{WELL:.0%} covered", f"{FULLY:.0%} covered", "CPU s per image"]
    lines = []
    for (name, change), rows in groups.items():
        seconds = sum(row["cpu_seconds"] for row in rows) / len(rows)
        lines.append(
            [
                f"{name}, {change}",
                str(len(rows)),
                str(sum(len(row["marks"]) for row in rows)),
                _marks_share(rows, lambda mark: bool(mark["found"])),
                _marks_share(rows, lambda mark: mark["covered"] >= WELL),
                _marks_share(rows, lambda mark: mark["covered"] >= FULLY),
                f"{seconds:.2f}",
            ]
        )
    return table(head, lines)


def _visible(rows: Sequence[Row], kind: str) -> list[Row]:
    """Return the marks of a kind that stay visible in released images."""
    released = [row for row in rows if row["released"]]
    return [mark for row in released for mark in row["marks"] if mark["kind"] == kind and mark["visible"]]


def _marks_share(rows: Sequence[Row], holds: Callable[[Row], bool]) -> str:
    counts = [sum(map(holds, row["marks"])) for row in rows]
    return _share(counts, [len(row["marks"]) for row in rows])


def _share(found: Sequence[int], counts: Sequence[int]) -> str:
    """Format a share with its interval over photographs."""
    if not sum(counts):
        return "–"
    interval = share_interval(found, counts)
    between = "" if interval is None else f" ({percent(interval[0], 1)}–{percent(interval[1], 1)})"
    return f"{percent(sum(found) / sum(counts), 1)}{between}"


def _per_thousand(count: int, images: int) -> str:
    return f"{1000 * count / images:.0f} ({count})"
