"""The bundle's wheels are pinned, and none of them is a package whose version torch depends on."""

import re
from importlib.metadata import requires
from pathlib import Path

from benchmarks.gpu.bundle import WHEELS, normal

ROOT = Path(__file__).resolve().parents[3]


def test_wheels_are_pinned_and_replace_no_part_of_torch() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    wheels = {normal(name) for name in WHEELS}
    assert wheels <= {normal(line.partition("==")[0]) for line in lines}
    lines = [line for name in ("torch", "torchvision") for line in requires(name) or ()]
    needs = {normal(re.split(r"[^\w.-]", line)[0]) for line in lines}
    assert not wheels & ({"torch", "torchvision", "triton"} | needs) - {"typing-extensions"}


def test_wheels_bring_what_they_need_themselves() -> None:
    there = {"numpy", "pillow", "torch", "torchvision", "requests", "tqdm"}
    have = {normal(name) for name in WHEELS} | there
    for wheel in WHEELS:
        for line in requires(wheel) or ():
            name, _, condition = line.partition(";")
            if "extra" in condition or "python_version <" in condition.replace("python_full_version", "python_version"):
                continue
            if "win32" not in condition:
                assert normal(re.split(r"[^\w.-]", name)[0]) in have, f"{wheel} needs {line}"
