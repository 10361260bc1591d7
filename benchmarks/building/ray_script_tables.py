"""Table of docs/ray.md: the plain script and segmint's steps on the same photographs."""

from benchmarks.tables import Result, part_of, table, where, wrapped


@part_of("ray_script")
def ray_script_part(result: Result) -> str:
    """Format what each side did with the photographs, and what it cost."""
    settings = result["settings"]
    rows = []
    for side in result["sides"]:
        rows.append(
            [
                f"`{side['side']}`",
                side["done"],
                side["lost"],
                side["twice"],
                "yes" if side["named"] else "no",
                sum(side["deaths"]),
                "by itself" if side["ended_by_itself"] else "killed",
                f"{side['minutes']:.1f}",
                f"{side['cpu_s']:,.0f}",
            ]
        )
    heads = ["side", "done", "without a row", "twice", "named", "deaths", "ended", "minutes", "CPU seconds"]
    width, height = settings["panorama"]
    note = (
        f"Each side had {settings['images']} photographs, of which one is a panorama of {width:,} × {height:,} pixels. "
        f"Each process had {settings['limit_mib'] / 1024:.1f} GiB of memory. Like the kernel in a container, the "
        "benchmark killed processes that needed more, and the panorama always does. After a third of the photographs, "
        "`kill -9` ended the run, and the same command was repeated. A run was ended once "
        f"{settings['most_deaths']} processes in a row had exceeded the limit without a new photograph. *Named* means "
        "that the panorama's name is in the output or the log. All sides used MobileSAM in one thread on "
        f"{settings['points_per_side']} × {settings['points_per_side']} points; only the build also redacts faces and "
        f"plates. {where(result)}"
    )
    return "\n\n".join([table(heads, rows), wrapped(note)])
