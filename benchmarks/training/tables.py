"""Table of docs/train.md: what training learned and forgot."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.tables import Result, part_of, table, where, wrapped

_FIGURES = (
    ("other scenes, one click", "held_out_scenes", "one_click"),
    ("new textures, one click", "new_textures", "one_click"),
    ("guard, best of three", "guard", "oracle_of_three"),
    ("guard, three clicks", "guard", "three_clicks"),
    ("guard, one click", "guard", "one_click"),
)
"""Columns, each with its title, set of images, and figure."""

_KINDS = {"trained": "", "shuffled": " (control)"}


@part_of("textures")
def trial_part(result: Result) -> str:
    """Format the mean IoUs before and after each round, and their spread over the seeds."""
    learned = table(
        ["seed", *(title for title, _, _ in _FIGURES), "CPU s"],
        [
            *([_name(each), *_figures(each), each["cpu_seconds"]] for each in result["rounds"]),
            *([_gain(kind, result["rounds"]), *_gains(found), ""] for kind, found in result["gains"].items()),
        ],
    )
    recipe, settings = result["settings"]["recipe"], result["settings"]
    note = (
        "The cells show the mIoU before → after training. The gains are means over the seeds, with the minimum and "
        f"maximum in parentheses. Each run trained on {settings['scenes']} scenes for {recipe['steps']} steps of "
        f"{recipe['batch_images']} images with up to {recipe['masks_per_image']} masks each, at a learning rate of "
        f"{recipe['learning_rate']:g}. Replay photographs made up {100 * settings['replay']:g}% of the images. The "
        f"CPU seconds only cover training, and the peak memory was {result['peak_mib']:,} MiB. "
        f"{where(result)}"
    )
    return "\n\n".join([learned, wrapped(note)])


def _gain(kind: str, rounds: Sequence[Mapping[str, Any]]) -> str:
    seeds = sum(each["shuffled"] == (kind == "shuffled") for each in rounds)
    return f"gain{_KINDS[kind]}, {seeds} {'seed' if seeds == 1 else 'seeds'}"


def _name(each: Mapping[str, Any]) -> str:
    return f"{each['seed']}{_KINDS['shuffled' if each['shuffled'] else 'trained']}"


def _figures(each: Mapping[str, Any]) -> list[str]:
    return [f"{each['before'][part][key]:.3f} → {each['after'][part][key]:.3f}" for _, part, key in _FIGURES]


def _gains(found: Mapping[str, Any]) -> list[str]:
    cells = []
    for _, part, key in _FIGURES:
        gain = found[part][key]
        one = gain["least"] == gain["most"]
        cells.append(f"{gain['mean']:+.3f}" + ("" if one else f" ({gain['least']:+.3f} to {gain['most']:+.3f})"))
    return cells
