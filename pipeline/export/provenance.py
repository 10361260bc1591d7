"""What is known of an image's origin, for formats that have room for it."""

from collections.abc import Mapping
from typing import Any

from segmint.catalogs.attributions import license_url
from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.versions.record import VersionName

CREDITS = ("image_id", "license", "license_url", "attribution", "provider", "source_url", "country")
"""Names of what `credits_of` returns; `image_id` is the catalog's."""


def credits_of(row: Mapping[str, Any]) -> dict[str, str | None]:
    """Return catalog id, license, author and source of an image, None where they are not known."""
    known = {**row, "license_url": license_url(row["license"])}
    return {name: known[name] for name in CREDITS}


def describe_dataset(manifest: DatasetManifest, version: VersionName) -> dict[str, Any]:
    """Return the name of a dataset, the model that made its masks, and its version, as JSON values."""
    return {
        "name": manifest.name,
        "model": manifest.weights.name,
        "segmint_version": manifest.code_version,
        "dataset_digest": f"sha256:{version.digest}",
        "dataset_version": version.number,
    }
