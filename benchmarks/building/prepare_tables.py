"""Tables of docs/performance.md about `prepare`."""

from benchmarks.tables import Result, table, where, wrapped

_RECALL = ("labels", "found")


def prepare_part(results: dict[str, Result]) -> str:
    """Return the tables of the cost and recall of `prepare`."""
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
    found = table(
        ["photograph", "variants", "labels", "found"],
        (
            [name, len(rows), *(sum(row[key] for row in rows) for key in _RECALL)]
            for name in dict.fromkeys(row["photograph"] for row in result["recall"])
            for rows in [[row for row in result["recall"] if row["photograph"] == name]]
        ),
    )
    names = " and ".join(result["photographs"])
    note = f"All values are CPU seconds per image, as the median over the photographs {names}. {where(result)}"
    return "\n\n".join([costs, wrapped(note), *([found] if result["recall"] else [])])
