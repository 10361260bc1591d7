"""Parts of pages about rows, commits, catalogs, actors, and the driver, as Markdown from recorded results."""

from benchmarks.tables import Result, part_of, table, where, wrapped

FORMATS = {".parquet": "Parquet", ".jsonl": "JSON Lines", ".csv": "CSV"}
WORK = {
    "alone": "nothing",
    "beside finishing, with Python's interval": "finishing, with Python's default switch interval",
    "beside finishing, with the actor's interval": "finishing, with the actor's switch interval",
}
"""Labels of the conditions under which short operations are timed."""


@part_of("scale")
def scale_part(result: Result) -> str:
    """Describe the cost of a row apart from its image, and the memory growth of each kind of process."""
    build = result["build"]
    note = (
        f"The build turned {build['rows']:,} rows into {build['shards']:,} shards with {build['masks']:,} masks in "
        f"{build['seconds'] / 60:,.0f} minutes, which is {build['rows_per_s']:,.0f} rows/s. Each row took "
        f"{build['ms_a_row']:.2f} ms of wall time and {build['cpu_ms_a_row']:.2f} ms of CPU time, summed over all "
        "processes."
    )
    rows = table(
        [
            "process",
            "count",
            "CPU ms per row",
            "private memory, first half (MiB)",
            "private memory, second half (MiB)",
            "RSS, first half (MiB)",
            "RSS, second half (MiB)",
            "largest growth (MiB)",
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


@part_of("catalog_streams")
def streams_part(result: Result) -> str:
    """Describe the speed of streaming catalogs."""
    rows = table(
        [
            "format",
            "size (GB)",
            "time (s)",
            "rows/s",
            "rows per CPU second",
            "peak memory, first half (MiB)",
            "peak memory, second half (MiB)",
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
    *columns, last = settings["columns"]
    note = (
        f"Each catalog has {settings['rows']:,} rows with the columns {', '.join(columns)}, and {last}. {where(result)}"
    )
    return f"{rows}\n\n{wrapped(note)}"


@part_of("resume")
def resume_part(result: Result) -> str:
    """Describe the time to resume a dataset with many commits."""
    rows = table(
        ["build", "missing shards found (s)", "first commit (s)", "end of the build (s)"],
        (
            [name, *(f"{each[key]:.1f}" for key in ("opened_s", "first_commit_s", "seconds"))]
            for name, each in result["builds"].items()
        ),
    )
    note = f"The dataset has {result['settings']['commits']:,} commits, and one shard is missing. {where(result)}"
    return f"{rows}\n\n{wrapped(note)}"


@part_of("windows")
def windows_part(result: Result) -> str:
    """Describe the cost of restarting the actors, and the driver's cost per block."""
    restarts = table(
        ["actor startup (s)", "pause between two windows (s)", "time lost with one-hour windows"],
        (
            [f"{each['start_s']:g}", f"{each['pause_s']:.1f}", f"{100 * each['loss_at_an_hour']:.1f}%"]
            for each in result.get("restarts", ())
        ),
    )
    driver = table(
        [
            "rows per block",
            "segment actors",
            "blocks/s",
            "driver, CPU ms per block",
            "driver and ledger, CPU ms per row",
            "load average before",
        ],
        (
            [
                each["rows_per_block"],
                each["segment_actors"],
                each["blocks_per_s"],
                f"{each['driver_cpu_ms_per_block']:.1f}",
                f"{each['driver_cpu_ms_per_row'] + each['ledger_cpu_ms_per_row']:.2f}",
                each["load_before"],
            ]
            for each in result.get("driver", ())
        ),
    )
    notes = [
        f"One execution processed {each['blocks']:,} blocks of one row in {each['seconds'] / 60:.0f} minutes "
        f"({each['blocks_per_s']:.1f} blocks/s). The driver used {each['driver_cpu_ms_per_block']:.1f} ms of CPU time "
        f"per block. Its memory grew by {each['driver_growth_mib']:.0f} MiB to {each['driver_most_mib']:,.0f} MiB, at "
        f"{each['driver_growth_kib_per_block']:.1f} KiB per block."
        for each in result.get("long", ())
    ]
    about = (
        "Stubs replace the two stages that process pixels, so the figures don't include the time to start a model on "
        f"a GPU. Each window started each actor once. {where(result)}"
    )
    return "\n\n".join([restarts, driver, *(wrapped(each) for each in (*notes, about))])


@part_of("writers")
def writers_part(result: Result) -> str:
    """Describe the rows per second by number of shard writers."""
    rows = table(
        ["writers", "rows/s", "rows/s between the first and last commit", "load average before"],
        (
            [each["writers"], each["rows_per_s"], each["rows_per_s_between_commits"], each["load_before"]]
            for each in result["runs"]
        ),
    )
    first = result["runs"][0]
    about = (
        f"Each build writes {first['rows']:,} rows in shards of {first['images_per_shard']} to an S3 server on the "
        f"same machine. Each row has a JPEG of {first['image_bytes'] / 1000:.0f} kB and {first['masks_per_image']} "
        f"masks. Ray's object store has {first['object_store_memory'] / 1e6:.0f} MB. {where(result)}"
    )
    return f"{rows}\n\n{wrapped(about)}"


@part_of("segment_overlap")
def overlap_part(result: Result) -> str:
    """Describe how long a segment actor's device waits for the host."""
    cases = table(
        ["decoders", "finishers", "rows per block", "concurrent calls", "device idle"],
        (
            [*(str(each[key]) for key in ("decoders", "finishers", "rows_per_block", "calls")), _percent(each)]
            for each in result["cases"]
        ),
    )
    settings, seconds = result["settings"], result["launches_s"]
    note = (
        "Finishing also competes with the GPU's thread for Python's global interpreter lock. The next table shows the "
        f"time for {settings['launches']:,} short operations, which release the lock as kernel launches do:"
    )
    rows = table(
        ["other work in the process", "median (ms)", "minimum (ms)", "maximum (ms)"],
        (
            [WORK[name], *(f"{1000 * each[key]:.1f}" for key in ("median", "least", "most"))]
            for name, each in seconds.items()
        ),
    )
    images = f"Each row of the first table shows a run with {settings['images']:,} images. {where(result)}"
    return "\n\n".join([cases, wrapped(note), rows, wrapped(images)])


def _percent(case: dict[str, float]) -> str:
    return f"{100 * case['idle_share']:.1f}%"


def alternative_scale(result: Result) -> str:
    """Write the alternative text for the plot of memory over rows."""
    grown = max(result["roles"], key=lambda each: each["rise_mib"]["own"])
    return (
        f"Private memory of each kind of process during a build of {result['build']['rows']:,} rows. No process grew "
        f"by more than {grown['rise_mib']['own']:.1f} MiB ({grown['role']}) in the second half of its life."
    )


def long_part(results: dict[str, Result]) -> str:
    """Describe the builds that were killed and continued."""
    found = [results[name] for name in ("long_build", "long_build-photographs") if name in results]
    return "\n\n".join(_long_build(result) for result in found)


def _long_build(result: Result) -> str:
    settings, build, rows, audit = (result[key] for key in ("settings", "build", "rows", "audit"))
    pieces = [(piece, next(each for each in piece["roles"] if each["role"] == "driver")) for piece in build["pieces"]]
    costs = table(
        [
            *("end of the run", "minutes", "shards"),
            *("driver, CPU ms per row", "driver, private memory, first half (MiB)", "second half (MiB)"),
            "load average before",
        ],
        (
            [
                piece["end"],
                f"{piece['seconds'] / 60:.1f}",
                f"{piece['shards']:,}",
                f"{driver['cpu_ms_a_row']:.2f}",
                *(f"{size:,.0f}" for size in driver["most_mib"]["own"]),
                piece["load_before"],
            ]
            for piece, driver in pieces
        ),
    )
    what = (
        "small JPEGs, which the real prepare stage read from an S3 server, where the dataset was too. The JPEGs are "
        "different crops of a few photographs, so many of them are near-duplicates"
        if settings["photographs"]
        else "rows with stubs in place of both stages that process pixels"
    )
    grown = max(driver["rise_mib"]["own"] for _, driver in pieces)
    less = "--privacy-sample 0" if settings["photographs"] else "--integrity-only"
    found = "had no findings"
    if audit["exit_code"] != 0:
        codes = ", ".join(f"{number:,} of `{code}`" for code, number in audit["findings"].items())
        found = f"ended with exit code {audit['exit_code']}, with these findings: {codes or 'none'}"
    note = (
        f"This build had {settings['rows']:,} {what}. It took {build['seconds'] / 60:,.0f} minutes in all, "
        f"{build['rows_per_s']:,.0f} rows/s, and its driver was killed {build['kills']} times. In the second half of a "
        f"run, the driver's private memory grew by up to {grown:.0f} MiB. Afterward, "
        f"{rows['images']:,} images and {rows['rejects']:,} rejects were in the dataset: each row of the catalog once. "
        f"`segmint audit --sample {audit['sample']} {less}` {found}, in {audit['seconds'] / 60:.1f} minutes. "
        f"{where(result)}"
    )
    return f"{wrapped(note)}\n\n{costs}"


@part_of("driver")
def driver_part(result: Result) -> str:
    """Return the table of the driver's CPU time and memory, next to those of a plain pipeline of Ray Data."""
    plain = {_driver_settings(run): run for run in result.get("plain", ())}
    runs = sorted(result["driver"], key=_driver_settings)
    costs = table(
        [
            "segment actors",
            *("rows per block", "wanted blocks/s", "blocks/s", "minutes"),
            *("driver's CPU ms per block", "without segmint", "driver's share of a core"),
            *("driver RSS (MiB): start, end, peak", "segment actor (MiB)", "load before"),
        ],
        (
            [
                run["actors"],
                run["rows_per_block"],
                f"{run['wanted_blocks_per_s']:g}",
                f"{run['blocks_per_s']:.1f}",
                f"{run['minutes']:g}",
                f"{run['driver_cpu_ms_per_block']:.1f}",
                _without_segmint(plain.get(_driver_settings(run))),
                f"{run['driver_cpu_share']:.0%}",
                ", ".join(f"{run['driver_rss_mib'][at]:,.0f}" for at in ("start", "end", "most")),
                f"{run['most_mib']['segment actor']:.0f}",
                f"{run['load_before']:.0f}",
            ]
            for run in runs
        ),
    )
    return f"{costs}\n\n{wrapped(where(result))}"


def _driver_settings(run: Result) -> tuple[int, int, float]:
    return run["rows_per_block"], run["actors"], run["wanted_blocks_per_s"]


def _without_segmint(run: Result | None) -> str:
    if run is None:
        return "-"
    return f"{run['driver_cpu_ms_per_block']:.1f} at {run['blocks_per_s']:.1f} blocks/s"
