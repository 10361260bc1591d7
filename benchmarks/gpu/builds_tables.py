"""Part of docs/performance.md about `benchmarks/gpu/builds.py`, as Markdown from its result."""

from benchmarks.gpu.tables import missing, number, share, where, without_numbers
from benchmarks.tables import Result, part_of, table, wrapped

BUILDS = {
    "small": "MobileSAM, full recipe",
    "again": "MobileSAM, full recipe, repeated",
    "recipe": "ViT-H, full recipe",
    "full": "ViT-H, full images in batches of 8",
    "cuda-detectors": "ViT-H, full images, detectors on the GPU",
    "no-detectors": "ViT-H, full images, no detectors",
}


@part_of("gpu_builds")
def builds_part(result: Result) -> str:
    """Format all builds of one run of the benchmark."""
    return builds_of(result)


@part_of("gpu_builds-cuda-detectors-full-no-detectors")
def detectors_part(result: Result) -> str:
    """Format the builds that differ in where the detectors run."""
    return builds_of(result)


def builds_of(result: Result) -> str:
    """Format builds: times, rates, load, and which digests were the same."""
    found = {name: one for name, one in result["measurements"].items() if not missing(one)}
    others = dict(result["measurements"])
    texts = [builds_table(found), digests(found)]
    for name, build in result["measurements"].items():
        if "failed" in build and "images" in build:
            texts.append(stopped_build(BUILDS[name], others.pop(name)))
    texts.append(without_numbers({**result, "measurements": others}))
    texts.append(where(result, "All of this"))
    return "\n\n".join(text if text.startswith("|") else wrapped(text) for text in texts if text)


def builds_table(found: dict[str, Result]) -> str:
    """Return the table of all builds that ended."""
    rows = []
    for name, title in BUILDS.items():
        build = found.get(name)
        if build is None:
            continue
        load = build["load_between_commits"]
        times = [number(build, "seconds"), number(build, "first_commit_s")]
        rates = [number(build, "images_s"), number(build, "images_s_between_commits")]
        shares = [share(build, "share_of_ceiling_between_commits", 1), share(load, "gpu_busy"), share(load, "cpu_busy")]
        rows.append([title, build["images"], build["masks"], *times, *rates, *shares])
    head = ["build", "images", "masks", "whole command (s)", "first commit after (s)", "images/s", "images/s after it"]
    return table([*head, "share of the ceiling after it", "GPU busy", "CPU cores busy"], rows)


def digests(found: dict[str, Result]) -> str:
    """Return the sentence about the repeated build, or an empty string if it wasn't repeated."""
    if "again" not in found:
        return ""
    if found["again"]["same"]:
        return "The repeated build had the digest of the first one."
    return "The repeated build had another digest than the first one."


def stopped_build(title: str, build: Result) -> str:
    """Return what a build had committed when its time was up."""
    return (
        f"{title}: stopped after {build['seconds']:.0f} s, when {build['images']} of {build['photographs']} images "
        "were committed."
    )
