"""Triton kernels compiled for GPUs without one, and what they use, read by NVIDIA's tool that comes with Triton."""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ARCHITECTURES = (80, 86, 89, 90)
"""Compute capabilities: A100; A10 and A40; L4, L40S, and GeForce RTX 4090; H100 and H200."""

MOST_STACK, MOST_SHARED = 512, 101_376
"""Bytes of stack of a thread, and of shared memory of a program: all that GPUs of capability 8.6 and 8.9 have."""


def compiled(
    kernel: Any,
    architecture: int,
    types: Mapping[str, str],
    options: Mapping[str, Any],
    folder: Path,
    aligned: tuple[str, ...] = (),
) -> Any:
    """Return a kernel compiled for a compute capability; one that exceeds the limits fails the test.

    Args:
        kernel: a Triton kernel.
        architecture: 10 times the compute capability.
        types: the type of each argument that isn't a constant.
        options: the constants and launch options.
        folder: for files.
        aligned: types whose arguments are multiples of 16, as Triton finds them at run time.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    constants = {name: value for name, value in options.items() if name in kernel.arg_names}
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    divisible = {
        (place,): [["tt.divisibility", 16]] for place, name in enumerate(kernel.arg_names) if signature[name] in aligned
    }
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=divisible)
    launch = {name: value for name, value in options.items() if name not in constants}
    found = compile(source, target=GPUTarget("cuda", architecture, 32), options=launch)
    stack = stack_bytes(found, folder)
    assert stack <= MOST_STACK, (kernel.__name__, architecture, stack)
    assert found.metadata.shared <= MOST_SHARED, (kernel.__name__, architecture, found.metadata.shared)
    print(f"{kernel.__name__} sm_{architecture} {constants}: stack {stack}, shared {found.metadata.shared}")
    return found


def stack_bytes(compiled: Any, folder: Path) -> int:
    """Bytes of the stack that each thread of the kernel has: 0 where no register was spilled."""
    from triton.backends.nvidia import driver

    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(driver.__file__).parent / "bin" / "cuobjdump"
    usage = subprocess.run([tool, "-res-usage", cubin], check=True, capture_output=True, text=True).stdout
    (found,) = re.findall(r"STACK:(\d+)", usage)
    return int(found)
