"""The blocks of a Ray Data execution, by an iterator that Ray marks as a developer API."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ray.data


def iter_blocks(dataset: "ray.data.Dataset") -> Iterator[tuple[Any, int]]:
    """Execute `dataset`; yield a reference to each block with its number of rows, in order.

    The driver never fetches a block. Ray 2.59 and 2.60 have the same iterator and the same entries; run the tests
    marked `ray` under another version before you admit it in pyproject.toml.
    """
    for bundle in dataset.iter_internal_ref_bundles():
        for entry in bundle.blocks:
            yield entry.ref, entry.metadata.num_rows
