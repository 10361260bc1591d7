"""Provenance of images and datasets, for formats that support it."""

from collections.abc import Mapping
from typing import Any

from segmint.catalogs.attributions import license_url
from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.versions.record import VersionName

CREDITS = ("image_id", "license", "license_url", "attribution", "provider", "source_url", "country")
"""Keys in the result of `credits_of`. `image_id` is the id in the catalog."""


def credits_of(row: Mapping[str, Any]) -> dict[str, str | None]:
    """Return an image's catalog id, license, author, and source. Unknown values are None."""
    known = {**row, "license_url": license_url(row["license"])}
    return {name: known[name] for name in CREDITS}


def describe_dataset(manifest: DatasetManifest, version: VersionName) -> dict[str, Any]:
    """Return a dataset's name and version, and the model that made its masks, as JSON values."""
    return {
        "name": manifest.name,
        "model": manifest.weights.name,
        "segmint_version": manifest.code_version,
        "dataset_digest": f"sha256:{version.digest}",
        "dataset_version": version.number,
    }
