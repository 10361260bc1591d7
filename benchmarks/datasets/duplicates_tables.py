"""Part of docs/performance.md about near-duplicates among images, as Markdown from the recorded result."""

from benchmarks.tables import Result, percent, seconds, table, where, wrapped


def duplicates_part(results: dict[str, Result]) -> str:
    """Return the recall by change to an image, and the cost."""
    result = results.get("duplicates")
    if result is None:
        return ""
    settings, groups, rows = result["settings"], result["groups"], result["rows"]
    names = list(groups)
    recall = table(
        ["copies that are", *(f"found, {name}" for name in names)],
        (
            [change, *(percent(groups[name]["changes"][change]["found"], 1) for name in names)]
            for change in groups[names[0]]["changes"]
        ),
    )
    different = table(
        ["photographs", "how many", "pictures", "pairs of different ones", "with near hashes", "taken for copies"],
        (
            [
                name,
                len(group["photographs"]),
                group["pictures"],
                f"{group['different']['pairs']:,}",
                group["different"]["near"],
                group["different"]["copies"],
            ]
            for name, group in groups.items()
        ),
    )
    cost = table(
        ["rows", "hashes", "copies", "s", "most MiB", "load before"],
        (
            [
                f"{each['rows']:,}",
                hashes,
                f"{copies:,}",
                seconds(each["seconds"]),
                f"{each['peak_mib']:,}",
                each["load_before"],
            ]
            for each, hashes, copies in (
                (rows, "of different pictures", rows["found"] + rows["others"]),
                (result["crowds"]["copies"], "near-equal, one picture", result["crowds"]["copies"]["copies"]),
                (
                    result["crowds"]["different"],
                    "near-equal, different pictures",
                    result["crowds"]["different"]["copies"],
                ),
                (
                    result["crowds"]["frames"],
                    "that vary in 16 bits, 100 pictures",
                    result["crowds"]["frames"]["copies"],
                ),
            )
        ),
    )
    exact, planted = result["all_with_all"], rows["planted"]
    agreement = (
        f"Among {exact['hashes']:,} hashes the {exact['pairs']:,} pairs at most {settings['distance']} bits apart are "
        f"{'those' if exact['agree'] else 'not those'} that comparing all with all finds: in {exact['seconds']:.2f} s, "
        f"where that takes {seconds(exact['seconds_all_with_all'])}."
    )
    scale = (
        f"Of {rows['rows']:,} rows with {rows['hashes']:,} hashes, {planted['near']:,} look like another and "
        f"{planted['same']:,} have its bytes: {rows['found']:,} were found with the row that they were made of, and "
        f"{rows['others']:,} other pairs. {rows['input_mib']:,} MiB of the memory are the rows themselves and what "
        "made them."
    )
    chosen = result["set_by_first_half"]
    second, shipped = chosen["second_half"], groups["second half"]
    changed = sum(each["copies"] for each in shipped["changes"].values())
    thresholds = (
        f"The first half sets {chosen['whole']:.2f} as the threshold of the whole and {chosen['middle']:.2f} of the "
        f"middle: with them {second['found']:,} of {changed:,} changed pictures of the second half are found and "
        f"{second['copies']} taken for copies of another. The finder's are {settings['correlation']:.2f} and "
        f"{settings['correlation_middle']:.2f}, as in the tables: {shipped['found']:,} and "
        f"{shipped['different']['copies']}."
    )
    notes = (agreement, scale, where(result))
    return "\n\n".join([recall, different, wrapped(thresholds), cost, *(wrapped(each) for each in notes)])
