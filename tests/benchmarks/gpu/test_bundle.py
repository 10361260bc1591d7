"""The bundle's wheels are pinned and complete, and none of them is a package whose version torch depends on."""

import re
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from benchmarks.gpu.bundle import ON_MACHINE, RAY_PACKAGES, WHEELS, installed_path, normal

ROOT = Path(__file__).resolve().parents[3]


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@pytest.fixture
def as_pinned() -> None:
    """Skip where other versions are installed than those of constraints.txt, which may need other packages."""
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, _, pinned = line.partition("==")
        if normal(name) in {normal(bundled) for bundled in (*WHEELS, *RAY_PACKAGES)} and installed(name) != pinned:
            pytest.skip(f"{name} {pinned} isn't installed, but the bundle includes it")


def test_wheels_are_pinned_and_replace_no_part_of_torch() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    wheels = {normal(name) for name in WHEELS}
    assert wheels <= {normal(line.partition("==")[0]) for line in lines}
    lines = [line for name in ("torch", "torchvision") for line in requires(name) or ()]
    needs = {normal(re.split(r"[^\w.-]", line)[0]) for line in lines}
    assert not wheels & ({"torch", "torchvision", "triton"} | needs) - {"typing-extensions"}


@pytest.mark.usefixtures("as_pinned")
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


@pytest.mark.usefixtures("as_pinned")
def test_a_build_finds_all_of_its_packages_in_the_bundle_or_on_the_machine() -> None:
    have = {normal(name) for name in (*RAY_PACKAGES, *ON_MACHINE)}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert {normal(name) for name in RAY_PACKAGES} <= {normal(line.partition("==")[0]) for line in lines}
    machine = {"python_version": "3.12", "python_full_version": "3.12.3"}
    extras = [("segmint", "build"), ("segmint", "audit"), ("segmint", "detectors"), ("ray", "data")]
    asked = extras + [(name, "") for name in ("segmint", *RAY_PACKAGES)]
    for package, extra in asked:
        for line in requires(package) or ():
            needed = Requirement(line)
            if needed.marker is not None and not needed.marker.evaluate({**machine, "extra": extra}):
                continue
            assert normal(needed.name) in have | {"segmint"}, f"{package} needs {line}"


def test_a_wheel_is_unpacked_like_an_installation_without_what_a_build_never_opens() -> None:
    assert installed_path("ray/core/src/ray/raylet/raylet") == "ray/core/src/ray/raylet/raylet"
    assert installed_path("a-1.0.data/purelib/a/b.py") == "a/b.py"
    assert installed_path("a-1.0.data/scripts/a") is None
    assert installed_path("ray/jars/ray_dist.jar") is None
    assert installed_path("ray/widgets/render.py") == "ray/widgets/render.py"
    assert installed_path("botocore/data/ec2/service.json") is None
    assert installed_path("botocore/data/s3/service.json") == "botocore/data/s3/service.json"
    assert installed_path("facenet_pytorch/data/onet.pt") == "facenet_pytorch/data/onet.pt"
