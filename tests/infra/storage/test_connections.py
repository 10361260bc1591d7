"""Stores by scheme: what is not installed is named, with what to install."""

import re
import sys

import pytest

from segmint.infra.errors import UsageError
from segmint.infra.storage.connections import connect, missing_package
from segmint.infra.storage.storage import Storage


@pytest.mark.parametrize(
    ("protocol", "package"), [("gs", "gcsfs"), ("az", "segmint[azure]"), ("abfss", "segmint[azure]")]
)
def test_a_missing_package_is_named(protocol: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("gcsfs", "azure.identity", "azure.storage.blob"):
        monkeypatch.setitem(sys.modules, module, None)  # so that it can't be imported, even where it is installed
    expected = f"{protocol}:// needs a package that is not installed: install {package}"
    assert (missing_package(protocol) or "").startswith(expected)
    with pytest.raises(UsageError, match=re.escape(expected)):
        connect(protocol, {})


def test_options_of_azure_are_its_own() -> None:
    Storage({"az://photos": {"account_name": "acme", "endpoint_url": "https://blob.example.org", "anon": True}})
    for key in ("region", "account_key", "connection_string"):
        with pytest.raises(UsageError, match=r"unknown storage option region|is a credential"):
            Storage({"az://": {key: "x"}})


def test_what_comes_with_segmint_is_not_missing() -> None:
    assert [missing_package(protocol) for protocol in ("file", "s3")] == [None, None]
