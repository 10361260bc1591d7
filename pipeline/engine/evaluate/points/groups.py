"""Groups of an evaluation: labels of images or masks that the user gives, in a column or a file. Never inferred."""

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.operators.rows import Row

IMAGE_KEY, MASK_KEY = "image_id", "annotation_id"
"""The columns of a file of groups: one of these, and one more with the label."""

MASK_COLUMNS = ("label", "source")
"""What a mask may be grouped by, where the images have no such column."""

MOST_GROUPS = 50
"""More are a column of values, not of groups."""

_ENDINGS = (".csv", ".parquet")


@dataclass(frozen=True)
class Groups:
    """How masks are grouped: by a column, or by a file's labels of images or masks; `by` names it in answers."""

    by: str
    column: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    of_masks: bool = False

    @property
    def image_columns(self) -> tuple[str, ...]:
        """The columns of a dataset's images that are needed."""
        return () if self.column is None or self.column in MASK_COLUMNS else (self.column,)

    def of(self, row: Row) -> str | None:
        """The group of a row of results; None if it has none."""
        if self.column is not None:
            value: str | None = row["group"]
            return value
        if self.of_masks:
            return self.labels.get(str(row["mask"]))
        return self.labels.get(row["image_id"], self.labels.get(row["image"]))


def read_groups(name: str, locate: Callable[[str], Location]) -> Groups:
    """Return the groups of `--groups`: a .csv or .parquet file, or the name of a column.

    Raises `UsageError` for a file that cannot be read, has other columns, or two labels for one image or mask.
    """
    if PurePosixPath(name).suffix.lower() not in _ENDINGS:
        return Groups(name, column=name)
    file = locate(name)
    try:
        data = file.read()
    except NotFoundError as error:
        raise UsageError(f"--groups {name}: no such file; a column of the images has no ending") from error
    try:
        table = _parquet(data) if name.lower().endswith(".parquet") else _csv(data)
    except (pa.ArrowException, UnicodeDecodeError, csv.Error, OSError) as error:
        raise UsageError(f"--groups {name} cannot be read: {error}") from error
    return _checked(name, table)


def _parquet(data: bytes) -> list[Row]:
    rows: list[Row] = pq.read_table(io.BytesIO(data)).to_pylist()
    return rows


def _csv(data: bytes) -> list[Row]:
    return list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))


def _checked(name: str, rows: list[Row]) -> Groups:
    expected = f"expected {IMAGE_KEY} or {MASK_KEY}, and one more column with the label"
    columns = list(rows[0]) if rows else []
    keys = [key for key in (IMAGE_KEY, MASK_KEY) if key in columns]
    if len(keys) != 1 or len(columns) != 2:
        found = ", ".join(map(str, columns)) or "no rows"
        raise UsageError(f"--groups {name} has {found}: {expected}")
    (key,) = keys
    (label,) = (column for column in columns if column != key)
    labels: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        if row[key] is None or row[label] in (None, ""):
            continue
        known = labels.setdefault(str(row[key]), str(row[label]))
        if known != str(row[label]):
            raise UsageError(
                f"--groups {name}, row {number}: {key} {row[key]} is in {known!r} and in {str(row[label])!r}: expected "
                "one label each"
            )
    if not labels:
        raise UsageError(f"--groups {name} has no label: {expected}")
    return Groups(str(label), labels=labels, of_masks=key == MASK_KEY)


def check_groups(groups: Groups, found: set[str]) -> None:
    """Raise `UsageError` if masks fall into no group, or into too many to compare."""
    if not found:
        raise UsageError(f"no mask that was evaluated has a value of {groups.by}: nothing to group by")
    if len(found) > MOST_GROUPS:
        raise UsageError(
            f"{groups.by} has {len(found)} values, such as {', '.join(sorted(found)[:3])}: expected at most "
            f"{MOST_GROUPS} groups; put a group for each image into a file"
        )
