"""The page says what a day on a GPU found, and of each measurement without numbers why."""

from typing import Any

from benchmarks.gpu.tables import gpu_part

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
    stages = {"ms": {"encode": 231.0, "whole": 260.0}}
    same = {"runs_same": True, "threads_same": True, "processes_same": False}
    shares = {"masks": 90, "share": {"0.99": 1.0, "0.95": None}}
    peak = {"cold_tflops": 790.0, "sustained_tflops": 680.0, "seconds": 20, "bf16_tflops": 780.0, "fp32_tflops": 50.0}
    pipeline = {
        "images": 240,
        "seconds": 60.5,
        "images_s": 3.97,
        "of_sustained_peak": 0.66,
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
        result(3, full_recipe=image, full_recipe__stages=stages, full_recipe__launches=counts),
        result(4, masks_against_the_reference__fp32=shares, repeats=same),
        result(5, pipeline=pipeline, prepare={"running": True}),
    ]
    page = gpu_part({f"gpu_day-{index}": day for index, day in enumerate(days, start=1)})

    for line in (
        "| qkv | 600 |",
        "| triton | 1.25 |",
        "| vit h | 7 | compiled | triton | 12.3 | 65% | 8 | 41.5 |",
        "| full recipe | 250 | 50 | 12.3 | 65% | 70% | 90 | 8 |",
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
    assert "66% of the sustained peak" in " ".join(page.split())
    assert gpu_part({}) == ""
