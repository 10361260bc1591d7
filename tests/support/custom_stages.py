"""Custom stages for tests, in a module that workers can import."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from segmint import Reject, StageRow

WEIGHTS = f"model:{'ab' * 32}"


class Mean:
    """Stores the mean of the pixels, and rejects images that are brighter than a limit."""

    name = "mean"
    fields: ClassVar[dict[str, Any]] = {"gray": "double", "sides": pa.list_(pa.int32())}

    def __init__(self, most: float = 255.0) -> None:
        self.most = most

    def __call__(self, rows: Sequence[StageRow]) -> list[StageRow | Reject]:
        return [self.judge(row) for row in rows]

    def judge(self, row: StageRow) -> StageRow | Reject:
        gray = float(row.image.mean())
        if gray > self.most:
            return Reject("too_bright", f"mean {gray:.1f}; expected at most {self.most:g}")
        return row.with_values(gray=gray, sides=list(row.image.shape[:2]))


class Ranks:
    """Ranks the masks of an image by area, and labels the largest one."""

    name = "rank"
    table = "masks"
    labels = True
    fields: ClassVar[dict[str, Any]] = {"place": pa.uint16()}
    version = "1"

    def __call__(self, rows: Sequence[StageRow]) -> list[StageRow]:
        return [row.with_mask_values(self.values(row["masks"])) for row in rows]

    def values(self, masks: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
        order = sorted(range(len(masks)), key=lambda place: -masks[place]["area"])
        values: list[dict[str, Any] | None] = [{"place": order.index(place)} for place in range(len(masks))]
        if order:
            values[order[0]] |= {"label": "größte", "label_score": 0.5, "label_source": WEIGHTS}  # type: ignore[operator]
        return values


class Nested:
    """A stage that sets the same list and struct for every image."""

    name = "nested"
    fields: ClassVar[dict[str, Any]] = {"names": pa.list_(pa.string()), "box": pa.struct([("x", pa.int32())])}
    version = "1"

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def __call__(self, rows: Sequence[StageRow]) -> list[StageRow]:
        return [row.with_values(**self.values) for row in rows]


class Keyed:
    """A stage whose version stands for the arguments."""

    name = "keyed"

    def __init__(self, file: str) -> None:
        self.file = file

    @classmethod
    def version(cls, file: str) -> str:
        return Path(file).read_text()

    def __call__(self, rows: Sequence[StageRow]) -> Sequence[StageRow]:
        return rows


def drop(rows: Sequence[StageRow]) -> Sequence[StageRow]:
    return rows[1:]


def reorder(rows: Sequence[StageRow]) -> Sequence[StageRow]:
    return rows[::-1]


def add(rows: Sequence[StageRow]) -> Sequence[StageRow]:
    return [*rows, rows[0]]


def undeclared(rows: Sequence[StageRow]) -> Sequence[StageRow]:
    return [row.with_values(other=1) for row in rows]


def too_few(rows: Sequence[StageRow]) -> Sequence[StageRow]:
    return [row.with_mask_values([]) for row in rows]


def wrong_type(rows: Sequence[StageRow]) -> Sequence[StageRow]:
    """Set text in place of a number for image 2."""
    return [row.with_values(gray="bright" if row["id"] == 2 else 1.0) for row in rows]


def fraction(rows: Sequence[StageRow]) -> Sequence[StageRow]:
    """Set a fraction in place of a whole number for image 2."""
    return [row.with_values(sides=np.array([3, 2.5] if row["id"] == 2 else [3, 4])) for row in rows]


def fraction_and_undeclared(rows: Sequence[StageRow]) -> Sequence[StageRow]:
    """Set a fraction in place of a whole number for image 1, and what isn't declared for image 2."""
    return [row.with_values(**{"sides": [2.5]} if row["id"] == 1 else {"other": 1}) for row in rows]


def persons_label(rows: Sequence[StageRow]) -> Sequence[StageRow]:
    return [row.with_mask_values([{"label": "x", "label_source": "person"}] * len(row["masks"])) for row in rows]


def fail_on_2(rows: Sequence[StageRow]) -> Sequence[StageRow]:
    if any(row["id"] == 2 for row in rows):
        raise KeyError("no value for image 2")
    return [row.with_values(gray=1.0) for row in rows]


def leave_on_2(rows: Sequence[StageRow]) -> Sequence[StageRow]:
    if any(row["id"] == 2 for row in rows):
        sys.exit(2)
    return [row.with_values(gray=1.0) for row in rows]


def reject_2(rows: Sequence[StageRow]) -> Sequence[StageRow]:
    if any(row["id"] == 2 for row in rows):
        raise Reject("second", "it's the second image")
    return [row.with_values(gray=1.0) for row in rows]


class Faulty:
    """A stage that calls one of the functions above."""

    name = "faulty"
    fields: ClassVar[dict[str, Any]] = {"gray": "double"}

    def __init__(self, function: str) -> None:
        self.function = globals()[function]

    def __call__(self, rows: Sequence[StageRow]) -> Any:
        return self.function(rows)


class FaultyList(Faulty):
    """One that declares a list of whole numbers."""

    fields: ClassVar[dict[str, Any]] = {"sides": pa.list_(pa.int32())}


class FaultyMasks(Faulty):
    """One that declares a column of masks."""

    table = "masks"


class FaultyLabels(Faulty):
    """One that sets labels."""

    fields: ClassVar[dict[str, Any]] = {}
    labels = True


class Deadly:
    """A stage whose process ends with images of a certain width."""

    name = "deadly"
    version = "1"

    def __call__(self, rows: Sequence[StageRow]) -> Sequence[StageRow]:
        if any(row["width"] == 134 for row in rows):
            os._exit(1)
        return rows


NOT_CALLABLE = 3


class NoCall:
    name = "no_call"


class BadName(Mean):
    name = "Bad"


class BadType(Mean):
    fields: ClassVar[dict[str, Any]] = {"gray": "decimal"}


class BadField(Mean):
    fields: ClassVar[dict[str, Any]] = {"gray": pa.date32()}


class BadTable(Mean):
    table = "rejects"


class BadVersion(Mean):
    version = 3


class BadLabels(Mean):
    labels = True


KILLS = "SEGMINT_TEST_KILLS"
"""Environment variable with a folder; an image whose number names a file in it kills its process, once."""


class Killed:
    """A stage whose process is killed with SIGKILL while it has some images, and that also depends on pixels."""

    name = "killed"
    fields: ClassVar[dict[str, Any]] = {"mean": "double"}
    version = "1"

    def __call__(self, rows: Sequence[StageRow]) -> list[StageRow]:
        for row in rows:
            mark = Path(os.environ[KILLS]) / str(row["id"])
            if mark.exists():
                mark.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        return [row.with_values(mean=float(row.image.mean())) for row in rows]
