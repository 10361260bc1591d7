"""How weight files are named: known names, paths, URIs and web addresses."""

import re

from segmint.infra.assets.known import ASSETS, AssetError
from segmint.infra.uris import absolute, base_name, redact

_WEB_ADDRESS = re.compile(r"^https?://")


def is_web_address(name_or_path: str) -> bool:
    """Whether a name is a web address."""
    return _WEB_ADDRESS.match(name_or_path) is not None


def absolute_name(name_or_path: str) -> str:
    """Return a known name or URI as given, and a path made absolute: the same file from every current folder.

    Raises `UsageError` for a URI that holds credentials.
    """
    if name_or_path in ASSETS:
        return name_or_path
    if is_web_address(name_or_path):
        refuse_credentials(name_or_path)
        return name_or_path
    return absolute(name_or_path)


def plain_name(name_or_path: str) -> str:
    """Return a file's name: the last part of its path or URI, without a web address's query and hash."""
    if is_web_address(name_or_path):
        name_or_path = name_or_path.partition("#")[0].partition("?")[0]
    return base_name(name_or_path)


def refuse_credentials(address: str) -> None:
    """Raise `AssetError` for an address that holds credentials."""
    if redact(address) != address:
        raise AssetError(
            f"{redact(address)} carries a credential, which a configuration must not: fetch the file and name its "
            "path, or name its bucket (s3://…), whose credentials come from the standard chain"
        )
