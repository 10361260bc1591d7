"""What a Triton kernel that was compiled for a GPU uses of it, read by NVIDIA's tool that comes with Triton."""

import re
import subprocess
from pathlib import Path
from typing import Any


def stack_bytes(compiled: Any, folder: Path) -> int:
    """Bytes of the stack that each thread of the kernel has: 0 where no register was spilled."""
    from triton.backends.nvidia import driver

    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(driver.__file__).parent / "bin" / "cuobjdump"
    usage = subprocess.run([tool, "-res-usage", cubin], check=True, capture_output=True, text=True).stdout
    (found,) = re.findall(r"STACK:(\d+)", usage)
    return int(found)
