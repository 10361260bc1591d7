"""The areas of an audit as a person reads them: a line or a few of each, made from what its JSON has."""

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

from segmint.catalogs.findings import INTEGRITY
from segmint.infra.wording import counted, number, some

_WIDTH = 13  # of the area's name
_LINE = 110

Values = Mapping[str, Any]


def area_lines(checked: str, images: int, areas: Values, found: Mapping[str, int]) -> list[str]:
    """Lines for each area: its findings by number, and what was looked at; `checked` says it of integrity.

    `images` are all of the dataset's.
    """
    lines = _lines(INTEGRITY, [f"{_findings(found.get(INTEGRITY, 0))}; {checked}"])
    if areas["licenses"] is not None:
        lines += _lines("licenses", license_lines(areas["licenses"], found.get("licenses", 0)))
    if areas["privacy"] is not None:
        lines += _lines("privacy", privacy_lines(areas["privacy"], images, found.get("privacy", 0)))
    if areas["duplicates"] is not None:
        lines += _lines("duplicates", duplicate_lines(areas["duplicates"], found.get("duplicates", 0)))
    if areas["statistics"] is not None:
        lines += _lines("statistics", statistics_lines(areas["statistics"]))
    return lines


def license_lines(licenses: Values, findings: int) -> list[str]:
    """Findings, and how many images are under which license and of which provider."""
    lines = [f"{_findings(findings)}; judged on {licenses['judged_on']}"]
    if licenses["expired"]:
        since = licenses["expired_since_build"]
        lines.append(f"{counted(licenses['expired'], 'image')} expired, {since:,} since the build")
    by_license = [
        f"{entry['license'] or 'none'} {entry['images']:,}{'' if entry['allowed'] else ' (not allowed)'}"
        for entry in licenses["by_license"]
    ]
    by_provider = [f"{entry['provider'] or 'unnamed'} {entry['images']:,}" for entry in licenses["by_provider"]]
    return [*lines, f"images by license: {some(by_license)}", f"by provider: {some(by_provider)}"]


def privacy_lines(privacy: Values, images: int, findings: int) -> list[str]:
    """What each detector finds, at which score, in how many of the images that were searched."""
    if not privacy["images_checked"]:
        return ["no image was searched"]
    if not privacy["detectors"]:
        return ["the build had no detectors, and nothing was searched"]
    lines = [f"{_findings(findings)}; {privacy['images_checked']:,} of {counted(images, 'image')} searched"]
    for detector in privacy["detectors"]:
        found = f"{counted(detector['found'], detector['kind'])} found by {detector['name']}"
        searched = f"{detector['images']:,} of {counted(privacy['images_checked'], 'image')}"
        line = f"{found} at score {detector['score']:g} or over in {searched}"
        inside = detector["inside_regions"]
        lines.append(line + (f"; {inside:,} more inside of what was obliterated" if inside else ""))
    return lines


def duplicate_lines(duplicates: Values, findings: int) -> list[str]:
    """How many images are alike, or were made from the same bytes."""
    repeated = duplicates["repeated_sources"]
    told = [] if repeated is None else [f"{repeated:,} made from the same bytes as an earlier image"]
    told.append(f"{duplicates['similar']:,} of {counted(duplicates['images_compared'], 'picture')} like an earlier one")
    return [f"{_findings(findings)}; {', '.join(told)}"]


def statistics_lines(statistics: Values) -> list[str]:
    """The figures that a glance needs; the report has all."""
    masks = statistics["masks_per_image"]
    figures = [
        f"{statistics['masks']:,} masks in {counted(statistics['images'], 'image')}",
        f"{number(masks['mean'])} an image (median {number(masks['median'])})",
        f"{statistics['without_masks']:,} without",
    ]
    means = [
        f"{name.replace('_', ' ')} {number(statistics[name]['mean'])}"
        for name in ("predicted_iou", "stability_score", "relative_size", "concavity", "coverage")
        if statistics.get(name) is not None
    ]
    lines = [", ".join(figures), f"means: {', '.join(means)}"]
    near = statistics.get("near_duplicates")
    if near is not None:
        lines.append(
            f"{counted(near['pairs'], 'pair')} of nearly the same mask in "
            f"{counted(near['images_sampled'], 'image')} of a sample (IoU over {near['threshold']:g})"
        )
    to_look_at = [
        counted(len(statistics[name]), noun)
        for name, noun in (("outliers", "outlier"), ("drift", "drifting shard"))
        if statistics.get(name)
    ]
    return [*lines, *([f"to look at: {', '.join(to_look_at)}"] if to_look_at else [])]


def _lines(area: str, lines: Sequence[str]) -> list[str]:
    wrapped = [part for line in lines for part in wrap(line, _LINE - _WIDTH, break_long_words=False)]
    return [f"{area if place == 0 else '':{_WIDTH}}{line}" for place, line in enumerate(wrapped)]


def _findings(total: int) -> str:
    return counted(total, "finding") if total else "no finding"
