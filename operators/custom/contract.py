"""Interface of a custom stage: the input and output of its callable, and checks of both.

A stage is a class, or a function that returns a callable. The build passes the stage's arguments to it. A stage has
these attributes. Only `name` is required:

- `name`: up to 63 lowercase letters, digits, and underscores, starting with a letter. The column is `stage_<name>`.
- `fields`: the fields of that column, each with an Arrow type or the type's name. Without `fields`, there is no column.
- `table`: the table that contains the column, either `images` (the default) or `masks`.
- `labels`: whether the stage sets labels of masks.
- `masks`: whether the stage makes masks itself (a *segmenter*), in place of SAM or, after `segment`, in addition to it.
  It then calls `StageRow.with_masks` for each row that it returns, and has neither `fields` nor `labels`.
- `wants_original`: whether `StageRow.original` is needed. Only for a segmenter in place of SAM.
- `wants_prompts`: whether the catalog's column `prompts` is needed. Only for a segmenter. Like the attributes below, it
  can be a class method that receives the arguments.
- `license`, `terms`, and `weights_sha256`: the license of a segmenter as an SPDX identifier or a text, its terms as a
  URL or a text, and the SHA-256 of its files. Each is a text, or a class method that receives the arguments and returns
  a text or None. They don't affect the stage's identity.
- `version`: a text that changes whenever the stage's results change. Without it, the SHA-256 of the module's source
  identifies the code. If `version` is a class method, it receives the arguments, and its result must identify them as
  well, for example by containing the hashes of files that the arguments name.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from segmint.catalogs.reasons import is_custom_reason
from segmint.infra.errors import UsageError
from segmint.operators.images import Pixels, decode_jpeg

_LONGEST_DETAIL = 1000
_RELEASED, _ORIGINAL = "release", "original"  # columns with JPEGs


class StageContractError(UsageError):
    """Raised when a stage violates its interface. No row is to blame, so the run ends."""


class Reject(Exception):
    """Verdict of a stage that rejects a row. The stage returns it in place of the row, or raises it."""

    def __init__(self, reason: str, detail: str) -> None:
        """`reason` is a word such as `blurry`: up to 63 lowercase letters, digits, and underscores.

        `detail` is a sentence that states what the stage found and what it expected. The dataset stores the sentence,
        so it must not contain image data. Raises `StageContractError` if `reason` is one of segmint's own reasons, or
        if `detail` is empty.
        """
        super().__init__(f"{reason}: {detail}")
        if not isinstance(reason, str) or not is_custom_reason(reason):
            raise StageContractError(
                f"Reject: the reason is {reason!r}; expected up to 63 lowercase letters, digits, and underscores, "
                "starting with a letter, and none of segmint's own reasons"
            )
        if not isinstance(detail, str) or not detail.strip():
            raise StageContractError(f"Reject: the detail of {reason} is {detail!r}; expected a sentence")
        self.reason = reason
        self.detail = detail.encode("utf-8", "replace").decode()[:_LONGEST_DETAIL]

    def __reduce__(self) -> tuple[type["Reject"], tuple[str, str]]:
        """Support pickling."""
        return type(self), (self.reason, self.detail)


@dataclass(frozen=True)
class Mask:
    """Mask that a segmenter found in an image. All coordinates are in pixels of the released image, `StageRow.image`.

    The segmenter may leave out everything except `pixels`. A mask without pixels is dropped.
    """

    pixels: NDArray[np.bool_] | Mapping[str, Any]
    """(H, W) bool array of the image's size, or COCO's run-length encoding: a dict with `size`, which is [H, W], and
    `counts`, either compressed (text or bytes) or a list of numbers."""
    score: float | None = None
    """The model's estimate of the mask's quality, stored as `predicted_iou`."""
    stability: float | None = None
    """Stored as `stability_score`."""
    label: str | None = None
    """Name of the object that the mask covers."""
    label_score: float | None = None
    """The model's score for the label."""
    label_source: str | None = None
    """Who set the label: `import`, or `model:` followed by the SHA-256 of the weights. None: the segmenter."""
    points: Sequence[tuple[float, float, int]] = ()
    """The points that the mask was made from: x, y, and 1 for a point inside the mask or 0 for one outside."""
    box: tuple[float, float, float, float] | None = None
    """The box that the mask was made from: x, y, width, and height."""
    text: str | None = None
    """The text that the mask was made from."""


class StageRow(Mapping[str, Any]):
    """Read-only row as a stage sees it: the columns that precede this stage in a build, and the released image.

    A row never contains an unredacted pixel.
    """

    def __init__(self, columns: Mapping[str, Any], place: int | None = None) -> None:
        """`columns` contains the row's values, including `ordinal`, `id`, and `release`, which is the released JPEG.

        If `place` is given, `columns` contains Arrow columns instead. The value at position `place` of a column is then
        converted when the stage first reads it.
        """
        self._columns, self._place = columns, place
        self._read: dict[str, Any] = {}  # copies from the `with_` methods share this dictionary and the next one
        self._pixels: dict[str, Pixels] = {}  # decoded JPEGs, by column
        self.values_set: Mapping[str, Any] = {}
        self.mask_values: Sequence[Mapping[str, Any] | None] | None = None
        self.masks_found: Sequence[Mask] | None = None

    @property
    def image(self) -> Pixels:
        """The released image, (H, W, 3) uint8 RGB, decoded once. Raises `ValueError` if the dataset lacks it."""
        if not self[_RELEASED]:
            raise ValueError(f"image {self['id']} isn't in the dataset, which has only annotations")
        return self._decoded(_RELEASED)

    @property
    def original(self) -> Pixels:
        """The redacted photograph before it was made smaller, (H, W, 3) uint8 RGB, decoded once.

        It has the size of the upright source, or is the released image if that has this size. Raises `AttributeError`
        if the class doesn't set `wants_original`.
        """
        if _ORIGINAL not in self._columns:
            raise AttributeError("the row has no original: set wants_original = True in the class")
        return self.image if self[_ORIGINAL] is None else self._decoded(_ORIGINAL)

    def _decoded(self, column: str) -> Pixels:
        if column not in self._pixels:
            self._pixels[column] = decode_jpeg(self[column])
        return self._pixels[column]

    def free_image(self) -> None:
        """Release the memory of the decoded images and of the original, if any."""
        self._pixels.clear()
        self._read.pop(_ORIGINAL, None)

    def with_values(self, **values: Any) -> Self:
        """Return a copy of the row with values for the stage's fields. Use this if the stage's `table` is `images`.

        Fields without a value become null.
        """
        row = copy(self)
        row.values_set = values
        return row

    def with_mask_values(self, values: Sequence[Mapping[str, Any] | None]) -> Self:
        """Return a copy of the row with one entry per mask, in order.

        An entry contains values for the fields of a stage whose `table` is `masks`, and a label if the stage sets
        labels. A label consists of `label`, `label_score`, and `label_source`, which is `model:` followed by the
        SHA-256 of the weights. If a mask's entry is None, the mask doesn't change.
        """
        row = copy(self)
        row.mask_values = values
        return row

    def with_masks(self, masks: Sequence[Mask]) -> Self:
        """Return a copy of the row with the masks that a segmenter found, in the order in which they are stored."""
        row = copy(self)
        row.masks_found = masks
        return row

    def __getitem__(self, name: str) -> Any:
        if self._place is None:
            return self._columns[name]
        if name not in self._read:
            self._read[name] = self._columns[name][self._place].as_py()
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


StageCall = Callable[[Sequence[StageRow]], Sequence[StageRow | Reject]]
"""Callable of a stage. It receives a batch of rows and returns each row, or a `Reject` in its place, in the same order.

The number of rows in a batch can vary, so the result for a row must not depend on the other rows.
"""


def refusal(error: BaseException) -> str | None:
    """Extract the message of a worker's `StageContractError` from Ray's longer text. Return None if there is none."""
    found = re.findall(rf"\b{StageContractError.__name__}: (.+)", str(error))
    return found[-1] if found else None


def call_stage(name: str, stage: StageCall, rows: Sequence[StageRow]) -> list[StageRow | Reject]:
    """Call a stage with a batch, and check that it returns every row in order.

    Raises `StageContractError`, which names the stage, if the stage drops, adds, reorders, or replaces rows. The
    stage's own errors propagate.
    """
    returned = stage(rows)
    if not isinstance(returned, Sequence):
        raise StageContractError(f"the stage {name} returned {type(returned).__name__}: expected a list of rows")
    if len(returned) != len(rows):
        raise StageContractError(
            f"the stage {name} returned {len(returned)} rows for {len(rows)}: it must return each row, in order, or a "
            "Reject in its place"
        )
    for row, result in zip(rows, returned, strict=True):
        if isinstance(result, Reject):
            continue
        if not isinstance(result, StageRow):
            raise StageContractError(
                f"the stage {name} returned {type(result).__name__} for image {row['id']}: expected the row, the "
                "result of one of its with_ methods, or a Reject"
            )
        if result["ordinal"] != row["ordinal"]:
            raise StageContractError(
                f"the stage {name} returned image {result['id']} in place of image {row['id']}: it must return "
                "the rows in their order"
            )
    return list(returned)
