"""Stores by scheme: what is not installed is named, with what to install."""

import pytest

from segmint.infra.errors import UsageError
from segmint.infra.storage.connections import connect, missing_package


@pytest.mark.parametrize(("protocol", "package"), [("gs", "gcsfs"), ("az", "adlfs"), ("abfss", "adlfs")])
def test_a_missing_package_is_named(protocol: str, package: str) -> None:
    expected = f"{protocol}:// needs a package that is not installed: install {package}"
    assert (missing_package(protocol) or "").startswith(expected)
    with pytest.raises(UsageError, match=expected):
        connect(protocol, {})


def test_what_comes_with_segmint_is_not_missing() -> None:
    assert [missing_package(protocol) for protocol in ("file", "s3")] == [None, None]
