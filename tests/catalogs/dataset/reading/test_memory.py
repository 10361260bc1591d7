"""Memory that one image gave back is there for the next one."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
if sys.argv[1] == "keep":
    from segmint.catalogs.dataset.reading.batches import keep_freed_memory
    keep_freed_memory()
def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def images():
    held = [np.ones(size << 20, np.uint8) for size in (6, 1, 7, 2, 6)]
images()
before = pages()
for _ in range(10):
    images()
print(pages() - before)
"""


def faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_pages_are_mapped_once() -> None:
    assert faults("keep") < 100
    assert faults("plain") > 10_000
