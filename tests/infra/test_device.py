"""Resolving device, precision and threads on the machine that runs the tests."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from segmint.infra import device
from segmint.infra.device import (
    Compute,
    apply_compute,
    cpu_bits,
    cpu_quota,
    device_failure,
    fix_products,
    memory_here,
    physical_cores,
    resolve_compute,
)
from segmint.infra.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]


def test_auto_becomes_a_plain_choice():
    compute = resolve_compute()
    assert compute.kind == ("cuda" if torch.cuda.is_available() else "cpu")
    assert compute.precision in ("fp32", "bf16")
    assert 1 <= compute.threads <= (os.cpu_count() or 1)


def test_the_cpu_computes_in_fp32_by_default():
    assert resolve_compute("cpu", threads=3) == Compute("cpu", "fp32", 3)


def test_a_device_that_is_not_there_is_refused():
    absent = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(UsageError, match="torch sees"):
        resolve_compute(absent)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("tpu",), "expected auto, cpu, cuda or cuda:N"),
        (("meta",), "expected auto, cpu, cuda or cuda:N"),
        (("cpu", "fp8"), "expected auto, fp32 or bf16"),
        (("cpu", "bf16"), "precision bf16 needs a GPU: on a CPU, use precision fp32 or auto"),
        (("cpu", "fp32", 0), "a number of at least 1"),
        (("cpu", "fp32", True), "a number of at least 1"),
        (("cpu", "fp32", "all"), "a number of at least 1"),
    ],
)
def test_unknown_words_are_refused_with_the_known_ones(arguments, expected):
    with pytest.raises(UsageError, match=expected):
        resolve_compute(*arguments)


def test_cores_are_no_more_than_this_process_may_use():
    assert 1 <= physical_cores() <= len(os.sched_getaffinity(0))


def test_applied_threads_are_torchs():
    before = torch.get_num_threads()
    try:
        apply_compute(Compute("cpu", "fp32", 1))
        assert torch.get_num_threads() == 1
        assert not torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.set_num_threads(before)


FAULTS_OF_MATRICES = """
import resource, sys, numpy as np
from concurrent.futures import ThreadPoolExecutor
from segmint.infra.device import keep_freed_memory

def make(count):
    for _ in range(count):
        [np.ones(2 << 17) for _ in range(10)]

if sys.argv[1] == "kept":
    keep_freed_memory()
with ThreadPoolExecutor(1) as pool:
    pool.submit(make, 10).result()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pool.submit(make, 100).result()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be made to keep memory")
@pytest.mark.long
def test_freed_memory_is_kept() -> None:
    def faults(how: str) -> int:
        command = [sys.executable, "-c", FAULTS_OF_MATRICES, how]
        # A local Ray of an earlier test leaves its workers' settings of glibc in the environment.
        plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        return int(subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True, check=True).stdout)

    assert faults("kept") < faults("given back") / 100


NAMES = """
import json, os, sys
import torch
from segmint.infra.device import cpu_bits
for variables in json.loads(sys.argv[1]):
    child = os.fork()  # torch has computed nothing: each child chooses its instructions
    if not child:
        os.environ.update(variables)
        print(cpu_bits(1), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""

OLDER = {"AVX512": ("AVX2", "avx2"), "AVX2": ("SSE41", "default")}
"""The next older instructions by the CPU's, by oneDNN's and by torch's name."""


@pytest.fixture(scope="module")
def names() -> list[str]:
    """The names in other processes: as here, and with each library held to older instructions."""
    held: list[dict[str, str]] = [{}]
    capability = torch.backends.cpu.get_cpu_capability()
    if capability in OLDER:
        onednn, aten = OLDER[capability]
        held += [{"ONEDNN_MAX_CPU_ISA": onednn}, {"MKL_CBWR": "COMPATIBLE"}, {"ATEN_CPU_CAPABILITY": aten}]
    command = [sys.executable, "-c", NAMES, json.dumps(held)]
    done = subprocess.run(command, env=os.environ, text=True, capture_output=True, check=True)
    return done.stdout.splitlines()


def test_the_name_is_the_same_in_every_process_and_leaves_the_threads_alone(names: list[str]) -> None:
    before = torch.get_num_threads()
    here = cpu_bits(1)
    assert torch.get_num_threads() == before
    assert names[0] == here


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in OLDER, reason="the CPU has no instructions to leave out"
)
def test_a_library_that_is_held_to_older_instructions_has_another_name(names: list[str]) -> None:
    assert len({cpu_bits(1), *names}) == len(names) == 4


def test_facts_of_this_processor() -> None:
    if Path("/proc/cpuinfo").exists():
        assert device.cpu_facts()


BROKEN_GPU = """
import torch
from segmint.infra.device import device_failure

assert device_failure("cuda") is None
try:
    torch.zeros(4, device="cuda")[torch.tensor([9], device="cuda")].cpu()
except RuntimeError:
    pass
assert "CUDA error" in device_failure("cuda")
"""


@pytest.mark.cuda
def test_a_broken_gpu_is_distinguished_from_a_working_one() -> None:
    subprocess.run([sys.executable, "-c", BROKEN_GPU], check=True, timeout=120)


def test_a_cpu_never_fails_as_a_device() -> None:
    assert device_failure("cpu") is None


GIB = 2**30
UNIFIED = "25 1 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = (
    "24 1 0:21 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n"
    "25 24 0:22 /docker/4f /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "26 24 0:23 /docker/4f /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "27 24 0:24 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)
V1_UNLIMITED = str(0x7FFFFFFFFFFFF000)


def write_cgroups(root: Path, mounts: str, own: str, files: dict[str, str]) -> None:
    """Write what `/proc` says of this process's cgroups, and their limit files, below a folder."""
    trees = {f"sys/fs/cgroup/{name}": f"{text}\n" for name, text in files.items()}
    for name, text in {"proc/self/mountinfo": mounts, "proc/self/cgroup": own, **trees}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("mounts", "own", "files", "expected"),
    [
        pytest.param(
            UNIFIED,
            "0::/system.slice/slurmd/job_7/step_0\n",
            {"system.slice/slurmd/job_7/step_0/memory.max": "max", "system.slice/slurmd/job_7/memory.max": str(GIB)},
            GIB,
            id="a Slurm job's limit is above the step's cgroup",
        ),
        pytest.param(
            UNIFIED,
            "0::/a/b\n",
            {"memory.max": str(3 * GIB // 2), "a/memory.max": str(GIB), "a/b/memory.max": str(2 * GIB)},
            GIB,
            id="the smallest of all limits on the path",
        ),
        pytest.param(UNIFIED, "0::/\n", {"memory.max": str(GIB)}, GIB, id="a container that sees its own cgroup as /"),
        pytest.param(UNIFIED, "0::/a\n", {"b/memory.max": str(GIB)}, None, id="a limit on another path"),
        pytest.param(UNIFIED, "0::/../gone\n", {"memory.max": str(GIB)}, GIB, id="a cgroup outside the namespace"),
        pytest.param(UNIFIED, "0::/a\n", {"a/memory.max": "max"}, None, id="no limit"),
        pytest.param(
            HYBRID,
            "4:memory:/docker/4f/job\n1:cpu,cpuacct:/docker/4f\n0::/docker/4f\n",
            {
                "memory/job/memory.limit_in_bytes": V1_UNLIMITED,
                "memory/memory.limit_in_bytes": str(GIB),
                "cpu,cpuacct/memory.limit_in_bytes": "1",
            },
            GIB,
            id="version 1, of which a container sees a part",
        ),
        pytest.param(
            HYBRID,
            "4:memory:/docker/4f\n0::/\n",
            {"memory/memory.limit_in_bytes": V1_UNLIMITED},
            None,
            id="version 1 without a limit",
        ),
    ],
)
def test_memory_is_the_smallest_limit_on_the_path_of_the_cgroup(
    tmp_path: Path, mounts: str, own: str, files: dict[str, str], expected: int | None
) -> None:
    write_cgroups(tmp_path, mounts, own, files)
    assert memory_here(tmp_path) == (expected or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


@pytest.mark.parametrize(
    ("mounts", "own", "files", "expected"),
    [
        (UNIFIED, "0::/job/step\n", {"job/cpu.max": "350000 100000", "job/step/cpu.max": "max 100000"}, 3),
        (UNIFIED, "0::/\n", {"cpu.max": "50000 100000"}, 1),
        (UNIFIED, "0::/job\n", {"other/cpu.max": "100000 100000"}, None),
        (
            HYBRID,
            "1:cpu,cpuacct:/docker/4f/job\n0::/\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "200000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            2,
        ),
        (
            HYBRID,
            "1:cpu,cpuacct:/docker/4f\n0::/\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            None,
        ),
    ],
)
def test_the_quota_of_cpus_is_the_smallest_on_the_path_of_the_cgroup(
    tmp_path: Path, mounts: str, own: str, files: dict[str, str], expected: int | None
) -> None:
    write_cgroups(tmp_path, mounts, own, files)
    assert cpu_quota(tmp_path) == expected


def test_without_cgroups_the_machines_memory_counts(tmp_path: Path) -> None:
    assert memory_here(tmp_path) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >= memory_here() > 0


def test_products_have_the_same_bits_at_any_address() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(96, 768, generator=generator), torch.randn(768, 160, generator=generator)
    expected = a @ b
    for shift in range(4, 16, 4):  # in numbers of 4 bytes, because allocators align arrays to 16 bytes
        moved = a.new_empty(a.numel() + shift)[shift:].view(a.shape)
        assert torch.equal(moved.copy_(a) @ b, expected)


@pytest.fixture
def intel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor of Intel, and no mode of MKL in the environment."""
    monkeypatch.setattr(device, "cpu_facts", lambda: {"vendor_id": "GenuineIntel"})
    monkeypatch.setenv("MKL_CBWR", "")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", "AUTO,STRICT"),
        ("AVX2", "AVX2,STRICT"),
        ("AVX512,STRICT", "AVX512,STRICT"),
        ("COMPATIBLE", "COMPATIBLE"),
    ],
)
def test_the_mode_of_mkl_is_one_in_which_addresses_do_not_matter(
    intel: None, given: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = cpu_bits.__wrapped__(1)
    monkeypatch.setenv("MKL_CBWR", given)
    fix_products()
    assert os.environ["MKL_CBWR"] == expected
    vendor, _, bits = plain.partition(", ")
    found = cpu_bits.__wrapped__(1)
    assert found == f"{vendor}, MKL_CBWR={expected}, {bits}"


def test_on_other_processors_the_mode_of_mkl_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cpu_facts", lambda: {"vendor_id": "AuthenticAMD"})
    monkeypatch.delenv("MKL_CBWR", raising=False)
    fix_products()
    assert "MKL_CBWR" not in os.environ
    assert "MKL_CBWR" not in cpu_bits.__wrapped__(1)
