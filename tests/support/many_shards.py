"""A dataset of many shards whose files are a few bytes each, to count requests and memory."""

import hashlib
from collections.abc import Iterator

from segmint.catalogs.dataset.commits import Commit, FileEntry
from segmint.catalogs.dataset.manifest import CatalogPart, DatasetManifest, ModelWeights
from segmint.catalogs.layout import DATA_KINDS, MANIFEST, commit_path, data_path, json_sha256, part_path
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.location import Location

_PER_SHARD = 3


def write_many_shards(dataset: Location, shards: int) -> int:
    """Write a manifest, its part of the catalog, and five files a shard; return the number of files."""
    catalog = b"a catalog"
    digest = hashlib.sha256(catalog).hexdigest()
    rows = shards * _PER_SHARD
    part = CatalogPart(path=part_path(0, digest), rows=rows, sha256=digest, source_sha256=digest, first_shard=0)
    config = {"images_per_shard": _PER_SHARD}
    manifest = DatasetManifest(
        name="many", config=config, config_sha256=json_sha256(config), numerics={}, code_version="0",
        weights=ModelWeights(name="none", sha256=digest), catalog=(part,), images_per_shard=_PER_SHARD,
        policy_date="2026-01-01",
    )  # fmt: skip

    def files() -> Iterator[tuple[str, bytes]]:
        yield MANIFEST, manifest.to_json()
        yield part.path, catalog
        counts = {"rows": _PER_SHARD, "images": _PER_SHARD, "rejected": 0, "masks": 0}
        for shard in range(shards):
            entries = []
            for kind in DATA_KINDS:
                data = f"{kind} of {shard}".encode()
                sha256 = hashlib.sha256(data).hexdigest()
                entries.append(FileEntry(data_path(kind, shard, sha256), len(data), sha256))
                yield entries[-1].path, data
            ordinals = (shard * _PER_SHARD, (shard + 1) * _PER_SHARD)
            commit = Commit(
                shard, 1, ordinals, manifest.numerics_fingerprint, manifest.build_sha256, counts, tuple(entries)
            )
            yield commit_path(shard, 1), commit.to_json()

    return len(list(map_ahead(lambda file: (dataset / file[0]).put(file[1]), files(), 32, 64, "many")))
