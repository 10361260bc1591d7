"""Part of docs/performance.md about near-duplicates among images, as Markdown from the recorded result."""

from benchmarks.tables import Result, percent, seconds, table, where, wrapped

LABELS = {
    "encoded again at quality 40": "re-encoded at quality 40",
    "resized to 0.5": "scaled by 0.5",
    "resized to 0.25": "scaled by 0.25",
    "cropped by 2% at the bottom": "cropped by 2% on the bottom",
    "brightened by 1.3": "brightness multiplied by 1.3",
    "brightened by 1.6": "brightness multiplied by 1.6",
    "darkened to 0.6": "brightness multiplied by 0.6",
    "caption over the lower 10%": "captioned over the bottom 10%",
    "caption of 10% added below": "captioned below the image (10% of its height)",
}
"""Labels of changes, by the names of the changes in the result."""


def duplicates_part(results: dict[str, Result]) -> str:
    """Describe the recall for each change to an image, and the cost."""
    result = results.get("duplicates")
    if result is None:
        return ""
    settings, groups, rows = result["settings"], result["groups"], result["rows"]
    names = list(groups)
    recall = table(
        ["change", *(f"found in the {name}" for name in names)],
        (
            [LABELS.get(change, change), *(percent(groups[name]["changes"][change]["found"], 1) for name in names)]
            for change in groups[names[0]]["changes"]
        ),
    )
    different = table(
        ["photographs", "count", "images", "pairs of different images", "similar hashes", "false matches"],
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
        ["rows", "hashes", "duplicates found", "time (s)", "peak memory (MiB)", "load average before"],
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
                (rows, "random, with planted duplicates", rows["found"] + rows["others"]),
                (result["crowds"]["copies"], "nearly equal, all of one image", result["crowds"]["copies"]["copies"]),
                (
                    result["crowds"]["different"],
                    "nearly equal, each of a different image",
                    result["crowds"]["different"]["copies"],
                ),
                (
                    result["crowds"]["frames"],
                    "varying in 16 bits, frames of 100 images",
                    result["crowds"]["frames"]["copies"],
                ),
            )
        ),
    )
    exact, planted = result["all_with_all"], rows["planted"]
    agreement = (
        f"Among {exact['hashes']:,} hashes, a brute-force comparison finds {exact['pairs']:,} pairs that differ in at "
        f"most {settings['distance']} bits. The search {'finds' if exact['agree'] else 'does not find'} the same pairs "
        f"in {exact['seconds']:.2f} s instead of {seconds(exact['seconds_all_with_all'])} s."
    )
    scale = (
        f"The {rows['rows']:,} rows with {rows['hashes']:,} hashes include {planted['near']:,} near-duplicates and "
        f"{planted['same']:,} exact duplicates of other rows. The search matched {rows['found']:,} of these "
        f"duplicates with their original rows and reported {rows['others']:,} other matches. Their peak is the "
        f"process's private memory, of which the rows took {rows['input_mib']:,} MiB before the search. With the pages "
        "of temporary files, which the kernel may drop, the peak was "
        f"{rows['resident_peak_mib']:,.0f} MiB. The other peaks include such pages."
    )
    chosen = result["set_by_first_half"]
    second, shipped = chosen["second_half"], groups["second half"]
    changed = sum(each["copies"] for each in shipped["changes"].values())
    thresholds = (
        f"On the first half, the best correlation thresholds are {chosen['whole']:.2f} for the whole image and "
        f"{chosen['middle']:.2f} for its middle. With these, the search finds {second['found']:,} of the {changed:,} "
        f"changed images in the second half and reports {second['copies']} false matches. With segmint's "
        f"thresholds of {settings['correlation']:.2f} and {settings['correlation_middle']:.2f}, which the tables use, "
        f"it finds {shipped['found']:,} and reports {shipped['different']['copies']}."
    )
    notes = (agreement, scale, where(result))
    parts = [recall, different, wrapped(thresholds), cost, *(wrapped(each) for each in notes)]
    parts += memory_parts(results.get("duplicates_memory"))
    return "\n\n".join([*parts, *near_copies_parts(results.get("near_copies"))])


def memory_parts(result: Result | None) -> list[str]:
    """Describe the search's memory by number of rows, and what it implies for 100 million rows."""
    if result is None:
        return []
    sizes = sorted(result["sizes"], key=lambda each: int(each["rows"]))
    rows = table(
        ["rows", "time (s)", "private memory before (MiB)", "peak private memory (MiB)", "load average before"],
        (
            [f"{each['rows']:,}", each["seconds"], each["input_mib"], f"{each['peak_mib']:,}", each["load_before"]]
            for each in sizes
        ),
    )
    notes = [where(result)]
    if len(sizes) > 1:
        one, other = sizes[-2:]
        slope = (other["peak_mib"] - one["peak_mib"]) / (other["rows"] - one["rows"])
        most = (other["peak_mib"] + slope * (100_000_000 - other["rows"])) / 1024
        notes.insert(0, f"A straight line through the last two gives {most:.1f} GiB at 100,000,000 rows.")
    return [rows, wrapped(" ".join(notes))]


def near_copies_parts(result: Result | None) -> list[str]:
    """Describe the recall and the false matches of near copies of removed images, if they were measured."""
    if result is None:
        return []
    bits, names = result["settings"]["bits"], result["settings"]["photographs"]
    about = (
        "**Copies of removed pictures.** segmint finds these without thumbnails. It compares the hash of one image's "
        f"full frame with all nine hashes of the other image, and up to {bits} bits may differ. The first table shows "
        f"how many changed copies of {result['pictures']:,} pictures are listed. The pictures are {len(names)} "
        "photographs and tiles of them. In the second table, the bursts, forms, skies, gradients, and frames look "
        "alike by design. Your catalogs are different, so don't expect the same rates."
    )
    recall = table(["change", "listed"], ([name, percent(share, 1)] for name, share in result["recall"].items()))
    different = table(
        ["different pictures", "pictures", "pairs", "listed by mistake", "without a hash"],
        (
            [name, each["pictures"], f"{each['pairs']:,}", f"{each['matches']:,}", each["without_hash"]]
            for name, each in result["different"].items()
        ),
    )
    return [wrapped(about), recall, different]
