"""The page says what a day on a GPU found, and of each measurement without numbers why."""

from typing import Any

from benchmarks.gpu.tables import gpu_part, shares_part
from benchmarks.measuring import RESULTS
from benchmarks.page import read_results

MACHINE = {"gpu": "H200", "cpu": "A CPU", "cores_usable": 16, "torch": "2.11.0", "python": "3.12.3"}


def result(part: int, **measurements: dict[str, Any]) -> dict[str, Any]:
    found = {name.replace("__", ", ").replace("_", " "): one for name, one in measurements.items()}
    return {"date": "2026-01-02", "machine": MACHINE, "part": part, "measurements": found}


def test_each_part_has_its_tables() -> None:
    rate = {"images_s": 12.345, "of_peak": 0.654, "peak_gib": 8.0, "took_s": 3.0}
    image = {**rate, "find_s": 0.25, "finish_s": 0.05, "find_of_peak": 0.7, "masks": {"dog": 40, "truck": 50}}
    counts = {
        "launches": 1075,
        "graph_launches": 40,
        "copies": 42,
        "syncs": 43,
        "kernels_run": 20000,
        "busy_share": 0.9,
    }
    stream = {
        "images_per_batch": 8,
        "images": 32,
        "median_s": 0.0625,
        "find_images_s": 16.0,
        "find_of_peak": 0.155,
        "masks": {"dog": 40, "truck": 53},
        "peak_gib": 9.0,
    }
    stages = {"ms": {"encode": 231.0, "whole": 260.0}}
    same = {"runs_same": True, "threads_same": True, "processes_same": False}
    shares = {"masks": 90, "share": {"0.99": 1.0, "0.95": None}}
    peak = {"cold_tflops": 790.0, "sustained_tflops": 680.0, "seconds": 20, "bf16_tflops": 780.0, "fp32_tflops": 50.0}
    pipeline = {
        "images": 240,
        "seconds": 60.5,
        "images_s": 3.97,
        "of_peak": 0.66,
        "of_bare": 0.97,
        "gpu_busy": None,
        "device_thread_busy": 0.99,
        "threads": {"decoders": 7},
        "cores": 16,
        "ray": "none",
    }
    days = [
        result(
            1,
            peak=peak,
            products__batch_7={"qkv": {"tflops": 600.0}, "took_s": 1},
            window_attention__80__triton={"median_s": 0.00125},
            window_attention__80__math={"failed": "OutOfMemoryError: too much\nand more", "traceback": ""},
        ),
        result(2, vit_h__batch_7__compiled__triton={**rate, "compile_s": 41.5}),
        result(
            3,
            full_recipe=image,
            full_image=image,
            stream_of_full_images=stream,
            full_recipe__stages=stages,
            full_recipe__launches=counts,
        ),
        result(4, masks_against_the_reference__fp32=shares, repeats=same),
        result(5, pipeline=pipeline, prepare={"running": True}),
    ]
    page = gpu_part({f"gpu_day-{index}": day for index, day in enumerate(days, start=1)})

    for line in (
        "| qkv | 600 |",
        "| triton | 1.25 |",
        "| vit h | 7 | compiled | triton | 12.3 | 65% | 8 | 41.5 |",
        "| full recipe | 250 | 50 | 12.3 | 65% | 70% | 90 | 8 |",
        "| 32 images | 8 | 62.5 | 16 | 16% | 93 | 9 |",
        "| encode | 231.0 |",
        "| full recipe | 1,075 | 40 | 42 | 43 | 20,000 | 90% |",
        "| fp32 | 90 | 100.0% |  |",
        "| repeats | yes | yes | **no** |",
        "Not measured: window attention, 80, math (OutOfMemoryError: too much).",
        "Not measured: prepare (the process was stopped).",
        "Part 3 was measured on 2026-01-02 on one GPU (H200) and 16 CPU cores (A CPU), with torch 2.11.0 and "
        "Python 3.12.3.",
    ):
        assert f"\n{line}\n" in f"\n{page}\n"
    assert "680 after 20 seconds" in page
    assert "66% of the ceiling" in " ".join(page.split())
    assert gpu_part({}) == ""


def test_the_rate_of_the_products_is_that_of_the_recorded_kernels() -> None:
    results = read_results(RESULTS)
    text = " ".join(shares_part(results).split())
    # 21 crops, 32 blocks, 4,096 positions, 12 x 1280^2 multiply-adds of two operations; 106.868 + 35.713 ms
    assert "took 142.6 ms per image for 108.2 TFLOP" in text
    assert "This is 759 TFLOP/s, or 95% of the peak of 800 TFLOP/s." in text
    assert "| ViT-H (NVIDIA H200), full recipe, find only | 33% |" in text
    assert "| ViT-H (NVIDIA H200), full recipe, segment actor without Ray | 30% |" in text


def test_without_the_kernels_of_all_blocks_there_is_no_rate() -> None:
    kernel = {"name": "nvjet_sm90_bias_TNN", "ms": 100.0, "calls": 383}
    peak = {"bf16_tflops": 800.0, "sustained_tflops": 680.0, "seconds": 20}
    days = {"gpu_day-1": result(1, peak=peak), "gpu_day-3": result(3, full_recipe__launches={"kernels": [kernel]})}
    assert "TFLOP" not in shares_part(days)
    kernel["calls"] = 384
    days["gpu_day-5"] = result(5, pipeline={"of_peak": 0.3, "watts": 570.4, "sm_mhz": 1905})
    text = " ".join(shares_part(days).split())
    assert "This is 1,082 TFLOP/s" in text
    assert "the GPU drew 570 W and ran at 1,905 MHz" in text
    assert shares_part({}) == ""


def test_the_page_says_which_full_images_were_measured_with_a_copy_of_the_original() -> None:
    image = {"images_s": 12.3, "find_s": 0.25, "finish_s": 0.05, "masks": {"dog": 40}}
    for recorded, copied in ((image, True), ({**image, "original": False}, False)):
        day = result(3, full_recipe={**image, "original": True}, full_image=recorded)
        page = " ".join(gpu_part({"gpu_day-3": day}).split())
        assert ("includes a copy of the photograph's original" in page) is copied
