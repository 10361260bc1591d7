"""Tables of docs/performance.md about `prepare`."""

from benchmarks.tables import Result, table, where, wrapped

_STAGES = (
    *("decode", "shrink", "faces", "plates", "confirm", "redact", "release", "look", "original"),
    *("total", "round"),
)


def prepare_part(results: dict[str, Result]) -> str:
    """Return the table of the cost of `prepare`."""
    result = results.get("prepare")
    if result is None:
        return ""
    runs = [(row["megapixels"], run) for row in result["stages"] for run in row["cpu_seconds"]]
    stages = [stage for stage in _STAGES if stage in runs[0][1]]
    costs = table(
        ["megapixels", "keeps original", *(stage.replace("_", " ") for stage in stages)],
        (
            [
                f"{size:g}",
                "yes" if run["with_original"] else "no",
                *(f"{_seconds(run, stage):.2f}" for stage in stages),
            ]
            for size, run in runs
        ),
    )
    names = " and ".join(result["photographs"])
    note = f"Each value is the median CPU time per image, in seconds, over the photographs {names}. {where(result)}"
    return f"{costs}\n\n{wrapped(note)}"


def _seconds(run: dict[str, float], stage: str) -> float:
    """Return a stage's seconds. `look` includes the detectors."""
    return sum(value for name, value in run.items() if name == stage or name.startswith(f"{stage} "))
