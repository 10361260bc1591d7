"""Metadata of a Hugging Face dataset card: the Hub's names of licenses and its size categories."""

from collections.abc import Iterable
from typing import Any

_LICENSES = frozenset(
    {
        "apache-2.0", "mit", "odbl", "pddl", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
        "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0",
        "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    }
)  # fmt: skip
_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
)


def hub_licenses(names: Iterable[str]) -> dict[str, Any]:
    """Return the dataset card's entries for these SPDX identifiers.

    A license that the Hub doesn't know becomes `other`.
    """
    given = set(names)
    known = sorted({name.lower() for name in given if name.lower() in _LICENSES})
    others = sorted(name for name in given if name.lower() not in _LICENSES)
    entries: dict[str, Any] = {"license": [*known, "other"] if others else known or ["unknown"]}
    return entries | ({"license_name": ", ".join(others)} if others else {})


def size_category(images: int) -> str:
    """Return the Hub's size category for this number of images."""
    for limit, name in _SIZES:
        if images < limit:
            return name
    return "n>1B"
