"""Tables of docs/performance.md about what the detectors find and miss."""

from collections.abc import Sequence

from benchmarks.privacy.pictures import ANGLES
from benchmarks.tables import Result, part_of, percent, table, where, wrapped
from segmint.operators.intervals import share_interval
from segmint.operators.prepare.deidentify import MeasuredRecall, Share

SIZES = (20, 32, 64, 128)
"""Lower limits, in pixels, of the sizes that recall is reported for."""

KINDS = {"mtcnn": "faces", "clp": "license plates"}
"""Kinds of marks by detector."""

_HEAD = [
    "pictures",
    "pictures with marks",
    "marks",
    "found",
    "recall (95% interval)",
    "false alarms",
    "pictures with false alarms",
]


@part_of("privacy")
def privacy_part(result: Result) -> str:
    """Describe what each detector finds: by angle, by kind of composite, and by size."""
    parts = [f"![{alternative_recall(result)}](images/recall.svg)"]
    for name in detectors(result):
        rows = [row for row in result["rows"] if row["detector"] == name]
        cells = [
            [_label(change), *_cells([row for row in rows if row["change"] == change])] for change in _changes(rows)
        ]
        parts.append(table([name, *_HEAD], cells))
        parts.append(table([f"{name}, by size of the mark", "marks", "found", "recall"], _by_size(rows)))
    note = (
        f"A mark counts as found if a detection's box overlaps its box with an IoU of at least {result['iou']:g}. "
        f"Marks that we labeled as hard and marks under {result['smallest']:g} pixels don't count. Intervals are "
        f"computed over pictures with marks, if there are at least 10. `deidentify.rule` was {result['rule']}. "
        f"{where(result)}"
    )
    return "\n\n".join([*parts, wrapped(note)])


def recall_by_change(result: Result, detector: str) -> list[tuple[str, Share]]:
    """Count the marks that a detector found among all marks, by angle and kind of composite, where there are any."""
    rows = [row for row in result["rows"] if row["detector"] == detector]
    shares = {change: _share([row for row in rows if row["change"] == change]) for change in _changes(rows)}
    return [(_label(change), share) for change, share in shares.items() if share[1]]


def alternative_recall(result: Result) -> str:
    """Write the alternative text of the plot."""
    upright = {name: measured(result, name, KINDS[name]).upright for name in detectors(result)}
    parts = [f"{name} found {found} of {marks} {KINDS[name]} upright" for name, (found, marks) in upright.items()]
    return f"Recall by angle and kind of composite; {', and '.join(parts)}"


def measured(result: Result, detector: str, kind: str) -> MeasuredRecall:
    """Return a detector's recall in the form in which the product states it."""
    rows = [row for row in result["rows"] if row["detector"] == detector]
    angles = list(map(str, ANGLES))

    def share(changes: Sequence[str]) -> Share:
        return _share([row for row in rows if row["change"] in changes])

    made = [row["change"] for row in rows if row["change"] not in angles]
    return MeasuredRecall(kind, share(["0"]), share(["90", "180", "270"]), share(made))


def sources(result: Result) -> int:
    """Count the photographs that were measured upright."""
    return len({row["picture"] for row in result["rows"] if row["change"] == "0"})


def detectors(result: Result) -> list[str]:
    """Return the names of the measured detectors, in the order of the result."""
    return list(dict.fromkeys(row["detector"] for row in result["rows"]))


def _changes(rows: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(row["change"] for row in rows))


def _share(rows: Sequence[Result]) -> Share:
    found, missed = (sum(len(row[key]) for row in rows) for key in ("found", "missed"))
    return found, found + missed


def _cells(rows: Sequence[Result]) -> list[str]:
    found, marks = _share(rows)
    marked = sum(bool(row["found"] or row["missed"]) for row in rows)
    recall = "–"
    if marked:
        of_picture = [(len(row["found"]), len(row["found"]) + len(row["missed"])) for row in rows]
        interval = share_interval(*zip(*of_picture, strict=True))
        between = "" if interval is None else f" ({percent(interval[0])}–{percent(interval[1])})"
        recall = f"{percent(found / marks)}{between}"
    alarms = [row["false"] for row in rows]
    return [str(each) for each in (len(rows), marked, marks, found, recall, sum(alarms), sum(map(bool, alarms)))]


def _by_size(rows: Sequence[Result]) -> list[list[str]]:
    cells = []
    for low, high in zip(SIZES, (*SIZES[1:], None), strict=True):
        found, missed = (
            sum(side >= low and (high is None or side < high) for row in rows for side in row[key])
            for key in ("found", "missed")
        )
        label = f"{low} px and more" if high is None else f"{low} to {high - 1} px"
        share = percent(found / (found + missed)) if found + missed else "–"
        cells.append([label, str(found + missed), str(found), share])
    return cells


def _label(change: str) -> str:
    return f"photographs at {change}°" if change.isdigit() else f"composites: {change}"
