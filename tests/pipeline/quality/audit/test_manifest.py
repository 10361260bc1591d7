"""The audit of a manifest's generations: what may differ, and what must not."""

from pathlib import Path
from typing import Any

import pytest

from segmint.catalogs.dataset.manifest import CatalogPart, DatasetManifest, load_latest_manifest, put_manifest
from segmint.catalogs.findings import Code
from segmint.catalogs.layout import part_path
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.pipeline.quality.audit.integrity import audit_manifest
from tests.support.committed import write_dataset
from tests.support.locations import location_of

SHA = "ab" * 32


def grown(manifest: DatasetManifest, **changes: Any) -> DatasetManifest:
    """The manifest with another part of two rows, and with changes."""
    part = CatalogPart(
        path=part_path(len(manifest.catalog), SHA),
        rows=2,
        sha256=SHA,
        source_sha256=SHA,
        first_shard=manifest.shards,
    )
    return manifest.model_copy(update={"catalog": (*manifest.catalog, part), **changes})


def found(dataset: Path) -> list[tuple[str, str, str]]:
    """File, expectation and finding of all that is wrong."""
    storage = Storage()
    findings = list(
        audit_manifest(Location(storage, str(dataset)), load_latest_manifest(Location(storage, str(dataset))))
    )
    assert all(finding.code is Code.BAD_MANIFEST for finding in findings)
    return [(finding.file, finding.expected, finding.found) for finding in findings]


@pytest.fixture
def first(tmp_path: Path) -> DatasetManifest:
    return write_dataset(location_of(tmp_path), shards=2)


def test_generations_may_grow(tmp_path: Path, first: DatasetManifest) -> None:
    second = grown(first, licenses={"CC0-1.0": 8})
    put_manifest(location_of(tmp_path), second, 2)
    put_manifest(location_of(tmp_path), grown(second), 3)
    assert found(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"numerics": {"device": "cuda"}}, "numerics {'device': 'cpu'}, as in dataset.json"),
        ({"name": "other"}, "name 'small', as in dataset.json"),
        ({"code_version": "9"}, "code_version '0', as in dataset.json"),
    ],
)
def test_what_is_pinned_must_not_change(
    tmp_path: Path, first: DatasetManifest, changes: dict[str, Any], says: str
) -> None:
    second = grown(first, **changes)
    put_manifest(location_of(tmp_path), second, 2)
    put_manifest(location_of(tmp_path), grown(second), 3)
    assert [(file, expected) for file, expected, _ in found(tmp_path)] == [("dataset.g2.json", says)]


def test_a_generation_goes_on_with_the_parts_before_it(tmp_path: Path, first: DatasetManifest) -> None:
    shorter = first.catalog[0].model_copy(update={"rows": 5})
    put_manifest(location_of(tmp_path), grown(first.model_copy(update={"catalog": (shorter,)})), 2)
    ((file, expected, told),) = found(tmp_path)
    assert (file, told) == ("dataset.g2.json", "[(0, 5), (2, 2)]")
    assert expected.endswith("dataset.json: [(0, 6)]")


def test_no_generation_is_missing(tmp_path: Path, first: DatasetManifest) -> None:
    put_manifest(location_of(tmp_path), grown(first), 3)
    assert found(tmp_path) == [("dataset.g2.json", "the generation before dataset.g3.json", "no such file")]


def test_a_later_part_carries_its_content_in_its_name(tmp_path: Path, first: DatasetManifest) -> None:
    second = grown(first)
    bare = second.catalog[1].model_copy(update={"path": "catalog/part-1.parquet"})
    put_manifest(location_of(tmp_path), second.model_copy(update={"catalog": (first.catalog[0], bare)}), 2)
    expected = f"part 1 at catalog/part-1-{SHA[:12]}.parquet from shard 2"
    assert found(tmp_path) == [("dataset.g2.json", expected, "catalog/part-1.parquet from shard 2")]
