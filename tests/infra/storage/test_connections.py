"""Stores by scheme: what is not installed is named, with what to install."""

import pyarrow
import pytest

from segmint.infra.errors import UsageError
from segmint.infra.storage.connections import connect, missing_package


@pytest.mark.parametrize(("protocol", "package"), [("gs", "gcsfs"), ("az", "adlfs"), ("abfss", "adlfs")])
def test_a_missing_package_is_named(protocol: str, package: str) -> None:
    expected = f"{protocol}:// needs a package that is not installed: install {package}"
    assert (missing_package(protocol) or "").startswith(expected)
    with pytest.raises(UsageError, match=expected):
        connect(protocol, {})


@pytest.mark.skipif(pyarrow.have_libhdfs(), reason="Java and Hadoop are installed")
def test_hdfs_without_java_is_named_in_one_line() -> None:
    expected = "hdfs:// needs Java and Hadoop: install them, and set JAVA_HOME and ARROW_LIBHDFS_DIR"
    assert missing_package("hdfs") == expected
    with pytest.raises(UsageError, match=expected):
        connect("hdfs", {})


def test_what_comes_with_segmint_is_not_missing() -> None:
    assert [missing_package(protocol) for protocol in ("file", "s3")] == [None, None]
