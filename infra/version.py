"""The versions of segmint and of packages. A cluster runs the checkout, which is no installed package."""

from importlib.metadata import PackageNotFoundError, version

VERSION = "0.3.0.dev0"

BITS_VERSION = "0.3.0"
"""The last version that changed a bit of what a build writes: later ones continue its datasets."""

NOT_INSTALLED = "none"
"""The version of a package that is not installed."""


def installed_version(package: str) -> str:
    """Return the version of a package, by the name that pip knows, or `NOT_INSTALLED`."""
    try:
        return version(package)
    except PackageNotFoundError:
        return NOT_INSTALLED
