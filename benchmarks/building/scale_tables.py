"""Parts of docs/performance.md about rows, commits, catalogs, and actors, as Markdown from recorded results."""

from benchmarks.tables import Result, table, where, wrapped

FORMATS = {".parquet": "Parquet", ".jsonl": "JSON Lines", ".csv": "CSV"}


def scale_part(results: dict[str, Result]) -> str:
    """Return the cost of a row apart from its image, and the growth of each kind of process."""
    result = results.get("scale")
    if result is None:
        return ""
    build = result["build"]
    note = (
        f"{build['rows']:,} rows became {build['shards']:,} shards with {build['masks']:,} masks in "
        f"{build['seconds'] / 60:,.0f} minutes: {build['rows_per_s']:,.0f} rows/s, {build['ms_a_row']:.2f} ms a row, "
        f"of CPU {build['cpu_ms_a_row']:.2f} ms, all processes together."
    )
    rows = table(
        [
            "process",
            "how many",
            "CPU ms a row",
            "own, first half, MiB",
            "own, second half, MiB",
            "RSS, first half, MiB",
            "RSS, second half, MiB",
            "rise of one, MiB",
        ],
        (
            [
                each["role"],
                f"{each['processes']:,}",
                f"{each['cpu_ms_a_row']:.3f}",
                *(f"{size:,.0f}" for size in each["most_mib"]["own"]),
                *(f"{size:,.0f}" for size in each["most_mib"]["rss"]),
                f"{each['rise_mib']['own']:.1f}",
            ]
            for each in result["roles"]
        ),
    )
    picture = f"![{alternative_scale(result)}](images/scale.svg)"
    return "\n\n".join([picture, wrapped(note), rows, wrapped(where(result))])


def streams_part(results: dict[str, Result]) -> str:
    """Return the speed of streaming catalogs."""
    result = results.get("catalog_streams")
    if result is None:
        return ""
    rows = table(
        [
            "format",
            "size, GB",
            "s",
            "rows/s",
            "rows a CPU second",
            "most in the first half, MiB",
            "most in the second half, MiB",
        ],
        (
            [
                FORMATS[each["ending"]],
                f"{each['bytes'] / 1e9:.1f}",
                f"{each['seconds']:.0f}",
                f"{each['rows_per_s']:,}",
                f"{each['rows_per_cpu_s']:,}",
                *(f"{size:,.0f}" for size in each["most_mib"].values()),
            ]
            for each in result["formats"]
        ),
    )
    settings = result["settings"]
    note = f"{settings['rows']:,} rows each, with the columns {', '.join(settings['columns'])}. {where(result)}"
    return f"{rows}\n\n{wrapped(note)}"


def resume_part(results: dict[str, Result]) -> str:
    """Return the time to resume a dataset with many commits."""
    result = results.get("resume")
    if result is None:
        return ""
    rows = table(
        ["build", "until it knows what is missing, s", "until its first commit, s", "until its end, s"],
        (
            [name, *(f"{each[key]:.1f}" for key in ("opened_s", "first_commit_s", "seconds"))]
            for name, each in result["builds"].items()
        ),
    )
    note = f"{result['settings']['commits']:,} commits, one shard left to build. {where(result)}"
    return f"{rows}\n\n{wrapped(note)}"


def overlap_part(results: dict[str, Result]) -> str:
    """Return how long the device of a segment actor waits for the host."""
    result = results.get("segment_overlap")
    if result is None:
        return ""
    cases = table(
        ["decoders", "finishers", "rows in a block", "calls at once", "device idle"],
        (
            [*(str(each[key]) for key in ("decoders", "finishers", "rows_per_block", "calls")), _percent(each)]
            for each in result["cases"]
        ),
    )
    settings, seconds = result["settings"], result["launches_s"]
    note = (
        "Finishing also competes with the device's thread for Python's lock. "
        f"{settings['launches']:,} short operations, each of which lets the lock go as the launch of a kernel does:"
    )
    rows = table(
        ["operations", "median, ms", "least, ms", "most, ms"],
        ([name, *(f"{1000 * each[key]:.1f}" for key in ("median", "least", "most"))] for name, each in seconds.items()),
    )
    images = f"{settings['images']:,} images. {where(result)}"
    return "\n\n".join([cases, wrapped(note), rows, wrapped(images)])


def _percent(case: dict[str, float]) -> str:
    return f"{100 * case['idle_share']:.1f} %"


def alternative_scale(result: Result) -> str:
    """Return the alternative text of the plot of memory over rows."""
    grown = max(result["roles"], key=lambda each: each["rise_mib"]["own"])
    return (
        f"Memory of each kind of process while {result['build']['rows']:,} rows go through a build: over "
        f"the second half of its life none grew by more than {grown['rise_mib']['own']:.1f} MiB ({grown['role']})"
    )
