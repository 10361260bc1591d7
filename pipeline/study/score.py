"""The score of a correction study: how far masks are from what people made of them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import join
from segmint.pipeline.export.formats import MAIN_FILES, Format
from segmint.pipeline.export.label_studio import load_brush
from segmint.pipeline.study.corrections import Corrections, Size, read_coco, read_label_studio
from segmint.pipeline.study.pairs import ImagePairs, StudyMask, ids_hold, pair_masks
from segmint.pipeline.study.sample import MANIFEST, SCHEMA_VERSION, mask_sha256
from segmint.pipeline.study.shares import PAPER_SHARES, Interval, Share, share_over

CORRECTED = "corrected.json"
"""Where corrected masks are looked for, in the study's folder, when no other file is named."""

_SHOWN = 10


@dataclass(frozen=True)
class Study:
    """What was drawn: the masks of each image, and its (height, width), by the image's number."""

    masks: Mapping[int, list[StudyMask]]
    sizes: Mapping[int, Size]


@dataclass(frozen=True)
class StudyScore:
    """What became of the masks that were drawn.

    drawn = by_id + by_iou + deleted + unread + unanswered_masks; the correction of those `unread` cannot be read.
    `added` came back and are no correction of a mask that was drawn; `unreadable` says why of each that came back and
    cannot be read. `superseded` answers and `foreign` images were passed over. `polygons` counts masks that came back
    as such, without holes. `shares` are empty without a pair.
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

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    def lines(self) -> list[str]:
        """As a person reads it."""
        lines = [
            f"{self.answered:,} of {self.images:,} images answered; of {self.drawn:,} masks drawn "
            f"{self.by_id + self.by_iou:,} are paired ({self.by_id:,} by id, {self.by_iou:,} by IoU), "
            f"{self.deleted:,} deleted, {self.unread:,} unreadable, {self.unanswered_masks:,} in images without an "
            "answer",
            f"added: {self.added:,} masks; unreadable: {len(self.unreadable):,} masks; passed over: "
            f"{self.foreign:,} images that were not drawn, {self.superseded:,} answers that were not the latest",
        ]
        lines += [f"  unreadable: {problem}" for problem in self.unreadable[:_SHOWN]]
        if self.polygons:
            lines.append(
                f"  {self.polygons:,} masks came back as polygons, which lose holes and separate pieces: what "
                "nobody touched scores lower, too; run lengths do not (Label Studio: export JSON)"
            )
        if self.mean_iou is None:
            return [*lines, "no mask came back: there is nothing to score"]
        lines.append(f"mean IoU {self.mean_iou:.4f}")
        return lines + [_share_line(share) for share in self.shares]


def score_study(folder: str, storage: Storage, corrected: str | None) -> StudyScore:
    """Compares the masks of a study with their corrections, in a file of COCO or Label Studio.

    Raises `UsageError` where there is no study, where its masks are no longer those that were drawn, or where the
    corrected file is absent or neither.
    """
    study = load_study(folder, storage)
    corrections = read_corrections(corrected or join(folder, CORRECTED), storage, study.sizes)
    by_id = ids_hold(study.masks, corrections.masks)
    unread = corrections.unreadable_ids if by_id else frozenset()
    images = {
        image: pair_masks([mask for mask in study.masks[image] if mask.id not in unread], masks, by_id)
        for image, masks in sorted(corrections.masks.items())
    }
    return _score(study, corrections, images)


def load_study(folder: str, storage: Storage) -> Study:
    """The masks that were drawn; raises `UsageError` where they are not those that the manifest pins."""
    manifest = _read_json(join(folder, MANIFEST), storage, f"{folder} is no study: segmint study sample makes one")
    file = join(folder, MAIN_FILES[Format.COCO])
    document = _read_json(file, storage, f"the masks of the study {folder} are gone: sample it again")
    try:
        if manifest["schema_version"] != SCHEMA_VERSION:
            raise UsageError(f"{folder}: its schema_version is {manifest['schema_version']}, expected {SCHEMA_VERSION}")
        pinned = {mask["id"]: mask["sha256"] for image in manifest["images"] for mask in image["masks"]}
        sizes = {image["id"]: (image["height"], image["width"]) for image in manifest["images"]}
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
    return Study(masks, sizes)


def read_corrections(uri: str, storage: Storage, sizes: Mapping[int, Size]) -> Corrections:
    """The corrected masks in a file; raises `UsageError` where it is absent, or neither COCO nor Label Studio's."""
    try:
        with storage.open(uri) as stream:
            first = _first_byte(stream)
            if first == b"[":
                return read_label_studio(_items(stream), sizes, load_brush())
            return read_coco(json.load(stream), sizes)
    except NotFoundError as error:
        raise UsageError(f"{uri} is not there: name the file with the corrected masks by --corrected") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{uri} holds no corrected masks that can be read ({type(error).__name__}: {error}): expected COCO's JSON, "
            "or the JSON or JSON_MIN that Label Studio exports"
        ) from error


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
    )


def _share_line(share: Share) -> str:
    clustered = "" if share.clustered is None else f"; by image {_percent(share.clustered)}"
    return (
        f"over {share.threshold:.2f} IoU: {share.share:.1%} of {share.pairs:,} pairs (95 %: {_percent(share.wilson)}"
        f"{clustered}); {share.of_all:.1%} with deleted masks as failures; SA-1B in the paper: {share.paper:.0%}"
    )


def _percent(interval: Interval) -> str:
    return f"{interval[0]:.1%} to {interval[1]:.1%}"


def _changed(file: str, mask: int) -> UsageError:
    return UsageError(
        f"{file} is no longer what was drawn (mask {mask}): corrected masks go into a file of their own; sample the "
        "study again"
    )


def _read_json(uri: str, storage: Storage, otherwise: str) -> Any:
    try:
        return json.loads(storage.read(uri))
    except (NotFoundError, ValueError, RecursionError) as error:
        raise UsageError(f"{otherwise} ({uri}: {error})") from error


def _first_byte(stream: BinaryIO) -> bytes:
    """The first byte that is no white space; the stream is left at its start."""
    byte = stream.read(1)
    while byte.isspace():
        byte = stream.read(1)
    stream.seek(0)
    return byte


def _items(stream: BinaryIO) -> Iterator[Any]:
    """The items of a JSON array as they come: a task holds megabytes of numbers."""
    import ijson  # type: ignore[import-untyped]  # comes with Label Studio's SDK

    try:
        yield from ijson.items(stream, "item", use_float=True)
    except ijson.JSONError as error:
        raise ValueError(str(error)) from error
