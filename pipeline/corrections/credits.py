"""Revision that updates committed images to the catalog's credits, for `segmint amend` and `segmint repair`.

Before an amendment changes the catalog, it puts a list of the shards to change in `reservations/`. It deletes the list
at the end. If a list remains, an amendment was interrupted, and the next amendment completes its work.
"""

from collections.abc import Collection, Iterable, Mapping

from pydantic import ValidationError

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.manifest import LatestManifest
from segmint.catalogs.frozen import Frozen
from segmint.catalogs.layout import RESERVATIONS, amended_name, canonical_json, fingerprint, parse_amended_name
from segmint.catalogs.schema import AMENDABLE
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead
from segmint.operators.shards.committed_rows import read_file, read_table
from segmint.operators.shards.revise import Change, cataloged, with_latest_commit
from segmint.pipeline.corrections.correction import Revision

_THREADS = 16


class _AmendedShards(Frozen):
    """Shards that an amendment must change."""

    shards: tuple[int, ...]


def begin_amendment(dataset: Location, generation: int, shards: Iterable[int]) -> None:
    """Write the list of shards for an amendment that is about to put this generation of the manifest."""
    data = canonical_json({"shards": sorted(shards)})
    (dataset / RESERVATIONS / amended_name(generation, fingerprint(data.decode()))).put_if_absent(data)


def unfinished_amendments(dataset: Location, latest: LatestManifest) -> dict[str, frozenset[int]]:
    """Return the shards of interrupted or running amendments, keyed by the names of their lists.

    Amendments for a manifest newer than `latest` are skipped, because they haven't changed the catalog yet. If a list
    can't be read, all shards count as its shards.
    """
    found = {}
    for entry in (dataset / RESERVATIONS).list():
        number = parse_amended_name(entry.name)
        if number is None or number > latest.generation:
            continue
        try:
            shards = _AmendedShards.model_validate_json((dataset / RESERVATIONS / entry.name).read()).shards
            found[entry.name] = frozenset(shards)
        except NotFoundError:
            pass  # it has ended
        except ValidationError:
            found[entry.name] = frozenset(range(latest.manifest.shards))
    return found


def end_amendments(dataset: Location, names: Iterable[str]) -> None:
    """Delete the lists of amendments that are complete, because their shards match the catalog's credits."""
    for name in names:
        (dataset / RESERVATIONS / name).delete()


def shards_of(amendments: Mapping[str, frozenset[int]]) -> frozenset[int]:
    """Return all shards of unfinished amendments."""
    return frozenset[int]().union(*amendments.values())


def credit(dataset: Location, generation: int, shards: Collection[int]) -> Revision:
    """Return a revision that updates the credits of the shards' images from the catalog.

    The revision reads the catalog of manifest generation `generation` or of a later generation.
    """
    change = cataloged(dataset)
    return Revision(
        shards=frozenset(shards),
        change=change,
        needed=lambda commit: _differs(dataset, commit, change),
        only="images",
        catalog_generation=generation,
    )


def otherwise_credited(dataset: Location, shards: Iterable[int]) -> list[int]:
    """Return the committed shards with an image whose credits differ from the catalog."""
    change = cataloged(dataset)

    def look(shard: int) -> tuple[int, bool]:
        return shard, bool(with_latest_commit(dataset, shard, lambda commit: _differs(dataset, commit, change)))

    looks = map_ahead(look, sorted(shards), _THREADS, 2 * _THREADS, "credits")
    return [shard for shard, differs in looks if differs]


def _differs(dataset: Location, commit: Commit, change: Change) -> bool:
    table = read_table(read_file(dataset, commit.file("images")), "images")
    rows = table.select(["ordinal", "image_id", *AMENDABLE]).to_pylist()
    return any(one is not other for one, other in zip(rows, change(commit, rows), strict=True))
