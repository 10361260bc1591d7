"""Changes of fingerprints on request: remove those of an image, or record that an image is a different picture."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from segmint.catalogs.dataset.fingerprints import (
    OtherPicture,
    ShardFingerprints,
    change_fingerprints,
    forget_fingerprints,
    read_fingerprints,
)
from segmint.catalogs.dataset.handle import DatasetHandle
from segmint.catalogs.dataset.selection import select_rows
from segmint.catalogs.dataset.tombstones import TOMBSTONES, TakedownRequest, read_tombstones
from segmint.catalogs.dataset.versions.record import VersionName
from segmint.catalogs.layout import image_stem
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.pipeline.corrections.correction import Correction, Revision, RevisionOutcome, correct


@dataclass(frozen=True)
class FingerprintChange:
    """A change of an image's fingerprints, before and after it is made."""

    dataset: str
    name: str
    image: int  # its number
    what: str
    version: VersionName | None = None
    rows: int = 1

    def lines(self) -> list[str]:
        """Return the change as lines of text."""
        return [f"{image_stem(self.image)}: {self.what}", *([] if self.version is None else [self.version.line()])]


def forget(
    dataset: Location, name: str, confirm: Callable[[FingerprintChange], None] | None = None
) -> FingerprintChange:
    """Remove the fingerprints of an image for good, by its image_id or number.

    Raises `UsageError` if it has none, and the errors of `correct`, whose `confirm` this is.
    """
    return correct(DatasetHandle.open(dataset), _Forget(name), confirm)


def tell_apart(
    dataset: Location,
    name: str,
    tombstone: str,
    reason: str,
    now: datetime | None = None,
) -> FingerprintChange:
    """Record that an image, by its image_id or number, shows none of the pictures that a tombstone's file names.

    Raises `UsageError` if there is no such image or tombstone, or the reason is blank, and the errors of `correct`.
    """
    return correct(DatasetHandle.open(dataset), _TellApart(name, tombstone, reason, now), now=now)


@dataclass(frozen=True)
class _Plan:
    """Plan of a change: the shard, and the change as listed."""

    shard: int
    listed: FingerprintChange
    decision: OtherPicture | None = None
    is_done: bool = False
    reason: str | None = None


@dataclass(frozen=True)
class _Changed(Correction[_Plan, FingerprintChange]):
    """A `Correction` that changes no shard."""

    name: str

    def revision(self, dataset: DatasetHandle, plan: _Plan) -> Revision:
        return Revision(frozenset(), lambda _, rows: rows)

    def result(
        self, dataset: DatasetHandle, plan: _Plan, outcome: RevisionOutcome, version: VersionName
    ) -> FingerprintChange:
        listed = plan.listed
        return FingerprintChange(listed.dataset, listed.name, listed.image, listed.what, version)

    def listed(self, dataset: DatasetHandle, image: int, what: str, decision: OtherPicture | None = None) -> _Plan:
        manifest = dataset.manifest()
        change = FingerprintChange(str(dataset), manifest.name, image, what)
        return _Plan((image - 1) // manifest.images_per_shard, change, decision)


@dataclass(frozen=True)
class _Forget(_Changed):
    command: str = "forget-fingerprints"

    def plan(self, dataset: DatasetHandle) -> _Plan:
        tombstones = read_tombstones(dataset.location)
        removed = [image for tombstone in tombstones for image in tombstone.images]
        named = {each.id for each in removed if self.name in (each.image_id, str(each.id), image_stem(each.id))}
        ids = named or {_number(dataset, self.name)}
        known = {id for shard in read_fingerprints(dataset.location).values() for id in shard.images}
        if len(ids & known) != 1:
            raise UsageError(f"expected the image_id or id of one image with fingerprints, got {self.name!r}")
        image = (ids & known).pop()
        return self.listed(dataset, image, "its fingerprints are removed, so its copies can't be recognized")

    def prepare(self, dataset: DatasetHandle, plan: _Plan) -> _Plan:
        forget_fingerprints(dataset.location, plan.shard, {plan.listed.image})
        return plan


@dataclass(frozen=True)
class _TellApart(_Changed):
    tombstone: str
    text: str
    now: datetime | None
    command: str = "other-picture"

    def plan(self, dataset: DatasetHandle) -> _Plan:
        if not self.text.strip():
            raise UsageError("--reason is empty: expected why the pictures are different")
        name = f"{self.tombstone.removeprefix(f'{TOMBSTONES}/').removesuffix('.json')}.json"
        names = [tombstone.name for tombstone in read_tombstones(dataset.location)]
        if name not in names:
            raise UsageError(f"--of: {dataset} has no tombstone {name}: expected one of {', '.join(names) or 'none'}")
        when = (self.now or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
        decision = OtherPicture(id=_number(dataset, self.name), tombstone=name, reason=self.text, when=when)
        what = f"recorded as a different picture than those of {TOMBSTONES}/{name}"
        return self.listed(dataset, decision.id, what, decision)

    def prepare(self, dataset: DatasetHandle, plan: _Plan) -> _Plan:
        new = plan.decision
        if new is None:
            return plan

        def add(now: ShardFingerprints) -> ShardFingerprints:
            if any((each.id, each.tombstone) == (new.id, new.tombstone) for each in now.others):
                return now
            return now.model_copy(update={"others": (*now.others, new)})

        change_fingerprints(dataset.location, plan.shard, add)
        return plan


def _number(dataset: DatasetHandle, name: str) -> int:
    """Return the number of an image of the catalog. Raises `UsageError` unless exactly one has this name."""
    selection = select_rows(dataset.location, dataset.manifest(), TakedownRequest(ids=(name,)))
    if len(selection.rows) != 1:
        raise UsageError(selection.ambiguous.get(name, f"{name!r} isn't the image_id or id of one image of {dataset}"))
    return next(iter(selection.rows)) + 1
