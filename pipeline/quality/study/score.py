"""The score of a correction study: how far masks are from their corrections."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from segmint.catalogs.dataset.manifest import manifest_generations
from segmint.catalogs.dataset.versions.record import VersionName
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.wording import counted
from segmint.operators.annotations.coco import parse_coco
from segmint.operators.annotations.image import Size
from segmint.operators.annotations.label_studio import iter_tasks
from segmint.operators.intervals import Interval
from segmint.pipeline.export.formats import MAIN_FILES, Format
from segmint.pipeline.quality.study.answers import read_answered
from segmint.pipeline.quality.study.corrections import Corrections, read_coco, read_label_studio
from segmint.pipeline.quality.study.files import CORRECTED, MANIFEST, read_json
from segmint.pipeline.quality.study.pairs import ImagePairs, StudyMask, ids_hold, pair_masks
from segmint.pipeline.quality.study.sample import SCHEMA_VERSION, mask_sha256
from segmint.pipeline.quality.study.shares import PAPER_SHARES, Share, share_over

_SHOWN = 10


@dataclass(frozen=True)
class Study:
    """The images drawn: their masks and (height, width), by id; and the version of the dataset."""

    masks: Mapping[int, list[StudyMask]]
    sizes: Mapping[int, Size]
    version: VersionName


@dataclass(frozen=True)
class StudyScore:
    """What became of the masks that were drawn.

    drawn = by_id + by_iou + deleted + unread + unanswered_masks; the corrections of `unread` masks cannot be read.
    `added` masks correct no mask that was drawn; `unreadable` has the reason for each returned mask that cannot be
    read. `superseded` answers and `foreign` images are ignored. `polygons` counts masks returned as polygons, which
    have no holes. `shares` is empty if there are no pairs. `version` is what the dataset was when the sample was drawn.
    """

    images: int
    answered: int
    drawn: int
    by_id: int
    by_iou: int
    deleted: int
    unread: int
    added: int
    unanswered_masks: int
    unreadable: list[str]
    foreign: int
    superseded: int
    polygons: int
    mean_iou: float | None
    shares: list[Share]
    version: VersionName

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the answer as lines for a person."""
        lines = [
            f"{self.answered:,} of {counted(self.images, 'image')} answered; of {counted(self.drawn, 'mask')} drawn "
            f"{self.by_id + self.by_iou:,} are paired ({self.by_id:,} by id, {self.by_iou:,} by IoU), "
            f"{self.deleted:,} deleted, {self.unread:,} unreadable, {self.unanswered_masks:,} in images without an "
            "answer",
            f"added: {counted(self.added, 'mask')}; unreadable: {counted(len(self.unreadable), 'mask')}; ignored: "
            f"{counted(self.foreign, 'image')} not drawn, {counted(self.superseded, 'outdated answer')}",
        ]
        lines += [f"  unreadable: {problem}" for problem in self.unreadable[:_SHOWN]]
        if self.polygons:
            lines.append(
                f"  {counted(self.polygons, 'mask')} came back as polygons, which lose holes and separate pieces, so "
                "that untouched masks score lower, too; run lengths do not (Label Studio: export JSON)"
            )
        if self.mean_iou is None:
            lines.append("no mask came back: there is nothing to score")
        else:
            lines.append(f"mean IoU {self.mean_iou:.4f}")
            lines += [_share_line(share) for share in self.shares]
        return [*lines, self.version.line()]


def score_study(folder: Location, corrected: Location | None) -> StudyScore:
    """Compare the masks of a study with their corrections, in a COCO or Label Studio file or the dataset's answers.

    Raises `UsageError` if there is no study, if its masks are not those that were drawn, or if the corrected file is
    missing or has another format.
    """
    study = load_study(folder)
    if corrected is not None and manifest_generations(corrected):
        corrections = read_answered(corrected, study.masks, study.sizes)
    else:
        corrections = read_corrections(corrected or folder / CORRECTED, study.sizes)
    by_id = ids_hold(study.masks, corrections.masks)
    unread = corrections.unreadable_ids if by_id else frozenset()
    images = {
        image: pair_masks([mask for mask in study.masks[image] if mask.id not in unread], masks, by_id)
        for image, masks in sorted(corrections.masks.items())
    }
    return _score(study, corrections, images)


def load_study(folder: Location) -> Study:
    """Read the masks that were drawn; raises `UsageError` if they are not those that the manifest pins."""
    manifest = read_json(folder / MANIFEST, f"{folder} is not a study: `segmint study sample` makes one")
    file = folder / MAIN_FILES[Format.COCO]
    document = read_json(file, f"the masks of the study {folder} are missing: sample it again")
    try:
        if manifest["schema_version"] != SCHEMA_VERSION:
            raise UsageError(f"{folder}: its schema_version is {manifest['schema_version']}, expected {SCHEMA_VERSION}")
        pinned = {mask["id"]: mask["sha256"] for image in manifest["images"] for mask in image["masks"]}
        sizes = {image["id"]: (image["height"], image["width"]) for image in manifest["images"]}
        dataset = manifest["dataset"]
        version = VersionName(dataset["digest"], dataset["number"])
        masks: dict[int, list[StudyMask]] = {image: [] for image in sizes}
        for annotation in document["annotations"]:
            segmentation = annotation["segmentation"]
            if pinned.pop(annotation["id"], None) != mask_sha256(segmentation):
                raise _changed(file, annotation["id"])
            rle = {"size": segmentation["size"], "counts": segmentation["counts"].encode("ascii")}
            masks[annotation["image_id"]].append(StudyMask(annotation["id"], rle))
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{folder}: {MANIFEST} or {file} is damaged ({error!r}): sample the study again") from error
    if pinned:
        raise _changed(file, next(iter(pinned)))
    return Study(masks, sizes, version)


def read_corrections(file: Location, sizes: Mapping[int, Size]) -> Corrections:
    """Read corrected masks; raises `UsageError` if the file is missing, or neither COCO nor Label Studio."""
    try:
        with file.open() as stream:
            first = _first_byte(stream)
            if first == b"[":
                return read_label_studio(iter_tasks(stream), sizes)
            return read_coco(_document(stream.read(), file), sizes)
    except NotFoundError as error:
        raise UsageError(f"{file} does not exist: name the file with the corrected masks with --corrected") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{file} cannot be read as corrected masks ({type(error).__name__}: {error}): expected COCO JSON, or Label "
            "Studio's JSON or JSON_MIN"
        ) from error


def _document(data: bytes, file: Location) -> Mapping[str, Any]:
    try:
        return parse_coco(data, str(file))
    except UsageError as error:
        raise ValueError(str(error)) from error


def _score(study: Study, corrections: Corrections, images: Mapping[int, ImagePairs]) -> StudyScore:
    pairs = [pair for image in images.values() for pair in image.pairs]
    deleted = sum(len(image.deleted) for image in images.values())
    drawn = {image: len(masks) for image, masks in study.masks.items()}
    unanswered = sum(count for image, count in drawn.items() if image not in images)
    ious = [[pair.iou for pair in image.pairs] for image in images.values()]
    return StudyScore(
        images=len(study.masks),
        answered=len(images),
        drawn=sum(drawn.values()),
        by_id=sum(pair.by_id for pair in pairs),
        by_iou=sum(not pair.by_id for pair in pairs),
        deleted=deleted,
        unread=sum(drawn.values()) - len(pairs) - deleted - unanswered,
        added=sum(image.added for image in images.values()),
        unanswered_masks=unanswered,
        unreadable=corrections.unreadable,
        foreign=corrections.foreign,
        superseded=corrections.superseded,
        polygons=corrections.polygons,
        mean_iou=sum(pair.iou for pair in pairs) / len(pairs) if pairs else None,
        shares=[share_over(threshold, ious, deleted) for threshold in PAPER_SHARES] if pairs else [],
        version=study.version,
    )


def _share_line(share: Share) -> str:
    clustered = "" if share.clustered is None else f"; by image {_percent(share.clustered)}"
    return (
        f"over {share.threshold:.2f} IoU: {share.share:.1%} of {share.pairs:,} pairs (95 %: {_percent(share.wilson)}"
        f"{clustered}); {share.of_all:.1%} with deleted masks as failures; SA-1B in the paper: {share.paper:.0%}"
    )


def _percent(interval: Interval) -> str:
    return f"{interval[0]:.1%} to {interval[1]:.1%}"


def _changed(file: Location, mask: int) -> UsageError:
    return UsageError(
        f"{file} has changed since it was drawn (mask {mask}): corrected masks belong in a separate file; sample the "
        "study again"
    )


def _first_byte(stream: BinaryIO) -> bytes:
    """Return the first byte that is not white space; the stream is rewound."""
    byte = stream.read(1)
    while byte.isspace():
        byte = stream.read(1)
    stream.seek(0)
    return byte
