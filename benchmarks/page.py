"""Parts of the pages in docs/ between their marker comments, made from recorded results."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.building.prepare_tables import prepare_part
from benchmarks.building.ray_script_tables import ray_script_part
from benchmarks.building.scale_tables import (
    driver_part,
    long_part,
    overlap_part,
    resume_part,
    scale_part,
    streams_part,
    windows_part,
    writers_part,
)
from benchmarks.datasets.duplicates_tables import duplicates_part
from benchmarks.gpu.builds_tables import builds_part, detectors_part
from benchmarks.gpu.reference_tables import reference_part
from benchmarks.gpu.tables import gpu_part, shares_part
from benchmarks.privacy.harm_tables import harm_part
from benchmarks.privacy.tables import privacy_part
from benchmarks.rates import rates_part
from benchmarks.reading.tables import reading_part
from benchmarks.recorded_tables import audit_part, clicks_part, intervals_part, precision_part, statistics_part
from benchmarks.tables import (
    Result,
    crops_part,
    encoder_part,
    generator_part,
    pipeline_part,
    scaling_part,
    stages_part,
)
from benchmarks.training.tables import trial_part

MISSING = "Not measured yet."

Parts = Mapping[str, tuple[Callable[[dict[str, Result]], str], str]]
"""Parts of a page by the names in their markers. Each has a function, and the command that records its results."""

PARTS: Parts = {
    "whole images": (generator_part, "make bench"),
    "images with crops": (crops_part, "make bench BENCH_OPTIONS='--crops 2'"),
    "stages": (stages_part, "make bench-stages"),
    "scaling": (scaling_part, "make bench-stages"),
    "pipeline": (pipeline_part, "make bench-pipeline"),
    "overlap": (overlap_part, "make bench-overlap"),
    "prepare": (prepare_part, "make bench-prepare"),
    "privacy": (privacy_part, "make bench-privacy"),
    "rows": (scale_part, "make bench-scale"),
    "long builds": (long_part, "make bench-long"),
    "catalogs": (streams_part, "make bench-scale"),
    "resume": (resume_part, "make bench-scale"),
    "windows": (windows_part, "make bench-scale"),
    "writers": (writers_part, "make bench-scale"),
    "duplicates": (duplicates_part, "make bench-duplicates"),
    "encoder": (encoder_part, "make bench-encoder"),
    "gpu": (gpu_part, "make gpu-day"),
    "gpu builds": (builds_part, "make gpu-ray gpu-builds"),
    "gpu detectors": (detectors_part, "make gpu-builds BUILDS_OPTIONS='--steps cuda-detectors full no-detectors'"),
    "gpu reference": (reference_part, "make bench-gpu-reference"),
    "decoder precision": (precision_part, "make bench-precision"),
}
"""Parts of docs/performance.md."""

PAGES: Mapping[str, Parts] = {
    "performance.md": PARTS,
    "annotate.md": {"clicks": (clicks_part, "make bench-clicks")},
    "audit.md": {"audits": (audit_part, "make bench-audit")},
    "clusters.md": {"driver": (driver_part, "make bench-driver")},
    "evaluate.md": {"intervals": (intervals_part, "make bench-intervals")},
    "report.md": {"statistics": (statistics_part, "make bench-audit")},
    "privacy.md": {"harm": (harm_part, "make bench-harm PICTURES=FOLDER")},
    "metric.md": {"shares": (shares_part, "make gpu-day")},
    "plan.md": {"recorded rates": (rates_part, "make gpu-day")},
    "ray.md": {"side by side": (ray_script_part, "make bench-ray-script")},
    "reading.md": {"rates": (reading_part, "make bench-reading")},
    "train.md": {"trial": (trial_part, "make bench-training")},
}
"""All pages with parts, by file name."""


def read_results(folder: Path) -> dict[str, Result]:
    """Read the recorded results by file name without suffix."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def filled(page: str, results: dict[str, Result], parts: Parts = PARTS) -> str:
    """Replace the part between each pair of markers in a page. Raises SystemExit if markers are missing."""
    for name, (make, command) in parts.items():
        begin, end = f"<!-- {name}: made by make tables -->", f"<!-- end of {name} -->"
        if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
            raise SystemExit(f"the page lacks a pair of markers: expected {begin} and {end} once each")
        made = make(results) or f"*{MISSING} To record a result, run `{command}`.*"
        before, after = page[: page.index(begin)], page[page.index(end) :]
        page = f"{before}{begin}\n\n{made}\n\n{after}"
    return page
