"""Work of annotators in a dataset: submissions, which are immutable files, and the assignments of images.

Each image has assignment 0. If two annotators work on it, it also has assignment 1. A submission is the complete result
for its image, stored as changes to the state that `base` identifies. The image's other masks, which the submission
neither replaces nor deletes, are kept. A later submission of the same assignment replaces an earlier one. `segmint
merge` writes submissions into the tables.

The owner of a server can return a submission to its annotator. The server then puts another file next to the
submission. The assignment counts as returned until the annotator submits again.

Annotation files of an image, as canonical JSON.

Each file is written once and never changed. If the image is taken down, its files are deleted.

Validation of external masks' run lengths: COCO's compressed form, in the canonical encoding that segmint writes.
"""

import re
import unicodedata
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from segmint.catalogs.dataset.tombstones import read_tombstones, removed_images
from segmint.catalogs.frozen import ExactCount, Frozen, Sha256
from segmint.catalogs.layout import MOST_PIXELS, bytes_sha256, canonical_json, json_sha256, wrong_fields
from segmint.infra.arrays import Ints, Size
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.errors import NotFoundError, ObjectTooLargeError
from segmint.infra.storage.location import Location

SavedAt = Annotated[str, Field(pattern=r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\z")]
"""Time of a save: UTC, in whole seconds."""


class RemovedImageError(SegmintError):
    """The image was taken down, so a new file for it was not kept."""


class SavedRecord(Frozen):
    """Content of an annotation file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    saved_at: SavedAt

    def to_json(self) -> bytes:
        return canonical_json(self.model_dump(mode="json"))

    def same_work(self, other: Self) -> bool:
        """Return whether another record differs only in the time of the save, as after a retried save."""
        return self.model_copy(update={"saved_at": other.saved_at}) == other


S = TypeVar("S", bound=SavedRecord)


def parse_saved(kind: type[S], data: bytes, problem: Callable[[str], SegmintError]) -> S:
    """Parse an annotation file. Raises the error that `problem` creates if the file is invalid."""
    try:
        saved = kind.model_validate_json(data)
    except ValidationError as error:
        raise problem(wrong_fields(error)) from error
    if saved.to_json() != data:
        raise problem("it is not in canonical form")
    return saved


def read_saved(file: Location, most: int, problem: type[SegmintError]) -> bytes:
    """Read a file of up to `most` bytes. Raises `problem` if the file is larger or missing."""
    try:
        return file.read(most)
    except NotFoundError as error:
        raise problem(f"{file} is gone") from error
    except ObjectTooLargeError as error:
        raise problem(f"{file} has {error.size:,} bytes: expected at most {most:,}") from error


def put_saved(dataset: Location, path: str, data: bytes, ordinal: int, kind: str) -> bool:
    """Write an annotation file of an image if its name is free, and return whether the store now contains this file.

    This never changes an existing file. If the image was taken down, it deletes the new file again and raises
    `RemovedImageError`. A takedown at the same time can't be missed: this function writes the file before it reads the
    tombstones, and a takedown writes its tombstone before it lists the files. `kind` is the plural name of such files,
    for messages.
    """
    file = dataset / path
    won = file.put_if_absent(data)
    if ordinal in removed_images(read_tombstones(dataset)):
        file.purge()
        raise RemovedImageError(f"image {ordinal + 1} was taken down: its {kind} are not kept")
    return won


ANNOTATIONS = "annotations"
RATINGS = "ratings"
"""Folder in `annotations/` for ratings of single masks."""

_NAME = re.compile(r"(?P<assignment>[01])\.(?P<n>[1-9]\d{0,8})\.json", re.ASCII)
_RETURN = ".return.json"
_ORDINAL = re.compile(r"0|[1-9]\d{0,15}", re.ASCII)


class SubmissionName(NamedTuple):
    """Components of a submission's path. Names sort by image, assignment, and number."""

    ordinal: int
    assignment: int
    n: int


def submission_path(ordinal: int, assignment: int, n: int) -> str:
    """Return the path of a submission's file below the dataset."""
    return f"{ANNOTATIONS}/{ordinal}/{assignment}.{n}.json"


def parse_submission_path(path: str) -> SubmissionName | None:
    """Parse the path of a submission's file below the dataset. Returns None for any other path."""
    folder, _, rest = path.partition("/")
    ordinal, _, name = rest.partition("/")
    match = _NAME.fullmatch(name)
    if folder != ANNOTATIONS or _ORDINAL.fullmatch(ordinal) is None or match is None:
        return None
    return SubmissionName(int(ordinal), int(match["assignment"]), int(match["n"]))


def return_path(name: SubmissionName) -> str:
    """Return the path, below the dataset, of the file that returns a submission."""
    return submission_path(*name).removesuffix(".json") + _RETURN


def parse_return_path(path: str) -> SubmissionName | None:
    """Parse the path of a return into the name of the returned submission. Returns None for any other path."""
    return parse_submission_path(f"{path.removesuffix(_RETURN)}.json") if path.endswith(_RETURN) else None


def list_submissions(dataset: Location) -> Iterator[SubmissionName]:
    """Yield the names of all submissions in a dataset, in order. Other files are ignored."""
    names = (parse_submission_path(f"{ANNOTATIONS}/{entry.name}") for entry in (dataset / ANNOTATIONS).walk())
    yield from sorted(name for name in names if name is not None)


def submissions_of(dataset: Location, ordinal: int) -> list[SubmissionName]:
    """Return the names of an image's submissions, ordered by assignment and number."""
    folder = f"{ANNOTATIONS}/{ordinal}"
    names = (parse_submission_path(f"{folder}/{entry.name}") for entry in (dataset / folder).list())
    return sorted(name for name in names if name is not None)


def latest_submissions(names: Iterable[SubmissionName]) -> dict[int, dict[int, SubmissionName]]:
    """Return the last submission of each assignment, keyed first by ordinal and then by assignment."""
    last: dict[int, dict[int, SubmissionName]] = {}
    for name in sorted(names):
        last.setdefault(name.ordinal, {})[name.assignment] = name
    return last


def image_of(path: str) -> int | None:
    """Return the ordinal of the image to which a file in `annotations/` belongs, or None for any other path."""
    folder, _, rest = path.partition("/")
    if rest.startswith(f"{RATINGS}/"):
        rest = rest.removeprefix(f"{RATINGS}/")
    ordinal, slash, _ = rest.partition("/")
    return int(ordinal) if folder == ANNOTATIONS and slash and _ORDINAL.fullmatch(ordinal) else None


def of_images(dataset: Location, ordinals: Container[int]) -> list[str]:
    """Return the paths of all annotation files of these images.

    In a bucket, this includes deleted files that still have older versions, because takedowns must delete those, too.
    """
    paths = (f"{ANNOTATIONS}/{name}" for name in (dataset / ANNOTATIONS).walk_ever())
    return [path for path in paths if (ordinal := image_of(path)) is not None and ordinal in ordinals]


def purge_of_images(dataset: Location, ordinals: Container[int]) -> int:
    """Delete the annotation files of these images, including older versions, and return the number of files."""
    paths = of_images(dataset, ordinals)
    for path in paths:
        (dataset / path).purge()
    return len(paths)


_BITS = 5
_MOST_GROUPS = 12
_MORE = 0x20
_SIGN = 0x10
_VALUE = 0x1F
_ASCII = 48
_LAST_SYMBOL = 0x3F


def canonical_area(counts: str, size: Size) -> int:
    """Return the number of pixels in a mask of `size` (height, width) with the compressed run lengths `counts`.

    Equal masks must have equal counts, so only the canonical encoding is valid. Raises `ValueError` in any of these
    cases: the text contains a character outside the alphabet or ends too early, a number takes more groups than
    necessary, a run after the first one is empty, or the runs don't fill the size.
    """
    runs = _numbers(counts)
    runs[1::2] = np.cumsum(runs[1::2])  # each number from the fourth on is the difference from the run two before
    runs[2::2] = np.cumsum(runs[2::2])
    pixels = size[0] * size[1]
    if runs.min() < 0 or runs.max() > pixels or int(runs.sum()) != pixels:
        raise ValueError(f"the runs do not fill {size[1]} x {size[0]} pixels")
    if (runs[1:] == 0).any():
        raise ValueError("a run without pixels after the first")
    return int(runs[1::2].sum())


def _numbers(counts: str) -> Ints:
    # Non-ASCII characters become bytes outside the alphabet.
    data = counts.encode("utf-8", errors="surrogatepass")
    symbols = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - _ASCII
    if symbols.size == 0:
        raise ValueError("no run lengths")
    if symbols.min() < 0 or symbols.max() > _LAST_SYMBOL or symbols[-1] & _MORE:
        raise ValueError("a character outside COCO's alphabet, or a truncated end")
    last = np.flatnonzero((symbols & _MORE) == 0)
    first = np.concatenate(([0], last[:-1] + 1))
    groups = last - first + 1
    if groups.max() > _MOST_GROUPS:
        raise ValueError("a number of more than 60 bits")
    long = last[groups > 1]
    needless = np.where(symbols[long - 1] & _SIGN, _VALUE, 0)  # a group that only repeats the sign of the previous one
    if (symbols[long] & _VALUE == needless).any():
        raise ValueError("a number in more groups than it needs")
    shifts = _BITS * (np.arange(symbols.size) - np.repeat(first, groups))
    numbers: Ints = np.add.reduceat((symbols & _VALUE) << shifts, first)
    negative = (symbols[last] & _SIGN) != 0
    numbers[negative] -= np.int64(1) << (_BITS * groups[negative])
    return numbers


MOST_BYTES = 32 << 20
"""Maximum size of a submission in bytes."""

MOST_MASKS = 10_000
"""Maximum number of masks per image. A mask's id is the image's id times this number, plus the mask's number."""

MOST_PROMPTS = 10_000
_NAME_LENGTH = 100
_MOST_RETURN_BYTES = 32 << 10
_READERS = 16
_NEAR = 1e-6  # pixels that a box may exceed its image, to allow for rounding

_CONTROL = frozenset({"Cc", "Cs", "Zl", "Zp"})  # control characters, surrogates, line and paragraph separators
_JOINERS = "\u200c\u200d"  # required in names of several scripts
_SHOWN = 60  # maximum length of a wrong value in an error


class SubmissionError(SegmintError):
    """A submission can't be used. The message names the submission and gives the reason."""


def _printable(text: str) -> str:
    if any(unicodedata.category(character) in _CONTROL for character in text):
        raise ValueError("it has a control character")
    return text


def _nonempty(text: str) -> str:
    if not text.strip():
        raise ValueError("it is empty")
    return _printable(text)


def _lines(text: str) -> str:
    for line in text.split("\n"):
        _printable(line)
    return text


Annotator = Annotated[str, Field(max_length=_NAME_LENGTH), AfterValidator(_nonempty)]
"""Name that the annotator entered."""
_Label = Annotated[str, Field(max_length=1000), AfterValidator(_printable)]
_Comment = Annotated[str, Field(min_length=1, max_length=2000), AfterValidator(_lines)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Side = Annotated[int, Field(ge=1, le=65_535)]
_Pixels = Annotated[float, Field(ge=0, le=65_535, allow_inf_nan=False)]
ImageNumber = Annotated[int, Field(ge=1, lt=1 << 53)]
"""Number of an image, which is its ordinal + 1."""
FileNumber = Annotated[int, Field(ge=1, lt=10**9)]
"""Number of an annotation file among those of the same image and person."""
_FormerMasks = Annotated[tuple["FormerMask", ...], Field(max_length=MOST_MASKS)]


def check_name(text: str) -> str:
    """Validate an annotator's name and return it unchanged.

    Raises `UsageError` if submissions can't contain the name, or if it contains invisible characters, which can change
    the direction of nearby text.
    """
    try:
        name = TypeAdapter(Annotator).validate_python(text)
    except ValidationError as error:
        raise UsageError(f"the name {text[:_SHOWN]!r} can't be used: {wrong_fields(error)}") from error
    if any(unicodedata.category(letter) == "Cf" and letter not in _JOINERS for letter in name):
        raise UsageError(f"the name {text[:_SHOWN]!a} can't be used: it contains invisible characters")
    return name


class _StrictRecord(Frozen):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class PointPrompt(_StrictRecord):
    """Click, in pixels of the released image. `label` is 1 inside the object and 0 outside."""

    kind: Literal["point"] = "point"
    x: _Pixels
    y: _Pixels
    label: Literal[0, 1]


class BoxPrompt(_StrictRecord):
    """Box, in pixels of the released image."""

    kind: Literal["box"] = "box"
    x: _Pixels
    y: _Pixels
    w: _Pixels
    h: _Pixels


class MaskPrompt(_StrictRecord):
    """Existing mask, which the submitted mask's `parent` identifies."""

    kind: Literal["mask"] = "mask"


class TextPrompt(_StrictRecord):
    """Text that names the object, and the SHA-256 of the CLIP model that embedded the text."""

    kind: Literal["text"] = "text"
    text: Annotated[_Label, AfterValidator(_nonempty)]
    clip_sha256: Sha256 | None = None


Prompt = Annotated[PointPrompt | BoxPrompt | MaskPrompt | TextPrompt, Field(discriminator="kind")]


class SubmittedMask(_StrictRecord):
    """A mask in a submission. If it replaces a mask of the dataset, `parent` is that mask's id.

    If `label` is None, the mask keeps the label of its parent. An empty label removes the parent's label.
    """

    counts: str
    source: Literal["assisted", "corrected", "manual"]
    seconds: _Seconds = 0.0
    label: _Label | None = None
    prompts: Annotated[tuple[Prompt, ...], Field(max_length=MOST_PROMPTS)] = ()
    parent: ExactCount | None = None


class FormerMask(_StrictRecord):
    """Earlier state of a mask in the dataset that a submission replaces or deletes."""

    id: ExactCount
    counts: str


class Submission(SavedRecord):
    """An annotator's result for an image. `size` is its (height, width) in pixels of the released image.

    Create a submission with `from_value` or `from_json`, whose errors describe what is wrong.
    """

    format: Literal["segmint submission"] = "segmint submission"
    schema_version: Literal[1] = 1
    image: ImageNumber
    assignment: Literal[0, 1] = 0
    n: FileNumber
    base: Sha256  # `base_digest` of the image when the page was opened
    size: tuple[_Side, _Side]
    annotator: Annotator
    stage: Literal["assisted", "semi"]
    seconds: _Seconds  # of active work on the image
    complete: bool  # the annotator's statement that no mask is missing
    comment: _Comment | None = None  # on the image, for the people who review it
    flag: bool = False  # the annotator asks somebody to look at the image
    model: Sha256 | None = None  # of the weights that made the predictions
    masks: Annotated[tuple[SubmittedMask, ...], Field(max_length=MOST_MASKS)] = ()
    replaced: _FormerMasks = ()
    deleted: _FormerMasks = ()

    @classmethod
    def from_json(cls, data: bytes, where: str = "the submission") -> Self:
        """Parse a submission's file. Raises `SubmissionError`, whose message starts with `where`, if it is invalid."""
        if len(data) > MOST_BYTES:
            raise SubmissionError(f"{where} has {len(data):,} bytes: expected at most {MOST_BYTES:,}")
        return parse_saved(cls, data, lambda wrong: SubmissionError(f"{where} is not a submission: {wrong}"))

    @classmethod
    def from_value(cls, value: Mapping[str, Any]) -> Self:
        """Convert a JSON object to a submission.

        Raises `SubmissionError` if the object isn't a valid submission.
        """
        try:
            data = canonical_json(value)
            submission = cls.model_validate_json(data)
        except ValidationError as error:
            raise SubmissionError(f"the submission cannot be used: {wrong_fields(error)}") from error
        except (ValueError, RecursionError) as error:
            raise SubmissionError(f"the submission cannot be used: {str(error)[:200]}") from error
        size = len(submission.to_json())
        if size > MOST_BYTES:
            raise SubmissionError(f"the submission has {size:,} bytes: expected at most {MOST_BYTES:,}")
        return submission

    @property
    def ordinal(self) -> int:
        """The ordinal of the image."""
        return self.image - 1

    @property
    def path(self) -> str:
        """Path of the submission's file below the dataset."""
        return submission_path(self.ordinal, self.assignment, self.n)

    @property
    def sha256(self) -> str:
        """SHA-256 of the submission's file."""
        return bytes_sha256(self.to_json())

    @model_validator(mode="after")
    def _check(self) -> Self:
        height, width = self.size
        if height * width > MOST_PIXELS:
            raise ValueError(f"size: {width} x {height} is over {MOST_PIXELS:,} pixels")
        for kind in ("masks", "replaced", "deleted"):
            for place, mask in enumerate(getattr(self, kind)):
                try:
                    area = canonical_area(mask.counts, (height, width))
                except ValueError as error:
                    raise ValueError(f"{kind}.{place}.counts: {error}") from error
                if not area and kind == "masks":  # former masks from a folder's JSON may be empty
                    raise ValueError(f"{kind}.{place}.counts: a mask without pixels")
        for place, mask in enumerate(self.masks):
            for number, prompt in enumerate(mask.prompts):
                if not _is_inside(prompt, (height, width)):
                    raise ValueError(f"masks.{place}.prompts.{number}: outside the {width} x {height} pixels")
        self._check_ids()
        return self

    def _check_ids(self) -> None:
        former = [mask.id for mask in (*self.replaced, *self.deleted)]
        parents = {mask.parent for mask in self.masks if mask.parent is not None}
        for id in (*former, *sorted(parents)):
            if id // MOST_MASKS != self.image:
                raise ValueError(f"mask {id} is not of image {self.image}")
        if len(set(former)) < len(former):
            raise ValueError("replaced, deleted: a mask is listed twice")
        if parents != {mask.id for mask in self.replaced}:
            raise ValueError("replaced: expected exactly the parents of the masks")
        if any(mask.source == "corrected" and mask.parent is None for mask in self.masks):
            raise ValueError("masks: a corrected mask needs a parent")


class Return(SavedRecord):
    """Request that an annotator revise submission `n` of an assignment. `by` is the owner of the server."""

    format: Literal["segmint return"] = "segmint return"
    schema_version: Literal[1] = 1
    image: ImageNumber
    assignment: Literal[0, 1]
    n: FileNumber
    by: Annotator
    comment: _Comment

    @property
    def name(self) -> SubmissionName:
        return SubmissionName(self.image - 1, self.assignment, self.n)


def _is_inside(prompt: Prompt, size: Size) -> bool:
    height, width = size
    if isinstance(prompt, PointPrompt):
        return prompt.x <= width and prompt.y <= height
    if isinstance(prompt, BoxPrompt):
        return prompt.x + prompt.w <= width + _NEAR and prompt.y + prompt.h <= height + _NEAR
    return True


def put_submission(dataset: Location, submission: Submission) -> bool:
    """Put a submission if its number is free. `put_saved` describes the result and the errors."""
    return put_saved(dataset, submission.path, submission.to_json(), submission.ordinal, "submissions")


def read_submission(dataset: Location, name: SubmissionName) -> Submission:
    """Read a submission.

    Raises `SubmissionError` if its file is missing, can't be read, or contains another submission.
    """
    file = dataset / submission_path(*name)
    submission = Submission.from_json(read_saved(file, MOST_BYTES, SubmissionError), str(file))
    if (submission.ordinal, submission.assignment, submission.n) != tuple(name):
        raise SubmissionError(f"{file} identifies itself as {submission.path}")
    return submission


def read_submissions(dataset: Location, ordinal: int) -> list[Submission]:
    """Read an image's submissions, ordered by assignment and number. Raises the errors of `read_submission`."""
    return [read_submission(dataset, name) for name in submissions_of(dataset, ordinal)]


def read_assignment(dataset: Location, names: Sequence[SubmissionName]) -> list[Submission]:
    """Read the submissions of an assignment, in order.

    Raises `SubmissionError` if the last submission can't be read. Earlier submissions only matter for the time that
    people worked, so this function skips those that it can't read.
    """
    found = []
    *earlier, last = names
    for name in earlier:
        try:
            found.append(read_submission(dataset, name))
        except SubmissionError:  # the audit reports it
            continue
    return [*found, read_submission(dataset, last)]


def put_return(dataset: Location, returned: Return) -> bool:
    """Put a return unless its submission already has one. `put_saved` describes the result and the errors."""
    return put_saved(dataset, return_path(returned.name), returned.to_json(), returned.name.ordinal, "returns")


def read_return(dataset: Location, name: SubmissionName) -> Return:
    """Read the return of a submission.

    Raises `SubmissionError` if its file is missing, can't be read, or belongs to another submission.
    """
    file = dataset / return_path(name)
    data = read_saved(file, _MOST_RETURN_BYTES, SubmissionError)
    returned = parse_saved(Return, data, lambda wrong: SubmissionError(f"{file} is not a return: {wrong}"))
    if returned.name != name:
        raise SubmissionError(f"{file} identifies itself as {return_path(returned.name)}")
    return returned


def returned_submissions(dataset: Location, ordinal: int | None = None) -> set[SubmissionName]:
    """List the returned submissions of an image, or of all images. A damaged return counts, too."""
    folder = ANNOTATIONS if ordinal is None else f"{ANNOTATIONS}/{ordinal}"
    entries = (dataset / folder).walk() if ordinal is None else (dataset / folder).list()
    names = (parse_return_path(f"{folder}/{entry.name}") for entry in entries)
    return {name for name in names if name is not None}


def read_returns(dataset: Location, ordinal: int | None = None) -> dict[SubmissionName, Return]:
    """Read the returns for an image, or for all images.

    Returns that can't be read are skipped; the audit reports them.
    """

    def read(name: SubmissionName) -> Return | None:
        try:
            return read_return(dataset, name)
        except SubmissionError:
            return None

    found = map_ahead(read, sorted(returned_submissions(dataset, ordinal)), _READERS, 4 * _READERS, "returns")
    return {returned.name: returned for returned in found if returned is not None}


def base_digest(jpeg: bytes, masks: Sequence[Mapping[str, Any]]) -> str:
    """Return the digest of the state from which a submission starts: the image's released JPEG and its masks.

    In a dataset without images, `jpeg` is empty. For each mask, in order of ids, the digest covers its `annotation_id`
    and the counts of its `segmentation`.
    """
    pairs = sorted((int(mask["annotation_id"]), str(mask["segmentation"]["counts"])) for mask in masks)
    value = {"jpeg": bytes_sha256(jpeg), "masks": pairs}
    return json_sha256(value)


Merged = Mapping[str, Any] | None
"""Value of the column `submission` in an image's row.

It contains the `assignment` and `n` of the last merged submission. Both are null if no submission was merged.
"""


def assignment_to_merge(merged: Merged, assignments: Iterable[int]) -> int | None:
    """Return which of an image's assignments to merge, or None if the image has no submissions.

    If an assignment was merged before, the same assignment is merged again. Otherwise, the lowest assignment with
    submissions is merged.
    """
    before = merged_assignment(merged)
    if before is not None:
        return before
    return min(assignments, default=None)


def merged_assignment(merged: Merged) -> int | None:
    """Return the assignment whose submission was merged into an image's row, or None if no submission was merged."""
    assignment = (merged or {}).get("assignment")
    if assignment is None:
        return None
    return int(assignment)


def is_merged(merged: Merged, assignment: int, n: int) -> bool:
    """Return whether submission `n` of an assignment, or a later one, was merged into the image's row."""
    return merged_assignment(merged) == assignment and n <= ((merged or {}).get("n") or 0)


def last_of_states(submissions: Iterable[Submission]) -> list[Submission]:
    """Return an assignment's last submission for each state of the image. `submissions` must be in order."""
    return [list(same)[-1] for _, same in groupby(submissions, key=lambda submission: submission.base)]


def independent_submissions(submissions: Sequence[Submission]) -> tuple[Submission, Submission] | None:
    """Return one submission from each of two annotators who worked independently, so that they can be compared.

    Both submissions must start from the same state of the image. If both assignments have submissions for several
    states, this picks the first of these states. If an assignment has several submissions for that state, the last one
    counts. Returns None if no state of the image has submissions from both assignments. `submissions` must contain all
    submissions for the image.
    """
    last: dict[int, dict[str, Submission]] = {0: {}, 1: {}}  # by assignment and state
    for submission in submissions:
        last[submission.assignment][submission.base] = submission
    for base, submission in last[0].items():
        if base in last[1]:
            return submission, last[1][base]
    return None


def carried(submission: Submission, base: str, size: Size, counts: Mapping[int, str]) -> Submission | None:
    """Apply a submission to another state of its image, without the changes that no longer fit.

    `counts` maps the annotation ids of that state's masks to their run lengths. New masks are always kept. A
    replacement or deletion is kept only if the run lengths of its mask haven't changed. The result records 0 seconds,
    because the original submission already counts the time. Returns None if the image's size differs.
    """
    if submission.size != size:
        return None
    replaced = tuple(mask for mask in submission.replaced if counts.get(mask.id) == mask.counts)
    parents = {None, *(mask.id for mask in replaced)}
    return submission.model_copy(
        update={
            "base": base,
            "seconds": 0.0,
            "masks": tuple(mask for mask in submission.masks if mask.parent in parents),
            "replaced": replaced,
            "deleted": tuple(mask for mask in submission.deleted if counts.get(mask.id) == mask.counts),
        }
    )


def is_untouched(mask: SubmittedMask) -> bool:
    """Return whether a mask was prefilled from a detector's box and the annotator didn't work on it.

    Such a mask has an active time of 0 seconds, and the box is its only prompt.
    """
    return (
        mask.source == "assisted"
        and mask.parent is None
        and mask.seconds == 0
        and len(mask.prompts) == 1
        and isinstance(mask.prompts[0], BoxPrompt)
    )


def annotated_masks(submission: Submission) -> list[SubmittedMask]:
    """Return the masks that the annotator worked on, without untouched prefills."""
    return [mask for mask in submission.masks if not is_untouched(mask)]
