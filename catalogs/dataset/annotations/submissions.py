"""Submissions: annotators' results for single images, each stored as one immutable file.

Each image has assignment 0. If two annotators work on it, it also has assignment 1. A submission is the complete result
for its image, stored as changes to the state that `base` identifies. The image's other masks, which the submission
neither replaces nor deletes, are kept. A later submission of the same assignment replaces an earlier one. `segmint
merge` writes submissions into the tables.

The owner of a server can return a submission to its annotator. The server then puts another file next to the
submission. The assignment counts as returned until the annotator submits again.
"""

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from segmint.catalogs.dataset.annotations.names import (
    ANNOTATIONS,
    SubmissionName,
    parse_return_path,
    return_path,
    submission_path,
    submissions_of,
)
from segmint.catalogs.dataset.annotations.run_lengths import canonical_area
from segmint.catalogs.dataset.annotations.saved import SavedRecord, parse_saved, put_saved, read_saved
from segmint.catalogs.frozen import Frozen
from segmint.catalogs.layout import MOST_PIXELS, canonical_json, wrong_fields
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead

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


Sha256 = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
Annotator = Annotated[str, Field(max_length=_NAME_LENGTH), AfterValidator(_nonempty)]
"""Name that the annotator entered."""
_Label = Annotated[str, Field(max_length=1000), AfterValidator(_printable)]
_Comment = Annotated[str, Field(min_length=1, max_length=2000), AfterValidator(_lines)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Side = Annotated[int, Field(ge=1, le=65_535)]
_Pixels = Annotated[float, Field(ge=0, le=65_535, allow_inf_nan=False)]
_MaskId = Annotated[int, Field(ge=0, lt=1 << 53)]


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
    parent: _MaskId | None = None


class FormerMask(_StrictRecord):
    """Earlier state of a mask in the dataset that a submission replaces or deletes."""

    id: _MaskId
    counts: str


class Submission(SavedRecord):
    """An annotator's result for an image. `size` is its (height, width) in pixels of the released image.

    Create a submission with `from_value` or `from_json`, whose errors describe what is wrong.
    """

    format: Literal["segmint submission"] = "segmint submission"
    schema_version: Literal[1] = 1
    image: Annotated[int, Field(ge=1, lt=1 << 53)]
    assignment: Literal[0, 1] = 0
    n: Annotated[int, Field(ge=1, lt=10**9)]
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
    replaced: Annotated[tuple[FormerMask, ...], Field(max_length=MOST_MASKS)] = ()
    deleted: Annotated[tuple[FormerMask, ...], Field(max_length=MOST_MASKS)] = ()

    @classmethod
    def from_json(cls, data: bytes, where: str = "the submission") -> Self:
        """Parse a submission's file. Raises `SubmissionError`, whose message starts with `where`, if it is invalid."""
        if len(data) > MOST_BYTES:
            raise SubmissionError(f"{where} has {len(data):,} bytes: expected at most {MOST_BYTES:,}")
        return parse_saved(cls, data, lambda wrong: SubmissionError(f"{where} is not a submission: {wrong}"))

    @classmethod
    def from_value(cls, value: Mapping[str, Any], where: str = "the submission") -> Self:
        """Convert a JSON object to a submission.

        Raises `SubmissionError`, whose message starts with `where`, if the object isn't a valid submission.
        """
        try:
            data = canonical_json(value)
            submission = cls.model_validate_json(data)
        except ValidationError as error:
            raise SubmissionError(f"{where} cannot be used: {wrong_fields(error)}") from error
        except (ValueError, RecursionError) as error:
            raise SubmissionError(f"{where} cannot be used: {str(error)[:200]}") from error
        size = len(submission.to_json())
        if size > MOST_BYTES:
            raise SubmissionError(f"{where} has {size:,} bytes: expected at most {MOST_BYTES:,}")
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
        return hashlib.sha256(self.to_json()).hexdigest()

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
    image: Annotated[int, Field(ge=1, lt=1 << 53)]
    assignment: Literal[0, 1]
    n: Annotated[int, Field(ge=1, lt=10**9)]
    by: Annotator
    comment: _Comment

    @property
    def name(self) -> SubmissionName:
        return SubmissionName(self.image - 1, self.assignment, self.n)


def _is_inside(prompt: Prompt, size: tuple[int, int]) -> bool:
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
    value = {"jpeg": hashlib.sha256(jpeg).hexdigest(), "masks": pairs}
    return hashlib.sha256(canonical_json(value)).hexdigest()
