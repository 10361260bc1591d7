"""Changes of fingerprints on request: remove those of an image, or record that an image is a different picture."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from segmint.catalogs.dataset.fingerprints import OtherPicture, by_image, change_fingerprints, read_fingerprints
from segmint.catalogs.dataset.handle import DatasetHandle
from segmint.catalogs.dataset.selection import possible_ids, select_row
from segmint.catalogs.dataset.tombstones import TOMBSTONES, read_tombstones
from segmint.catalogs.dataset.versions.record import VersionName
from segmint.catalogs.layout import image_stem
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.pipeline.corrections.correction import Correction, Revision, RevisionOutcome, correct


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
        """Return the change as lines of text."""
        return [f"{image_stem(self.image)}: {self.what}", *([] if self.version is None else [self.version.line()])]


def forget(
    dataset: Location, name: str, confirm: Callable[[FingerprintChange], None] | None = None
) -> FingerprintChange:
    """Remove the fingerprints of an image, including all older versions. `name` is the image's image_id or number.

    `confirm` is as in `correct`. Raises `UsageError` if the image has no fingerprints, and the errors of `correct`.
    """
    return correct(DatasetHandle.open(dataset), _Change(name), confirm)


def tell_apart(
    dataset: Location, name: str, tombstone: str, reason: str, now: datetime | None = None
) -> FingerprintChange:
    """Record that an image isn't one of the pictures in a tombstone's file. `name` is the image's image_id or number.

    Raises `UsageError` if the image or the tombstone doesn't exist or the reason is blank, and the errors of `correct`.
    """
    if not reason.strip():
        raise UsageError("--reason is empty: expected why the pictures are different")
    file = f"{tombstone.removeprefix(f'{TOMBSTONES}/').removesuffix('.json')}.json"
    when = (now or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
    decision = OtherPicture(id=1, tombstone=file, reason=reason, when=when)
    return correct(DatasetHandle.open(dataset), _Change(name, decision, "other-picture"), now=now)


@dataclass(frozen=True)
class _Plan:
    """Plan of a change in a shard, with the decision to record, if any."""

    shard: int
    listed: FingerprintChange
    decision: OtherPicture | None
    is_done: bool = False
    reason: str | None = None


@dataclass(frozen=True)
class _Change(Correction[_Plan, FingerprintChange]):
    """`Correction` that changes fingerprints but no shards. Without a decision, it removes the image's fingerprints."""

    name: str
    decision: OtherPicture | None = None
    command: str = "forget-fingerprints"

    def plan(self, dataset: DatasetHandle) -> _Plan:
        tombstones, decision = read_tombstones(dataset.location), self.decision
        if decision is None:
            image, what = self._recognized(dataset), "its fingerprints are removed, so copies of it aren't recognized"
        else:
            names = [tombstone.name for tombstone in tombstones]
            if decision.tombstone not in names:
                known = ", ".join(names) or "none"
                raise UsageError(f"--of: {dataset} has no tombstone {decision.tombstone}: expected one of {known}")
            image = select_row(dataset.location, dataset.manifest(), self.name).id
            what = f"recorded as a different picture than those of {TOMBSTONES}/{decision.tombstone}"
            decision = decision.model_copy(update={"id": image})
        manifest = dataset.manifest()
        listed = FingerprintChange(str(dataset), manifest.name, image, what)
        return _Plan((image - 1) // manifest.images_per_shard, listed, decision)

    def prepare(self, dataset: DatasetHandle, plan: _Plan) -> _Plan:
        image, decision = plan.listed.image, plan.decision
        change_fingerprints(
            dataset.location,
            plan.shard,
            lambda now: now.without([image]) if decision is None else now.with_decision(decision),
            purge=decision is None,
        )
        return plan

    def revision(self, dataset: DatasetHandle, plan: _Plan) -> Revision:
        return Revision(frozenset(), lambda _, rows: rows)

    def result(
        self, dataset: DatasetHandle, plan: _Plan, outcome: RevisionOutcome, version: VersionName
    ) -> FingerprintChange:
        return FingerprintChange(plan.listed.dataset, plan.listed.name, plan.listed.image, plan.listed.what, version)

    def _recognized(self, dataset: DatasetHandle) -> int:
        """Return the number of the image that has this name and fingerprints."""
        removed = [image for tombstone in read_tombstones(dataset.location) for image in tombstone.images]
        wanted = possible_ids(self.name)
        named = {each.id for each in removed if not wanted.isdisjoint((each.image_id, each.id))}
        known = by_image(read_fingerprints(dataset.location).values())
        found = (named or {select_row(dataset.location, dataset.manifest(), self.name).id}) & known.keys()
        if len(found) != 1:
            raise UsageError(f"expected the image_id or id of one image with fingerprints, got {self.name!r}")
        return found.pop()
