"""Table of docs/clusters.md about the cost of a build's driver."""

from benchmarks.tables import Result, part_of, table, where, wrapped


@part_of("driver")
def driver_part(result: Result) -> str:
    """Return the table of the driver's CPU time and memory, next to those of a plain pipeline of Ray Data."""
    plain = {_place(run): run for run in result.get("plain", ())}
    runs = sorted(result["driver"], key=_place)
    costs = table(
        [
            "segment actors",
            *("wanted blocks/s", "blocks/s", "minutes"),
            *("driver's CPU ms per block", "without segmint", "driver's share of a core"),
            *("driver RSS (MiB): start, end, peak", "segment actor (MiB)", "load before"),
        ],
        (
            [
                run["actors"],
                f"{run['wanted_blocks_per_s']:g}",
                f"{run['blocks_per_s']:.1f}",
                f"{run['minutes']:g}",
                f"{run['driver_cpu_ms_per_block']:.1f}",
                _without(plain.get(_place(run))),
                f"{run['driver_cpu_share']:.0%}",
                ", ".join(f"{run['driver_rss_mib'][at]:,.0f}" for at in ("start", "end", "most")),
                f"{run['most_mib']['segment actor']:.0f}",
                f"{run['load_before']:.0f}",
            ]
            for run in runs
        ),
    )
    return f"{costs}\n\n{wrapped(where(result))}"


def _place(run: Result) -> tuple[int, float]:
    return run["actors"], run["wanted_blocks_per_s"]


def _without(run: Result | None) -> str:
    if run is None:
        return "-"
    return f"{run['driver_cpu_ms_per_block']:.1f} at {run['blocks_per_s']:.1f} blocks/s"
