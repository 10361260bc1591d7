"""Read what a C2PA manifest store says about training, with the C2PA library.

Nothing is verified, since an opt-out needs no proof: neither signatures nor hashes, so that one whose signer is unknown
counts, and one whose image was edited since. Nothing is fetched: no manifest that the image refers to, no identity.

The library is native code that reads untrusted bytes: call this in a child process alone. It is loaded with the first
image that has a manifest.
"""

import io
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from segmint.infra.errors import SegmintError

_SETTINGS = {
    "core": {"allowed_network_hosts": [], "decode_identity_assertions": False},
    "verify": {
        "verify_after_reading": False,
        "verify_trust": False,
        "remote_manifest_fetch": False,
        "ocsp_fetch": False,
    },
}

_ASSERTIONS = ("c2pa.training-mining", "cawg.training-mining")


class C2paMissingError(SegmintError):
    """An image has a manifest, and the library that reads it cannot be loaded: no image is judged without it."""


def c2pa_values(data: bytes, mime: str) -> list[tuple[str, str]]:
    """Return the entries of all training-mining assertions in an image's manifests, each with its `use`.

    The active manifest is the first, then those of ingredients: what the image was made from. A store that cannot be
    read has none. Raises `C2paMissingError`.
    """
    library, context = _library()
    try:
        with library.Reader(mime, io.BytesIO(data), context=context) as reader:
            store = json.loads(reader.json())
    except (library.C2paError, ValueError, RecursionError):
        return []
    return list(_uses(store))


@cache
def _library() -> tuple[Any, Any]:
    """Load the library; return it, and the settings that each read has."""
    try:
        import c2pa

        return c2pa, c2pa.Context.from_dict(_SETTINGS)
    except Exception as error:
        raise C2paMissingError(
            "an image has a C2PA manifest, and c2pa-python, which reads it, cannot be loaded here "
            f"({type(error).__name__}: {error}): pip install 'segmint[build]', in the versions of constraints.txt"
        ) from error


def _uses(store: Any) -> Iterator[tuple[str, str]]:
    manifests = _mapping(_mapping(store).get("manifests"))
    active = _mapping(store).get("active_manifest")
    for label in sorted(manifests, key=lambda label: (label != active, label)):
        assertions = _mapping(manifests[label]).get("assertions")
        for assertion in assertions if isinstance(assertions, list) else []:
            name = _mapping(assertion).get("label")
            # A second assertion of a kind has a number behind its label, a newer one its version.
            if isinstance(name, str) and name.startswith(_ASSERTIONS):
                yield from _entries(_mapping(_mapping(assertion).get("data")))


def _entries(content: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the entries of an assertion; CAWG's first version had no map `entries` around them."""
    for name, entry in {**content, **_mapping(content.get("entries"))}.items():
        use = _mapping(entry).get("use")
        if isinstance(use, str):
            yield name, use


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
