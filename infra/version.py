"""Versions of segmint and its packages. segmint's is a constant, because a cluster may run a checkout directly."""

from importlib.metadata import PackageNotFoundError, version

VERSION = "0.4.0"

BITS_VERSION = "0.4.0"
"""Last version that changed any byte that a build writes. Newer versions can continue its datasets."""

NOT_INSTALLED = "none"
"""Version to report for a package that isn't installed."""


def installed_version(package: str) -> str:
    """Return the version of the distribution `package`, or `NOT_INSTALLED`."""
    try:
        return version(package)
    except PackageNotFoundError:
        return NOT_INSTALLED
