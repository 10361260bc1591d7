"""Rates that `segmint plan` uses without a sample, from the recorded results (`make tables`).

The table of rates is a file of the product, `pipeline/building/rates.json`. Each entry names the date and the file
of the result that it comes from.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.tables import Result, table, wrapped

ROOT = Path(__file__).resolve().parents[1]
RATES = ROOT / "pipeline" / "building" / "rates.json"

NEEDED = ("gpu_day-1", "gpu_day-3", "gpu_day-5", "prepare", "writers", "windows")
"""Results that the table of rates needs, by file name without suffix."""

SA1B_CROPS = {"points_per_side": 32, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2}
FULL_IMAGE = {"points_per_side": 32, "crop_n_layers": 0, "crop_n_points_downscale_factor": 2}


def rates_text(results: dict[str, Result]) -> str:
    """Return the table of rates as JSON. Raises KeyError if one of the results in `NEEDED` is missing."""
    rates = {
        "gpus": list(gpu_rates(results)),
        "cpus": list(cpu_rates(results)),
        "prepare": prepare_rates(results["prepare"]),
        "writing": writing_rates(results["writers"], results["windows"]),
    }
    return json.dumps(rates, indent=2) + "\n"


def gpu_rates(results: dict[str, Result]) -> Iterable[dict[str, Any]]:
    """Yield the generator's seconds per image on each GPU, with ViT-H in bfloat16, by recipe.

    `find_s` is the time until the GPU has found an image's masks, and `finish_s` is the time to finish them on the CPU
    afterward. In an actor, the two overlap. `end_to_end` is a measurement that includes the host, preferably of a build
    with Ray.
    """
    peak, images, pipeline = results["gpu_day-1"], results["gpu_day-3"], results["gpu_day-5"]
    recipe, full = images["measurements"]["full recipe"], images["measurements"]["full image"]
    actor, stages = pipeline["measurements"]["pipeline"], images["measurements"]["full recipe, stages"]["ms"]
    machines = {result["machine"]["gpu"] for result in (peak, images, pipeline)}
    if len(machines) != 1:
        raise SystemExit(f"the parts of the GPU day ran on different GPUs: {', '.join(sorted(machines))}")
    common = {
        "device": machines.pop(),
        "model": "vit_h",
        "precision": "bf16",
        "flop_per_s": rounded(peak["measurements"]["peak"]["bf16_tflops"] * 1e12),
        "encode_s": rounded(stages["encode"] / 1e3 / 21),
    }
    yield {
        **common,
        **SA1B_CROPS,
        "find_s": rounded(1 / actor["bare_images_s"]),
        "finish_s": rounded(recipe["finish_s"]),
        "host_s": rounded(
            sum(actor["stage_seconds"][part] for part in ("decode", "compute", "finish")) / actor["images"]
        ),
        "drawn": recipe["drawn"],
        "end_to_end": build_of(results, common["device"], "recipe")
        or {
            "images_per_s": rounded(actor["images_s"]),
            "what": "a segment actor with its host stages, without Ray",
            "ray": False,
            "file": "gpu_day-5.json",
        },
        "date": pipeline["date"],
        "file": "gpu_day-5.json",
    }
    yield {
        **common,
        **FULL_IMAGE,
        "find_s": rounded(full["find_s"]),
        "finish_s": rounded(full["finish_s"]),
        "host_s": rounded(full["find_s"] + full["finish_s"]),
        "drawn": full["drawn"],
        "end_to_end": build_of(results, common["device"], "full"),
        "date": images["date"],
        "file": "gpu_day-3.json",
    }


def build_of(results: dict[str, Result], device: str, step: str) -> dict[str, Any] | None:
    """Return the rate of a build with Ray on a GPU, or None if it wasn't measured there.

    A build that kept no masks doesn't count, because finishing masks took no time.
    """
    builds = results.get("gpu_builds")
    if builds is None or builds["machine"]["gpu"] != device:
        return None
    build = builds["measurements"].get(step, {})
    images_per_s = build.get("images_s_between_commits") or build.get("images_s")
    if "failed" in build or not images_per_s or not build["masks"]:
        return None
    return {
        "images_per_s": rounded(images_per_s),
        "what": "a build with Ray",
        "ray": True,
        "file": "gpu_builds.json",
    }


def cpu_rates(results: dict[str, Result]) -> Iterable[dict[str, Any]]:
    """Yield the lowest and the highest share of the peak that whole images reached on each kind of CPU."""
    for name in sorted(results):
        result = results[name]
        if result.get("benchmark") != "stages" or result["settings"]["weights"] != "mobile_sam":
            continue
        one = result["precisions"]["fp32"]
        runs = [one["whole"], *(run for series in one["scaling"].values() for run in series)]
        shares = [run["of_peak"] for run in runs]
        yield {
            "device": result["machine"]["capability"],
            "cpu": result["machine"]["cpu"],
            "model": "mobile_sam",
            "precision": "fp32",
            "least_share": min(shares),
            "most_share": max(shares),
            "date": result["date"],
            "file": f"{name}.json",
        }


def prepare_rates(result: Result) -> dict[str, Any]:
    """Return the CPU seconds of `prepare` per image by size, with and without the original that crops are cut from."""

    def seconds(with_original: bool) -> dict[str, list[float]]:
        parts: dict[str, list[float]] = {"faces": [], "turned": [], "plates": [], "rest": []}
        for row in result["stages"]:
            (run,) = (run for run in row["cpu_seconds"] if run["with_original"] == with_original)
            found = {
                "faces": run["faces"] + run["look faces"],
                "turned": run["look turned"],
                "plates": run["plates"] + run["look plates"],
            }
            found["rest"] = run["total"] - sum(found.values())
            for part, value in found.items():
                parts[part].append(rounded(value))
        return parts

    return {
        "cpu": f"{result['machine']['cpu']}, {result['machine']['capability']}",
        "megapixels": [row["megapixels"] for row in result["stages"]],
        "with_original": seconds(True),
        "without_original": seconds(False),
        "date": result["date"],
        "file": "prepare.json",
    }


def writing_rates(writers: Result, windows: Result) -> dict[str, Any]:
    """Return how fast one shard writer wrote, and what the driver and its ledger took.

    All processes of the measured builds shared the machine's cores, so the figures are lower bounds of the speed.
    """
    (one,) = (run for run in writers["runs"] if run["writers"] == 1)
    by_rows: dict[int, float] = {}
    for run in windows["driver"]:
        rows, seconds = run["rows_per_block"], run["driver_cpu_ms_per_block"] / 1e3
        by_rows[rows] = max(by_rows.get(rows, 0.0), seconds)
    cpus = {f"{result['machine']['cpu']}, {result['machine']['capability']}": None for result in (writers, windows)}
    return {
        "cpu": "; ".join(cpus),
        "rows_per_s_of_a_writer": one["rows_per_s_between_commits"],
        "core_s_per_row": rounded(writers["machine"]["cores_usable"] / one["rows_per_s_between_commits"]),
        "rows_per_block": sorted(by_rows),
        "driver_s_per_block": [rounded(by_rows[rows]) for rows in sorted(by_rows)],
        "ledger_s_per_row": rounded(max(run["ledger_cpu_ms_per_row"] for run in windows["driver"]) / 1e3),
        "date": max(writers["date"], windows["date"]),
        "file": "writers.json, windows.json",
    }


def rates_part(results: dict[str, Result]) -> str:
    """Format the rates for docs/plan.md, or return an empty string if a result is missing."""
    if any(name not in results for name in NEEDED):
        return ""
    gpus = table(
        ["GPU", "model", "images", "find (h per million)", "find, then finish (h per million)", "end to end", "result"],
        (
            [
                rate["device"],
                rate["model"],
                "with crops" if rate["crop_n_layers"] else "full image",
                f"{rate['find_s'] / 3.6e-3:,.0f}",
                f"{(rate['find_s'] + rate['finish_s']) / 3.6e-3:,.0f}",
                end_to_end(rate),
                f"{rate['file']}, {rate['date']}",
            ]
            for rate in gpu_rates(results)
        ),
    )
    cpus = table(
        ["CPU", "model", "share of the ceiling", "result"],
        (
            [
                f"{rate['cpu']}, {rate['device']}",
                rate["model"],
                f"{100 * rate['least_share']:.0f}% to {100 * rate['most_share']:.0f}%",
                f"{rate['file']}, {rate['date']}",
            ]
            for rate in cpu_rates(results)
        ),
    )
    writing = writing_rates(results["writers"], results["windows"])
    words = (
        f"A shard writer wrote {writing['rows_per_s_of_a_writer']:g} rows/s on two cores that all processes shared. "
        f"The driver took up to {1e3 * writing['driver_s_per_block'][0]:.0f} ms of CPU time per block of "
        f"{writing['rows_per_block'][0]} rows, and the ledger up to {1e3 * writing['ledger_s_per_row']:.1f} ms per row "
        f"({writing['file']}, {writing['date']})."
    )
    return "\n\n".join([gpus, cpus, wrapped(words)])


def end_to_end(rate: dict[str, Any]) -> str:
    """Return what an end-to-end measurement reached, or that there is none."""
    found = rate["end_to_end"]
    if found is None:
        return "not measured"
    return f"{1e6 / found['images_per_s'] / 3600:,.0f} h per million ({found['what']})"


def rounded(value: float) -> float:
    """Round to four significant digits."""
    return float(f"{value:.4g}")
