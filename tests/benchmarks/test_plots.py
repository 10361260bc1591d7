"""The page's tables and pictures are what the recorded results give, and say so where there is none."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import plots
from benchmarks.measuring import RESULTS
from benchmarks.page import MISSING, PAGES, filled, read_results
from benchmarks.plots import DOCS, PAGE, PICTURES, digest, digest_of
from benchmarks.tables import seconds, span

MACHINE = {
    "cpu": "A CPU",
    "cores_usable": 2,
    "capability": "AVX2",
    "threads": 1,
    "load_average_before": 0.5,
    "torch": "2.15.0+cu132",
    "python": "3.11.7",
}
NOTHING = {"benchmark": "", "date": "2026-01-02", "machine": MACHINE}


def ours(seconds: float, ratio: float, found: int) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "setup_s": 3.0,
        "peak_mib": 1100,
        "ratio": {"median": ratio, "least": ratio - 0.5, "most": ratio + 0.5},
        "masks": 41,
        "matched": {"0.99": found, "0.95": found + 1, "0.9": 40},
        "least_iou": 0.9123,
    }


def comparison(layers: int) -> dict[str, Any]:
    photograph = {"name": "dog", "height": 534, "width": 800}
    reference = {"seconds": 100.4, "setup_s": 4.0, "peak_mib": 3200, "masks": 40}
    found = {"fp32": ours(12.5, 8.0, 39)}
    return {
        **NOTHING,
        "settings": {"points_per_side": 32, "crop_n_layers": layers, "precisions": ["fp32"], "rounds": 3},
        "photographs": [{**photograph, "reference": reference, "ours": found, "rounds": []}],
    }


def stages() -> dict[str, Any]:
    names = ("encode", "plan", "decode", "draw", "upscale and filter", "suppression", "clean-up", "RLE", "other")
    part = {"seconds": 1.0, "gflop": 1234.5, "computes_in": "fp32", "peak_gflops": 110.0, "of_peak": 0.75}

    def scaled(key: str, value: int) -> dict[str, Any]:
        size = {"height": 300, "width": 400, "encodes": 21, "prompts": 3072}
        return {key: value, **size, "seconds": {"median": 7.0, "least": 6.0, "most": 8.0}}

    found = {
        "seconds": 10.0,
        "stages": [{"name": name, "seconds": 10 / len(names), "share": 1 / len(names)} for name in names],
        "network": dict.fromkeys(("encode", "plan", "decode", "draw"), part),
        "whole": {"threads": 2, "of_peak": 0.5, "seconds": {"median": 5.5, "least": 5.0, "most": 6.0}},
        "scaling": {key: [scaled(key, 2)] for key in ("points_per_side", "crop_n_layers", "long_side")},
    }
    settings = {"profile": "sa1b", "points_per_side": 32, "crop_n_layers": 0}
    photograph = {"name": "astronaut", "height": 512, "width": 512}
    return {**NOTHING, "settings": {**settings, "photograph": photograph}, "precisions": {"fp32": found}}


def encoder() -> dict[str, Any]:
    side = {"wall_s": {"median": 9.5}, "cpu_s": {"median": 9.25}, "peak_mib": 900}
    rows = [{"model": "vit_b", "ours": side, "reference": {**side, "peak_mib": 2900}, "largest_difference": 1e-5}]
    return {**NOTHING, "settings": {"runs": 3}, "models": rows}


def pipeline() -> dict[str, Any]:
    row = {"loop_s": 26.2, "build_s": 37.49, "ratio": 0.699, "images": 4, "build_threads": 1}
    row["share_of_ceiling"] = 0.1755
    return {**NOTHING, "settings": {"images": 4, "masks": {"points_per_side": 8}}, "rounds": [row]}


def ray_script() -> dict[str, Any]:
    side = {"side": "segmint build", "ended_by_itself": True, "done": 7, "lost": 0, "twice": 0, "named": True}
    settings = {"images": 8, "panorama": [9000, 8000], "limit_mib": 1536, "points_per_side": 4, "most_deaths": 6}
    sides = [{**side, "deaths": [0, 2], "minutes": 1.26, "cpu_s": 1234.5}]
    return {**NOTHING, "settings": settings, "sides": sides}


def prepared() -> dict[str, Any]:
    stages = ("decode", "shrink", "faces", "plates", "redact", "release", "original")
    runs = [{"with_original": kept, **dict.fromkeys(stages, 0.5), "total": 3.5} for kept in (True, False)]
    return {**NOTHING, "photographs": ["car", "dog"], "stages": [{"megapixels": 16.0, "cpu_seconds": runs}]}


def privacy() -> dict[str, Any]:
    row = {"picture": "car", "change": "90", "detector": "clp", "found": [40], "missed": [30, 140], "false": 3}
    return {**NOTHING, "rule": 3, "iou": 0.3, "smallest": 20.0, "rows": [row, {**row, "change": "tiled", "found": []}]}


def scale() -> dict[str, Any]:
    def role(name: str, rise: float) -> dict[str, Any]:
        curve = {"seconds": [0.0, 30.0, 60.0], "rss_mib": [90.0, 120.0, 121.0], "own_mib": [80.0, 100.0, 101.0]}
        sizes = {"rss": [120.0, 121.0], "own": [100.0, 101.0]}
        grown = {"rss": rise + 1, "own": rise}
        return {
            "role": name,
            "processes": 1,
            "cpu_ms_a_row": 0.25,
            "rise_mib": grown,
            "most_mib": sizes,
            "curve": curve,
        }

    build = {
        "seconds": 1234.0,
        "rows_per_s": 810.4,
        "ms_a_row": 1.234,
        "cpu_ms_a_row": 2.468,
        "shards": 2000,
        "masks": 9,
    }
    roles = [role("driver", 1.5), role("raylet", 2.5)]
    return {**NOTHING, "build": {"rows": 1_000_000, **build}, "roles": roles}


def long_build(photographs: bool) -> dict[str, Any]:
    pieces = [
        {"end": end, "seconds": 90.0, "shards": 500, "load_before": 0.5, "roles": scale()["roles"]}
        for end in ("killed", "complete")
    ]
    return {
        **NOTHING,
        "settings": {"rows": 500_000, "photographs": photographs, "rows_per_shard": 500},
        "build": {"seconds": 180.0, "rows_per_s": 2777.8, "kills": 1, "pieces": pieces},
        "rows": {"images": 490_000, "rejects": 10_000},
        "audit": {
            "exit_code": int(photographs),
            "sample": 200,
            "seconds": 61.0,
            "findings": {"similar_image": 4321} if photographs else {},
        },
    }


def streams() -> dict[str, Any]:
    figures = {"seconds": 50.2, "rows_per_s": 2_000_000, "rows_per_cpu_s": 1_900_000}
    row = {
        "ending": ".jsonl",
        "bytes": 12_340_000_000,
        **figures,
        "most_mib": {"first_half": 210.4, "second_half": 211.0},
    }
    return {**NOTHING, "settings": {"rows": 100_000_000, "columns": ["uri", "license"]}, "formats": [row]}


def resume() -> dict[str, Any]:
    found = {"opened_s": 12.34, "first_commit_s": 20.0, "seconds": 61.06}
    return {**NOTHING, "settings": {"commits": 40_000}, "builds": {"without summaries": found}}


def windows() -> dict[str, Any]:
    cost = {"driver_cpu_ms_per_block": 11.44, "driver_growth_kib_per_block": 8.66, "load_before": 0.4}
    restart = {"start_s": 60.0, "pause_s": 75.1, "loss_at_an_hour": 0.0204}
    driver = {"rows_per_block": 16, "segment_actors": 64, "blocks_per_s": 40.5, **cost}
    driver |= {"driver_cpu_ms_per_row": 0.7, "ledger_cpu_ms_per_row": 0.1}
    long = {"blocks": 40_000, "seconds": 1200.0, "blocks_per_s": 33.3, "driver_growth_mib": 340.2, **cost}
    return {**NOTHING, "restarts": [restart], "driver": [driver], "long": [{**long, "driver_most_mib": 1020.0}]}


def writers() -> dict[str, Any]:
    settings = {"rows": 800, "image_bytes": 450_000, "masks_per_image": 100, "images_per_shard": 50}
    run = {**settings, "object_store_memory": 100_000_000, "writers": 8, "rows_per_s": 7.7, "load_before": 0.2}
    return {**NOTHING, "runs": [{**run, "rows_per_s_between_commits": 16.7}]}


def duplicates_memory() -> dict[str, Any]:
    one = {"rows": 10_000_000, "seconds": 500.1, "input_mib": 983, "peak_mib": 1024, "load_before": 0.3}
    return {**NOTHING, "sizes": [{**one, "rows": 20_000_000, "peak_mib": 1536}, one]}


def overlap() -> dict[str, Any]:
    case = {"decoders": 2, "finishers": 3, "rows_per_block": 16, "calls": 4, "idle_share": 0.0123}
    seconds = {"alone": {"median": 0.0123, "least": 0.01, "most": 0.5}}
    return {**NOTHING, "settings": {"images": 200, "launches": 3000}, "cases": [case], "launches_s": seconds}


def decoder_precision() -> dict[str, Any]:
    row: dict[str, Any] = {"name": "dog", "reference": 46}
    for precision, matched in (("bf16", 42), ("fp16", 46)):
        row[precision] = {"matched": {"0.99": matched}, "least_iou": 0.67016, "largest_logit": 236.0}
    return {**NOTHING, "photographs": [row]}


def duplicates() -> dict[str, Any]:
    changes = {"mirrored": {"found": 0.9876, "copies": 81}}
    different = {"pairs": 3_007_350, "near": 14, "copies": 1}
    group = {"photographs": ["dog", "truck"], "pictures": 81, "changes": changes, "found": 80, "different": different}
    chosen = {"whole": 0.85, "middle": 0.7, "second_half": {"found": 78, "copies": 2}}
    crowd = {"rows": 100_000, "copies": 99_985, "seconds": 60.0, "peak_mib": 1500, "load_before": 0.5}
    rows = {"rows": 10_000_000, "hashes": 60_000_000, "planted": {"near": 500_000, "same": 200_000}, "found": 699_000}
    return {
        **NOTHING,
        "settings": {"distance": 3, "correlation": 0.9, "correlation_middle": 0.8},
        "set_by_first_half": chosen,
        "groups": {"first half": group, "second half": group},
        "all_with_all": {
            "hashes": 99_990,
            "pairs": 2_345,
            "agree": True,
            "seconds": 0.12,
            "seconds_all_with_all": 30.0,
        },
        "rows": {
            **rows,
            "others": 3,
            "seconds": 300.0,
            "input_mib": 2000,
            "peak_mib": 5000,
            "resident_peak_mib": 6000,
            "load_before": 0.4,
        },
        "crowds": {"copies": crowd, "different": crowd, "frames": crowd},
    }


def gpu_day() -> dict[str, Any]:
    prepare = {"processes": 16, "cpu_s": 4.25, "images_s": 3.5, "took_s": 9.0}
    return {**NOTHING, "machine": {**MACHINE, "gpu": "A GPU"}, "part": 5, "measurements": {"prepare, all": prepare}}


def against_reference() -> dict[str, Any]:
    side = {"median_s": 2.0, "least_s": 1.75, "most_s": 2.5, "images_s": 0.5, "masks": 93, "peak_gib": 12.345}
    matched = {"matched": {"0.99": 91, "0.95": 92, "0.9": 93}, "least_iou": 0.9123, "reference": 94}
    faster = {"median": 4.04, "least": 3.96, "most": 4.25}
    tuned = {**side, "ratio to as shipped": faster, "agreement": matched}
    return {
        **NOTHING,
        "machine": {**MACHINE, "gpu": "A GPU"},
        "settings": {
            "points_per_side": 32,
            "photographs": {"dog": [1500, 2250], "truck": [1500, 2250]},
            "rounds": 5,
            "encoder": "vit_h",
            "weights": "random",
        },
        "measurements": {
            "as shipped": side,
            "tuned": tuned,
            "segmint bf16": {**tuned, "ratio to tuned": {"median": 2.5, "least": 2.5, "most": 2.5}},
            "autocast": {"failed": "TypeError: no bfloat16"},
        },
    }


def harm() -> dict[str, Any]:
    def mark(kind: str, visible: bool, covered: float) -> dict[str, Any]:
        return {
            "kind": kind,
            "side": 40,
            "view": "frontal",
            "visible": visible,
            "found": not visible,
            "covered": covered,
        }

    row = {"change": "upright", "pixels": 187_500, "cpu_seconds": 0.5, "released": True}
    both = [mark("face", True, 0.0), mark("face", False, 1.0)]
    ordinary = {**row, "set": "ordinary", "picture": "p000.jpg", "marks": both, "false": [{"share": 0.02}]}
    plate = {**row, "set": "plates", "picture": "eu_1.jpg", "marks": [mark("plate", False, 0.9)], "false": None}
    return {**NOTHING, "rule": 4, "iou": 0.3, "rows": [ordinary, {**ordinary, "marks": [], "false": []}, plate]}


def gpu_builds() -> dict[str, Any]:
    machine = {**MACHINE, "gpu": "A GPU", "cores_usable": 16}
    build = {
        "images": 16,
        "masks": 671,
        "seconds": 38.0,
        "first_commit_s": 34.0,
        "images_s": 0.421,
        "images_s_between_commits": 3.06,
        "share_of_ceiling_between_commits": 0.016,
        "load_between_commits": {"gpu_busy": 0.56, "cpu_busy": 0.2},
    }
    stopped = {"photographs": 64, "images": 3, "seconds": 140.2, "failed": "stopped after 140 s"}
    return {
        **NOTHING,
        "machine": machine,
        "measurements": {
            "small": build,
            "again": {**build, "same": True},
            "cuda-detectors": stopped,
            "no-detectors": {"skipped": "it takes about 50 s, and 20 s of 410 are left"},
        },
    }


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A folder with one small result of each benchmark."""
    folder = tmp_path / "results"
    folder.mkdir()
    results = {
        "generator_vs_reference": comparison(0),
        "generator_vs_reference-crops2": comparison(2),
        "stages": stages(),
        "encoder_vs_reference": encoder(),
        "pipeline_vs_loop": pipeline(),
        "ray_script": ray_script(),
        "prepare": prepared(),
        "privacy": privacy(),
        "harm": harm(),
        "scale": scale(),
        "long_build": long_build(False),
        "long_build-photographs": long_build(True),
        "catalog_streams": streams(),
        "resume": resume(),
        "windows": windows(),
        "writers": writers(),
        "segment_overlap": overlap(),
        "decoder_precision": decoder_precision(),
        "duplicates": duplicates(),
        "duplicates_memory": duplicates_memory(),
        "gpu_day-5": gpu_day(),
        "gpu_against_reference": against_reference(),
        "gpu_builds": gpu_builds(),
        "gpu_builds-cuda-detectors-full-no-detectors": gpu_builds(),
    }
    for name, result in results.items():
        (folder / f"{name}.json").write_text(json.dumps(result))
    return folder


def part(page: str, name: str) -> list[str]:
    """The lines between a part's markers."""
    return page.partition(f"<!-- {name}: ")[2].partition(f"<!-- end of {name} -->")[0].splitlines()


@pytest.mark.parametrize("name", list(PAGES))
def test_the_pages_are_what_the_recorded_results_give(name: str) -> None:
    page = (DOCS / name).read_text()
    assert filled(page, read_results(RESULTS), PAGES[name]) == page, "run `make tables`"


@pytest.mark.parametrize("name", list(PICTURES))
def test_the_pictures_show_the_recorded_results(name: str) -> None:
    results, (sources, _) = read_results(RESULTS), PICTURES[name]
    picture = PAGE.parent / "images" / name
    assert picture.is_file() == (sources[0] in results)
    if picture.is_file():
        assert digest_of(picture) == digest(results, sources), "run `make tables`"


@pytest.mark.parametrize("name", list(PAGES))
def test_without_results_every_part_names_the_command_that_records_one(name: str) -> None:
    page = filled((DOCS / name).read_text(), {}, PAGES[name])
    makefile = (PAGE.parents[1] / "Makefile").read_text()
    for each, (_, command) in PAGES[name].items():
        assert [line for line in part(page, each)[1:] if line] == [f"*{MISSING} To record a result, run `{command}`.*"]
        assert f"\n{command.split()[1]}:" in makefile
    assert filled(page, {}, PAGES[name]) == page
    assert [picture for picture in PICTURES if picture in page] == []


def test_tables_have_the_results_figures(recorded: Path) -> None:
    page = filled(PAGE.read_text(), read_results(recorded))
    assert MISSING not in page
    whole = part(page, "whole images")
    assert "| dog | 800 × 534 | 100 | 12.5 | **8.0** (7.5–8.5) |" in whole
    assert "| dog | fp32 | 41 | 40 | 39 | 40 | 40 | 0.912 |" in whole
    assert "| dog | 3,200 | 1,100 | 4.00 | 3.00 |" in whole
    prose = " ".join(whole)
    assert "matches 39 of the reference's 40 masks at an IoU of 0.99 or higher and 40 at 0.9." in prose
    assert (
        "32 × 32 points and no crops. Measured on 2026-01-02 using 1 thread on 2 CPU cores (A CPU, AVX2), with torch "
        "2.15.0 and Python 3.11.7. The load average before the run was 0.5."
    ) in prose
    assert max(len(line) for line in whole if line[:1] not in "|!") <= 120
    assert any("32 × 32 points and 2 layers of crops" in line for line in part(page, "images with crops"))
    assert "| decode | 1.111 | 11.1% |" in part(page, "stages")
    assert "| decode | fp32 | fp32 | 1.00 | 1,234 | 110 | 75% |" in part(page, "stages")
    assert "| fp32 | 2 | 5.50 | 50% |" in part(page, "stages")
    assert "| 2 × 2 points | 21 | 3,072 | 7.00 |" in part(page, "scaling")
    assert "| 400 × 300 | 21 | 3,072 | 7.00 |" in part(page, "scaling")
    assert "| 1 | 26.2 | 37.5 | 0.70 | 1 |" in part(page, "pipeline")
    assert "| 16 | no | 0.50 | 0.50 | 0.50 | 0.50 | 0.50 | 0.50 | 0.50 | 3.50 |" in part(page, "prepare")
    assert "| photographs at 90° | 1 | 1 | 3 | 1 | 33% | 3 | 1 |" in part(page, "privacy")
    assert "| 32 to 63 px | 1 | 1 | 100% |" in part(page, "privacy")
    assert "composite; clp found 0 of 0 license plates upright](images/recall.svg)" in "".join(part(page, "privacy"))
    harmful = part(filled((DOCS / "privacy.md").read_text(), read_results(recorded), PAGES["privacy.md"]), "harm")
    assert "| ordinary, upright | 2 | 500 (1) | 0 (0) | 500 (1) | 50.0% | 1.00% | 0.50 |" in harmful
    assert "| ordinary, upright: faces | 0 of 0 | 1 of 2 | 0 of 0 | 0 of 0 | 1 of 2 |  |  |" in harmful
    assert "| plates, upright | 1 | 1 | 100.0% | 100.0% | 0.0% | 0.50 |" in harmful
    assert "detectors on the GPU: stopped after 140 s" in "".join(part(page, "gpu detectors"))
    builds = part(page, "gpu builds")
    assert "| MobileSAM, full recipe | 16 | 671 | 38 | 34 | 0.421 | 3.06 | 1.6% | 56% | 20% |" in builds
    assert "The repeated build had the digest of the first one." in builds
    assert "detectors on the GPU: stopped after 140 s, when 3 of 64 images were committed." in " ".join(builds)
    assert "Not measured: no-detectors (not enough time was left)." in builds
    assert "| driver | 1 | 0.250 | 100 | 101 | 120 | 121 | 1.5 |" in part(page, "rows")
    words = "1,000,000 rows into 2,000 shards with 9 masks in 21 minutes, which is 810 rows/s. Each row took 1.23 ms of"
    assert words in " ".join(part(page, "rows"))
    assert "No process grew by more than 2.5 MiB (raylet)" in " ".join(part(page, "rows"))
    killed = " ".join(part(page, "long builds"))
    assert "| killed | 1.5 | 500 | 0.25 | 100 | 101 | 0.5 |" in killed
    assert "500,000 rows with stubs in place of both stages that process pixels. It took 3 minutes in all" in killed
    assert "`segmint audit --sample 200 --integrity-only` had no findings, in 1.0 minutes." in killed
    found = "ended with exit code 1, with these findings: 4,321 of `similar_image`, in 1.0 minutes."
    assert f"`segmint audit --sample 200 --privacy-sample 0` {found}" in killed
    assert "| JSON Lines | 12.3 | 50 | 2,000,000 | 1,900,000 | 210 | 211 |" in part(page, "catalogs")
    assert "| without summaries | 12.3 | 20.0 | 61.1 |" in part(page, "resume")
    assert "| 60 | 75.1 | 2.0% |" in part(page, "windows")
    assert "| 16 | 64 | 40.5 | 11.4 | 0.80 | 0.4 |" in part(page, "windows")
    long = "40,000 blocks of one row in 20 minutes (33.3 blocks/s). The driver used 11.4 ms of CPU time per block. Its"
    words = f"{long} memory grew by 340 MiB to 1,020 MiB, at 8.7 KiB per block."
    assert words in " ".join(part(page, "windows"))
    assert "| 8 | 7.7 | 16.7 | 0.2 |" in part(page, "writers")
    assert "| 10,000,000 | 500.1 | 983 | 1,024 | 0.3 |" in part(page, "duplicates")
    assert "through the last two gives 5.5 GiB at 100,000,000 rows" in " ".join(part(page, "duplicates"))
    assert "| 2 | 3 | 16 | 4 | 1.2% |" in part(page, "overlap")
    assert "| nothing | 12.3 | 10.0 | 500.0 |" in part(page, "overlap")
    assert "| dog | 46 | 42 | 0.6702 | 236.0 | 46 | 0.6702 | 236.0 |" in part(page, "decoder precision")
    assert "| mirrored | 98.8% | 98.8% |" in part(page, "duplicates")
    assert "| second half | 2 | 81 | 3,007,350 | 14 | 1 |" in part(page, "duplicates")
    assert "| 10,000,000 | random, with planted duplicates | 699,003 | 300 | 5,000 | 0.4 |" in part(page, "duplicates")
    halves = " ".join(part(page, "duplicates"))
    assert (
        "thresholds are 0.85 for the whole image and 0.70 for its middle. With these, the search finds 78 of" in halves
    )
    assert "With segmint's thresholds of 0.90 and 0.80, which the tables use, it finds 80 and reports 1." in halves
    assert "that differ in at most 3 bits. The search finds the same pairs in 0.12 s instead of 30.0 s." in halves
    compared = part(page, "gpu reference")
    assert "| as shipped | 2 | 1.75 | 2.5 | 0.5 |  |  | 93 |  |  |  |  | 12.3 |" in compared
    row = "| segmint bf16 | 2 | 1.75 | 2.5 | 0.5 | **4.0** (4.0–4.2) | **2.5** | 93 | 91 | 92 | 93 | 0.912 | 12.3 |"
    assert row in compared
    prose = " ".join(compared)
    assert (
        "segmint is **4.0** (4.0–4.2) times as fast as the package as shipped and **2.5** times as fast as the tuned"
        in prose
    )
    assert "as fast as the tuned package. Of the 94 masks of the package as shipped" in prose
    assert "2 photographs (2250 × 1500 pixels) in 5 rounds, with 32 × 32 points. The encoder is vit_h" in prose
    assert "Not measured: autocast (TypeError: no bfloat16)." in prose
    assert "The comparison was measured on 2026-01-02 on one GPU (A GPU)" in prose
    assert "| vit_b | 9.50 | 9.50 | 9.25 | 9.25 | 900 | 2,900 |" in part(page, "encoder")


def test_tables_are_whole(recorded: Path) -> None:
    page = filled(PAGE.read_text(), read_results(recorded))
    for block in re.findall(r"(?:^\|.*\|\n)+", page, flags=re.MULTILINE):
        lines = block.splitlines()
        assert len({line.count("|") for line in lines}) == 1, lines[0]
        assert set(lines[1]) <= set("|-: ")


def test_one_command_makes_page_and_pictures_and_takes_away_those_without_results(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "docs" / "performance.md"
    page.parent.mkdir()
    for name in PAGES:
        (page.parent / name).write_text((DOCS / name).read_text())
    monkeypatch.setattr(
        "sys.argv",
        ["plots.py", "--results", str(recorded), "--docs", str(page.parent), "--rates", str(tmp_path / "rates.json")],
    )
    plots.main()
    results = read_results(recorded)
    drawn = {name: (page.parent / "images" / name).read_bytes() for name in PICTURES}
    assert {name: (page.parent / name).read_text() for name in PAGES} == {
        name: filled((DOCS / name).read_text(), results, parts) for name, parts in PAGES.items()
    }
    for name, (sources, _) in PICTURES.items():
        assert f"(images/{name})" in page.read_text()
        assert digest_of(page.parent / "images" / name) == digest(results, sources)
        assert len(drawn[name]) < 300_000
    plots.main()
    assert {name: (page.parent / "images" / name).read_bytes() for name in PICTURES} == drawn

    (recorded / "stages.json").unlink()
    plots.main()
    left = sorted(path.name for path in (page.parent / "images").iterdir())
    assert left == ["performance.svg", "recall.svg", "scale.svg"]
    assert "images/stages.svg" not in page.read_text()


def test_a_picture_tells_when_its_results_have_changed(recorded: Path) -> None:
    results = read_results(recorded)
    before = digest(results, ("stages",))
    results["stages"]["precisions"]["fp32"]["seconds"] = 10.1
    assert digest(results, ("stages",)) != before
    assert digest({}, ("stages",)) != before


@pytest.mark.parametrize("gone", ["<!-- scaling: made by make tables -->", "<!-- end of scaling -->"])
def test_a_page_without_its_markers_is_refused(gone: str) -> None:
    with pytest.raises(SystemExit, match="lacks a pair of markers: expected <!-- scaling"):
        filled(PAGE.read_text().replace(gone, ""), {})


def test_figures_are_as_long_as_they_say_something() -> None:
    assert [seconds(value) for value in (0.123, 9.876, 12.34, 158.4)] == ["0.12", "9.88", "12.3", "158"]
    assert (span([8.04, 8.01]), span([8.04, 7.5])) == ("8.0", "7.5 to 8.0")
