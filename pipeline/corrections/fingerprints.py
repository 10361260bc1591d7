"""Changes of fingerprints on request: remove those of an image, or record that an image is a different picture."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from segmint.catalogs.dataset.fingerprints import OtherPicture, by_image, change_fingerprints, read_fingerprints
from segmint.catalogs.dataset.handle import DatasetHandle
from segmint.catalogs.dataset.selection import possible_ids, select_row
from segmint.catalogs.dataset.tombstones import TOMBSTONES, read_tombstones
from segmint.catalogs.dataset.versions.record import VersionName
from segmint.catalogs.layout import image_stem
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.pipeline.corrections.correction import Revision, begin, confirm_changes, record_version, revise


@dataclass(frozen=True)
class FingerprintChange:
    """Change to an image's fingerprints, either planned or made."""

    dataset: str
    name: str
    image: int  # its number
    what: str
    version: VersionName | None = None
    rows: int = 1

    def lines(self) -> list[str]:
        return [f"{image_stem(self.image)}: {self.what}", *([] if self.version is None else [self.version.line()])]


def forget(
    dataset: Location, name: str, confirm: Callable[[FingerprintChange], None] | None = None
) -> FingerprintChange:
    """Remove the fingerprints of an image, including all older versions. `name` is the image's image_id or number.

    `confirm` is as in `confirm_changes`. Raises `UsageError` if the image has no fingerprints, and the errors of
    `begin` and `confirm_changes`.
    """
    handle = begin(dataset)
    image = _recognized(handle, name)
    listed = _listed(handle, image, "its fingerprints are removed, so copies of it aren't recognized")
    return _change(handle, listed, "forget-fingerprints", None, confirm)


def tell_apart(
    dataset: Location, name: str, tombstone: str, reason: str, now: datetime | None = None
) -> FingerprintChange:
    """Record that an image isn't one of the pictures in a tombstone's file. `name` is the image's image_id or number.

    Raises `UsageError` if the image or the tombstone doesn't exist or the reason is blank, and the errors of `begin`
    and `confirm_changes`.
    """
    if not reason.strip():
        raise UsageError("--reason is empty: expected why the pictures are different")
    file = f"{tombstone.removeprefix(f'{TOMBSTONES}/').removesuffix('.json')}.json"
    when = (now or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
    handle = begin(dataset)
    names = [each.name for each in read_tombstones(dataset)]
    if file not in names:
        known = ", ".join(names) or "none"
        raise UsageError(f"--of: {handle} has no tombstone {file}: expected one of {known}")
    image = select_row(dataset, handle.manifest(), name).id
    decision = OtherPicture(id=image, tombstone=file, reason=reason, when=when)
    listed = _listed(handle, image, f"recorded as a different picture than those of {TOMBSTONES}/{file}")
    return _change(handle, listed, "other-picture", decision, now=now)


def _listed(dataset: DatasetHandle, image: int, what: str) -> FingerprintChange:
    return FingerprintChange(str(dataset), dataset.manifest().name, image, what)


def _change(
    dataset: DatasetHandle,
    listed: FingerprintChange,
    command: str,
    decision: OtherPicture | None,
    confirm: Callable[[FingerprintChange], None] | None = None,
    now: datetime | None = None,
) -> FingerprintChange:
    """Record a decision about an image or, without a decision, remove the image's fingerprints. No shard changes."""
    confirm_changes(dataset, listed, confirm)
    change_fingerprints(
        dataset.location,
        (listed.image - 1) // dataset.manifest().images_per_shard,
        lambda now: now.without([listed.image]) if decision is None else now.with_decision(decision),
        purge=decision is None,
    )
    revise(dataset, Revision(frozenset(), lambda _, rows: rows))  # also removes the report, which may show the image
    version, _ = record_version(dataset, command, now=now)
    return replace(listed, version=version)


def _recognized(dataset: DatasetHandle, name: str) -> int:
    """Return the number of the image that has this name and fingerprints."""
    removed = [image for tombstone in read_tombstones(dataset.location) for image in tombstone.images]
    wanted = possible_ids(name)
    named = {each.id for each in removed if not wanted.isdisjoint((each.image_id, each.id))}
    known = by_image(read_fingerprints(dataset.location).values())
    found = (named or {select_row(dataset.location, dataset.manifest(), name).id}) & known.keys()
    if len(found) != 1:
        raise UsageError(f"expected the image_id or id of one image with fingerprints, got {name!r}")
    return found.pop()
