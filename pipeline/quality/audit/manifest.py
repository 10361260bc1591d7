"""Audits the manifest of a dataset: it must agree with itself and with its earlier generations."""

from collections.abc import Iterator

from segmint.catalogs.dataset.manifest import (
    GROWING_FIELDS,
    DatasetManifest,
    LatestManifest,
    manifest_name,
    read_generation,
)
from segmint.catalogs.findings import Code, Finding, Place
from segmint.catalogs.layout import config_sha256, part_path
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location


def audit_manifest(dataset: Location, standing: LatestManifest) -> Iterator[Finding]:
    """Check that the manifest that holds agrees with itself and with all earlier generations."""
    manifest, generation = standing
    place = Place(manifest_name(generation))
    digest = config_sha256(manifest.config)
    if digest != manifest.config_sha256:
        yield place.finding(Code.BAD_MANIFEST, f"config_sha256 {digest}", manifest.config_sha256)
    if manifest.config.get("images_per_shard") != manifest.images_per_shard:
        expected = f"images_per_shard {manifest.config.get('images_per_shard')}, as in config"
        yield place.finding(Code.BAD_MANIFEST, expected, manifest.images_per_shard)
    first_shard = 0
    for number, part in enumerate(manifest.catalog):
        path = part_path(number, part.sha256)
        if (part.path, part.first_shard) != (path, first_shard):
            expected = f"part {number} at {path} from shard {first_shard}"
            yield place.finding(Code.BAD_MANIFEST, expected, f"{part.path} from shard {part.first_shard}")
        first_shard = part.first_shard + -(-part.rows // manifest.images_per_shard)
    yield from _audit_generations(dataset, standing)


def _audit_generations(dataset: Location, standing: LatestManifest) -> Iterator[Finding]:
    """Each earlier generation must be there, and be the same except for the fields that grow."""
    later, number = standing
    while number > 1:
        number -= 1
        place = Place(manifest_name(number))
        try:
            earlier = read_generation(dataset, number)
        except UsageError as error:
            yield place.finding(Code.BAD_MANIFEST, "a dataset's manifest", error)
            return
        if earlier is None:
            yield place.finding(Code.BAD_MANIFEST, f"the generation before {manifest_name(number + 1)}", "no such file")
            return
        yield from _compare(earlier, later, Place(manifest_name(number + 1)), place.file)
        later = earlier


def _compare(earlier: DatasetManifest, later: DatasetManifest, place: Place, before: str) -> Iterator[Finding]:
    one, other = (manifest.model_dump(exclude=set(GROWING_FIELDS)) for manifest in (earlier, later))
    for key in sorted(one):
        if one[key] != other[key]:
            yield place.finding(Code.BAD_MANIFEST, f"{key} {one[key]!r}, as in {before}", repr(other[key]))
    spans = [[(part.first_shard, part.rows) for part in manifest.catalog] for manifest in (earlier, later)]
    if spans[1][: len(spans[0])] != spans[0]:
        expected = f"parts that go on from the (first shard, rows) of {before}: {spans[0]}"
        yield place.finding(Code.BAD_MANIFEST, expected, spans[1])
