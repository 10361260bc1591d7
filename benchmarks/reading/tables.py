"""Part of docs/reading.md about rates, as Markdown from a recorded result."""

from benchmarks.tables import Result, part_of, table, where, wrapped

READERS = {
    "segmint": "segmint, shuffled, batches of 1",
    "batches": "segmint, shuffled, batches of 8",
    "tarfile": "`tarfile`, in order",
    "webdataset": "WebDataset, in order",
    "mixed": "WebDataset, with a shuffle buffer of 1,000",
    "streaming": "MosaicML streaming, shuffled",
}
MODES = {"bytes": "JPEG bytes and masks", "decoded": "pixels and masks"}


@part_of("reading")
def reading_part(result: Result) -> str:
    """Compare the readers' rates."""
    rows = [
        [
            READERS[side],
            what,
            f"{each['images_per_cpu_s']['median']:,.0f} ({_span(each['images_per_cpu_s'], ',.0f')})",
            "" if side == "segmint" else f"**{each['ours_to_it']['median']:.2f}** ({_span(each['ours_to_it'], '.2f')})",
            each["peak_mib"],
        ]
        for mode, what in MODES.items()
        for side, each in result.get(mode, {}).items()
    ]
    head = ["reader", "returns", "images per CPU second", "ratio", "peak memory (MiB)"]
    settings, order = result["settings"], result["order"]
    different = f"{100 * order['different_shards']['median']:.1f}%"
    note = (
        f"The dataset contains {settings['images']:,} images with {settings['masks_per_image']} masks each, in "
        f"{order['shards']} shards. Each reader ran in one process without workers, with the files in the page cache. "
        "The figures are medians over the rounds, with the minimum and maximum in parentheses. The benchmark checked "
        "by hash that all readers returned the same JPEGs, pixels, and masks. In segmint's order, "
        f"{different} of neighboring images come from different shards. We used WebDataset "
        f"{settings['webdataset']} and MosaicML streaming {settings['streaming']}. {where(result)}"
    )
    return f"{table(head, rows)}\n\n{wrapped(note)}"


def _span(values: dict[str, float], form: str) -> str:
    return f"{values['least']:{form}}–{values['most']:{form}}"
