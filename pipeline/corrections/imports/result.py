"""List and result of an import, as text and JSON."""

from collections.abc import Mapping
from dataclasses import dataclass

from segmint.catalogs.layout import image_stem
from segmint.infra.wording import counted
from segmint.operators.rows import Row
from segmint.pipeline.corrections.imports.merge import ImportedRow
from segmint.pipeline.corrections.imports.staging import StagedMasks
from segmint.pipeline.corrections.mask_revision import RevisionCounts, RevisionList, RevisionResult

COUNTED = ("same", "corrected", "added", "deleted", "empty", "repeated")
"""Outcomes of masks, as `ImportedRow` counts them."""


class ImportCounts(RevisionCounts):
    """Counts of a file's images and masks by outcome."""

    def count(self, row: Row, merged: ImportedRow) -> None:
        """Count an image."""
        name = image_stem(row["id"])
        if merged.left is not None:
            self.leave(name, merged.left.value)
            return
        self.masks.update({each: getattr(merged, each) for each in COUNTED})
        if merged.row is not row:
            self.images += 1
            changes = [f"{getattr(merged, each)} {each}" for each in COUNTED[1:4] if getattr(merged, each)]
            self.example(f"{name}: {', '.join(changes) or 'only its columns'}")


@dataclass(frozen=True)
class ImportList(RevisionList):
    """List of the changes that an import would make.

    `masks` counts the file's masks by outcome: already in the image (`same`), replacing a mask (`corrected`), new
    (`added`), without pixels (`empty`), or `repeated`. It also counts existing masks that are `deleted`.
    `skipped_images` counts the file's skipped images by reason. `skipped_masks` counts another dataset's masks that fit
    no image here.
    """

    dataset: str
    name: str
    file: str
    sha256: str  # of the file, or the version digest of another dataset
    mode: str
    images: int  # that change
    named: int  # images of the dataset that the file names
    masks: Mapping[str, int]
    skipped_images: Mapping[str, int]
    skipped_masks: Mapping[str, int]
    unknown: int  # images of the file that are not in the dataset
    first_unknown: str | None
    ambiguous: int  # images of the file whose name matches several images of the dataset
    first_ambiguous: str | None
    superseded: int  # repeated entries for an image in the file
    unreadable: int  # masks and entries of the file that can't be read
    problems: tuple[str, ...]  # the first of them
    examples: tuple[str, ...]
    shards: tuple[int, ...]  # that change

    def lines(self) -> list[str]:
        """Return the list as lines of text."""
        return [
            f"{counted(self.images, 'image')} of {self.dataset} would change{self.in_shards()}",
            *self.found(),
            *(f"  {example}" for example in self.examples),
        ]

    def found(self) -> list[str]:
        """Return lines on the file's contents."""
        lines = [f"{self.file} has masks for {counted(self.named, 'image')}: {self.counted_masks() or 'none'}"]
        lines += self.skipped_lines()
        lines += [f"not carried over: {counted(n, 'mask')}: {why}" for why, n in self.skipped_masks.items()]
        for count, what, first in (
            (self.unknown, "not in the dataset", self.first_unknown),
            (self.superseded, "more than once in the file; the one saved last is used, or the first", None),
        ):
            if count:
                lines.append(f"skipped: {counted(count, 'image')} {what}{f', such as {first}' if first else ''}")
        return [*lines, *(f"  {problem}" for problem in self.problems)]

    @property
    def not_checked(self) -> list[str]:
        """Images and masks that couldn't be imported, as text."""
        several = f"{counted(self.ambiguous, 'image')} with several matches, such as {self.first_ambiguous}"
        unreadable = f"unreadable: {counted(self.unreadable, 'mask or entry')}".replace("entrys", "entries")
        return [*super().not_checked, *[several] * bool(self.ambiguous), *[unreadable] * bool(self.unreadable)]

    def reason(self) -> str:
        """Return the reason that the version records."""
        name = self.file.rstrip("/").rpartition("/")[2]
        said = self.counted_masks("corrected", "added", "deleted") or "no mask"
        return f"{name}, SHA-256 {self.sha256[:12]}, {self.mode}: {said} in {counted(self.images, 'image')}"


@dataclass(frozen=True)
class ImportResult(RevisionResult[ImportList]):
    """Result of an import."""

    def lines(self) -> list[str]:
        """Return the result as lines of text."""
        if not self.listed.images:
            return [f"nothing to import into {self.listed.dataset}", *self.listed.found(), self.version.line()]
        return [
            f"{counted(self.listed.images, 'image')} changed in {counted(len(self.changed_shards), 'shard')}",
            *self.listed.found(),
            "the previous masks were deleted, including older versions",
            *self.last_lines(),
        ]


def list_of(
    names: tuple[str, str, str],
    sha256: str,
    mode: str,
    tally: ImportCounts,
    staged: StagedMasks,
    shards: tuple[int, ...],
) -> ImportList:
    """Return the list of an import. `names` are the dataset's location and name, and the file's location."""
    return ImportList(
        dataset=names[0],
        name=names[1],
        file=names[2],
        sha256=sha256,
        mode=mode,
        images=tally.images,
        named=staged.images,
        masks={each: tally.masks[each] for each in COUNTED},
        skipped_images=dict(tally.left.most_common()),
        skipped_masks=staged.left,
        unknown=staged.unknown,
        first_unknown=staged.first_unknown,
        ambiguous=staged.ambiguous,
        first_ambiguous=staged.first_ambiguous,
        superseded=staged.superseded,
        unreadable=staged.all_unreadable,
        problems=staged.unreadable,
        examples=tuple(tally.examples),
        shards=shards,
    )
