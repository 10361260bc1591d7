"""Keeps the memory of one image for the next one, as images of different sizes come and go."""

import numpy as np

_BYTES = 31 << 20  # glibc follows blocks of up to 32 MiB


def keep_freed_memory() -> None:
    """Have glibc keep up to 62 MiB of freed memory for what is allocated next.

    By default it gives most of what an image took back to the kernel, which then maps and clears each page again: a
    twelfth of the time of decoding. Its limit follows the largest block that was mapped and freed, so one is: no page
    of it is touched. With `MALLOC_TRIM_THRESHOLD_` and the like in the environment glibc keeps to these, and another
    allocator is not changed.
    """
    np.empty(_BYTES, np.uint8)
