"""Folder of torch's compiled code, which one process fills before all others, without an import of torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def compiler_cache() -> Path:
    """Return the folder in which torch's compiler keeps its results: `TORCHINDUCTOR_CACHE_DIR` or its own default."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir())


@contextmanager
def first_alone(folder: Path, name: str) -> Iterator[None]:
    """Run the block in one process of this machine before all others that pass the same folder and name.

    The first process compiles into a cache in the folder, and the others wait and then find its results. If it fails or
    dies, the next one is first.
    """
    import fcntl  # only Linux has this module, and only GPU builds need it

    folder.mkdir(parents=True, exist_ok=True)
    done = folder / f"segmint-{name}.done"
    with (folder / f"segmint-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists():
            fcntl.flock(lock, fcntl.LOCK_UN)
            yield
            return
        yield
        done.touch()
