"""Identity keys that later versions added, with the values by which datasets without them were built."""

import copy
from collections.abc import Mapping
from typing import Any

ADDED_KEYS: dict[str, Any] = {
    "deidentify.rule": 1,
    "ingest.formats": ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"],
    "license.respect_opt_out": False,
    "masks.drop_redaction_artifacts": "off",
}
"""By dotted key: what segmint did before the key existed. A new key goes here and nowhere else; its default in the
configuration is for new datasets."""


def with_added_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest's identity tree with every added key that it lacks."""
    tree = copy.deepcopy(dict(config))
    for key, value in ADDED_KEYS.items():
        *path, last = key.split(".")
        place: Any = tree
        for step in path:
            place = place.setdefault(step, {}) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place.setdefault(last, copy.deepcopy(value))
    return tree
