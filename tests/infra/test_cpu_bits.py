"""A CPU's name follows from the bits that its libraries compute: held to older instructions, they have another."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from segmint.infra import cpu_bits as module
from segmint.infra.cpu_bits import computes_bf16, cpu_bits

NAME = "from segmint.infra.cpu_bits import cpu_bits; print(cpu_bits(1, 'fp32'))"


def named(**variables: str) -> str:
    """The name in another process with these environment variables."""
    command = [sys.executable, "-c", NAME]
    return subprocess.run(command, env={**os.environ, **variables}, text=True, capture_output=True, check=True).stdout


def test_the_name_is_the_same_in_every_process_and_leaves_the_threads_alone() -> None:
    before = torch.get_num_threads()
    here = cpu_bits(1, "fp32")
    assert torch.get_num_threads() == before
    assert named().strip() == here
    assert cpu_bits(1, "bf16") != here


@pytest.mark.skipif(
    platform.machine() != "x86_64" or torch.backends.cpu.get_cpu_capability() != "AVX512",
    reason="needs a CPU with instructions to leave out",
)
def test_a_library_that_is_held_to_older_instructions_has_another_name() -> None:
    held = [named(ONEDNN_MAX_CPU_ISA="AVX2"), named(MKL_CBWR="COMPATIBLE"), named(ATEN_CPU_CAPABILITY="avx2")]
    assert len({cpu_bits(1, "fp32"), *(name.strip() for name in held)}) == 4


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"flags": "fma avx2 avx512f"}, False),
        ({"flags": "avx512f avx512_bf16"}, True),
        ({"Features": "asimd bf16"}, True),
        ({}, True),
    ],
)
def test_instructions_for_bf16_are_known_by_the_processor_s_flags(
    facts: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_facts", lambda: facts)
    assert computes_bf16() is expected


def test_facts_of_this_processor() -> None:
    if Path("/proc/cpuinfo").exists():
        assert module._facts()
