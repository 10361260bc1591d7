"""Tables of docs/performance.md about `prepare`."""

from benchmarks.tables import Result, table, where, wrapped


def prepare_part(results: dict[str, Result]) -> str:
    """Return the table of the cost of `prepare`."""
    result = results.get("prepare")
    if result is None:
        return ""
    stages = ("decode", "shrink", "faces", "plates", "redact", "release", "original", "total")
    runs = [(row["megapixels"], run) for row in result["stages"] for run in row["cpu_seconds"]]
    costs = table(
        ["megapixels", "keeps original", *stages],
        (
            [
                f"{size:g}",
                "yes" if run["with_original"] else "no",
                *(f"{run[stage]:.2f}" for stage in stages),
            ]
            for size, run in runs
        ),
    )
    names = " and ".join(result["photographs"])
    note = f"All values are CPU seconds per image, as the median over the photographs {names}. {where(result)}"
    return f"{costs}\n\n{wrapped(note)}"
