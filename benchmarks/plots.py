"""Generator of the tables of measurements in docs/, and of the plots, from the recorded results (`make tables`).

    python benchmarks/plots.py [--results FOLDER] [--docs FOLDER]

Tables are written to the pages between pairs of marker comments, plots to the folder `images/` next to the pages, and
the rates of `segmint plan` to its package.
Everything is generated from the JSON, so no figure is typed by hand. If a part has no result, the page says so, and its
plot is removed.
"""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.building.scale_tables import alternative_scale  # noqa: E402
from benchmarks.measuring import RESULTS  # noqa: E402
from benchmarks.page import PAGES, filled, read_results  # noqa: E402
from benchmarks.privacy.tables import KINDS, alternative_recall, detectors, recall_by_change  # noqa: E402
from benchmarks.rates import NEEDED, RATES, rates_text  # noqa: E402
from benchmarks.tables import (  # noqa: E402
    GROUPS,
    PRECISIONS,
    Result,
    alternative,
    alternative_stages,
    grid_of,
    grouped,
    percent,
    seconds,
    side_of,
)

DOCS = ROOT / "docs"
PAGE = DOCS / "performance.md"

# Okabe and Ito's colors, which people with any kind of color vision can distinguish.
INK, GRAY, BLUE, ORANGE, GREEN, SKY, RED, PINK = (
    "#222222", "#9a9a9a", "#0072b2", "#e69f00", "#009e73", "#56b4e9", "#d55e00", "#cc79a7",
)  # fmt: skip
SIDES = {"reference": GRAY, "fp32": BLUE}
STAGES = dict(zip(GROUPS, (BLUE, ORANGE, GREEN, SKY, GRAY), strict=True))
ROLES = {
    "driver": BLUE,
    "gcs_server": ORANGE,
    "raylet": GREEN,
    "prepare actor": SKY,
    "segment actor": RED,
    "ledger actor": PINK,
    "task worker": INK,
    "dashboard agent": GRAY,
}


def main() -> None:
    """Rewrite the pages' parts and the plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the benchmarks' JSON")
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--rates", type=Path, default=RATES, help="the file of the rates that `segmint plan` uses")
    arguments = parser.parse_args()
    results = read_results(arguments.results)
    for name, parts in PAGES.items():
        page = arguments.docs / name
        page.write_text(filled(page.read_text(), results, parts))
    for name, (sources, draw) in PICTURES.items():
        path = arguments.docs / "images" / name
        path.unlink(missing_ok=True)
        if sources[0] in results:
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(results, path)
    if all(name in results for name in NEEDED):
        arguments.rates.write_text(rates_text(results))
    print(f"written to {arguments.docs} and {arguments.rates}")


def digest(results: dict[str, Result], sources: Sequence[str]) -> str:
    """Identify the results that a plot shows. The plot stores this digest, which ignores who measured the results."""
    found = [results.get(source) for source in sources]
    shown = [each and {key: each[key] for key in each if key not in ("command", "commit")} for each in found]
    return "sha256:" + hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()


def digest_of(picture: Path) -> str | None:
    """Return the `digest` that a plot stores."""
    found = re.search(r"sha256:[0-9a-f]{64}", picture.read_text())
    return found and found[0]


def draw_performance(results: dict[str, Result], path: Path) -> None:
    """Draw the seconds per photograph as bars with ratios: without crops, and with the most layers of crops."""
    pyplot = pyplot_styled()
    shown = [results[name] for name in performance_sources() if name in results]
    shown = [shown[0], *shown[1:][-1:]]
    longest = max(len(result["photographs"]) for result in shown)
    bars = 1 + max(len(result["settings"]["precisions"]) for result in shown)
    figure, axes = pyplot.subplots(
        1, len(shown), figsize=(8.6, 1.2 + 0.24 * bars * longest), squeeze=False, layout="constrained"
    )
    for axis, result in zip(axes[0], shown, strict=True):
        sides = ["reference", *result["settings"]["precisions"]]
        rows = result["photographs"]
        most = max(side_of(row, side)["seconds"] for row in rows for side in sides)
        step = 0.8 / len(sides)
        for place, side in enumerate(sides):
            heights = [index + (place - (len(sides) - 1) / 2) * step for index in range(len(rows))]
            values = [side_of(row, side)["seconds"] for row in rows]
            axis.barh(heights, values, height=0.9 * step, color=SIDES[side], label=label_of(side))
            for height, value, row in zip(heights, values, rows, strict=True):
                label = {"xy": (value, height), "textcoords": "offset points", "va": "center"}
                axis.annotate(f"{seconds(value)} s", xytext=(4, 0), fontsize=8.5, color="#555555", **label)
                if side != "reference":
                    times = f"{row['ours'][side]['ratio']['median']:.1f}×"
                    axis.annotate(times, xytext=(42, 0), fontsize=9.5, fontweight="bold", color=INK, **label)
        axis.set_yticks(range(len(rows)), [row["name"] for row in rows])
        axis.set_ylim(longest - 0.4, -0.6)
        axis.set_xlim(0, most * (1.1 if len(shown) == 1 else 1.2))
        axis.locator_params(axis="x", nbins=6)
        axis.set_xlabel("seconds per photograph (lower is better)")
        axis.set_title(grid_of(result["settings"]), loc="left", fontsize=10, color=INK)
        axis.grid(axis="x", color="#e5e5e5")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False)
    save(figure, path, alternative(results), digest(results, performance_sources()))


def draw_stages(results: dict[str, Result], path: Path) -> None:
    """Draw the seconds of the stages as a stacked bar for each precision."""
    pyplot = pyplot_styled()
    result = results["stages"]
    found = result["precisions"]
    figure, axis = pyplot.subplots(figsize=(8.6, 1.5 + 0.55 * len(found)), layout="constrained")
    longest = max(each["seconds"] for each in found.values())
    starts = dict.fromkeys(found, 0.0)
    for group, color in STAGES.items():
        values = {one: dict(grouped(each))[group] for one, each in found.items()}
        places = range(len(found))
        axis.barh(
            places,
            values.values(),
            left=list(starts.values()),
            height=0.62,
            color=color,
            label=group,
            edgecolor="white",
        )
        for place, (one, value) in zip(places, values.items(), strict=True):
            if value > 0.045 * longest:
                axis.text(
                    starts[one] + value / 2,
                    place,
                    percent(value / found[one]["seconds"]),
                    ha="center",
                    va="center",
                    fontsize=9,
                    color="white" if color in (BLUE, GREEN) else INK,
                )
            starts[one] += value
    for place, (one, each) in enumerate(found.items()):
        axis.text(starts[one] + 0.01 * longest, place, f"{seconds(each['seconds'])} s", va="center", color=INK)
    axis.set_yticks(range(len(found)), [f"segmint\n{PRECISIONS[one]}" for one in found])
    axis.invert_yaxis()
    axis.set_xlim(0, 1.1 * longest)
    settings = result["settings"]
    axis.set_xlabel(f"seconds on one thread ({settings['photograph']['name']}, {grid_of(settings)})")
    axis.grid(axis="x", color="#e5e5e5")
    figure.legend(loc="outside upper left", ncols=len(GROUPS), frameon=False)
    save(figure, path, alternative_stages(result), digest(results, ("stages",)))


def draw_scale(results: dict[str, Result], path: Path) -> None:
    """Draw the memory of the largest process of each kind during a build. Pages of the object store aren't included."""
    pyplot = pyplot_styled()
    result = results["scale"]
    shown = [each for each in result["roles"] if each["role"] in ROLES]
    figure, axis = pyplot.subplots(figsize=(8.6, 4.2), layout="constrained")
    for each in shown:
        minutes = [at / 60 for at in each["curve"]["seconds"]]
        axis.plot(minutes, each["curve"]["own_mib"], color=ROLES[each["role"]], label=each["role"], linewidth=1.6)
    axis.set_xlabel(f"minutes since the start of the build ({result['build']['rows']:,} rows)")
    axis.set_ylabel("private memory (MiB)")
    axis.set_xlim(0, max(each["curve"]["seconds"][-1] for each in shown) / 60)
    axis.set_ylim(0)
    axis.grid(axis="y", color="#e5e5e5")
    figure.legend(loc="outside upper left", ncols=4, frameon=False)
    save(figure, path, alternative_scale(result), digest(results, ("scale",)))


def draw_recall(results: dict[str, Result], path: Path) -> None:
    """Draw the share of the marks that each detector found, with counts, by angle and by kind of composite."""
    pyplot = pyplot_styled()
    result = results["privacy"]
    shown = {name: recall_by_change(result, name) for name in detectors(result)}
    longest = max(map(len, shown.values()))
    figure, axes = pyplot.subplots(
        1, len(shown), figsize=(8.6, 1 + 0.26 * longest), squeeze=False, layout="constrained"
    )
    for axis, (name, rows) in zip(axes[0], shown.items(), strict=True):
        axis.barh(range(len(rows)), [found / marks for _, (found, marks) in rows], height=0.7, color=BLUE)
        for place, (_, (found, marks)) in enumerate(rows):
            label = {"textcoords": "offset points", "xytext": (4, 0), "va": "center", "color": INK}
            axis.annotate(f"{found} of {marks}", (found / marks, place), fontsize=8.5, **label)
        axis.set_yticks(range(len(rows)), [label for label, _ in rows])
        axis.set_ylim(longest - 0.4, -0.6)
        axis.set_xlim(0, 1.28)
        axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
        axis.set_xlabel("recall (higher is better)")
        axis.set_title(f"{name}: {KINDS[name]}", loc="left", fontsize=10, color=INK)
        axis.grid(axis="x", color="#e5e5e5")
    save(figure, path, alternative_recall(result), digest(results, ("privacy",)))


def performance_sources() -> tuple[str, ...]:
    """Return the names of the results that the plot of whole images may show."""
    return ("generator_vs_reference", "generator_vs_reference-crops1", "generator_vs_reference-crops2")


PICTURES: dict[str, tuple[Sequence[str], Callable[[dict[str, Result], Path], None]]] = {
    "performance.svg": (performance_sources(), draw_performance),
    "stages.svg": (("stages",), draw_stages),
    "recall.svg": (("privacy",), draw_recall),
    "scale.svg": (("scale",), draw_scale),
}
"""Plots by file name. Each has the results that it shows, of which the first is required, and a function that draws
it."""


def label_of(side: str) -> str:
    """Return the label of a side in the legend."""
    return "segment-anything (reference)" if side == "reference" else f"segmint, {PRECISIONS[side]}"


def pyplot_styled() -> Any:
    """Return pyplot with the plots' style, without a display, and with text as outlines to look the same everywhere."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style: dict[Any, Any] = {
        "font.size": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.edgecolor": GRAY,
        "axes.labelcolor": INK,
        "axes.axisbelow": True,
        "xtick.color": INK,
        "ytick.color": INK,
        "ytick.major.size": 0,
        "figure.facecolor": "white",
        "svg.fonttype": "path",
        "svg.hashsalt": "segmint",
    }
    pyplot.rcParams.update(style)
    return pyplot


def save(figure: Any, path: Path, description: str, identifier: str) -> None:
    """Write a plot with its description, but without the time at which it was drawn."""
    from matplotlib import pyplot

    metadata = {"Date": None, "Creator": None, "Description": description, "Identifier": identifier}
    figure.savefig(path, format="svg", metadata=metadata)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
