"""Subsets of a dataset: the images that a condition selects, and files that pin a selection for other commands."""

import json
from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.manifest import load_manifest, read_dataset_id
from segmint.catalogs.dataset.reader import Dataset, Subset
from segmint.catalogs.dataset.tombstones import read_tombstones
from segmint.catalogs.dataset.versions import Version, name_now, read_commits
from segmint.catalogs.frozen import Frozen
from segmint.catalogs.layout import canonical_json, json_sha256, wrong_fields
from segmint.catalogs.parquet import ADDED_IMAGES, MASKS_MODEL
from segmint.infra.arrays import Ints
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.wording import some

_IMAGES = pa.schema([("id", pa.int64()), *ADDED_IMAGES, MASKS_MODEL])
_ENDING = ".json"


class Selection(Frozen):
    """Images that a condition selected in one state of a dataset. `segmint select` writes it to a file."""

    schema_version: Literal[1] = 1
    dataset_id: str | None  # None for a dataset without an id
    dataset_digest: str  # `sha256:` and the 64 digits of the state's digest
    dataset_version: int | None  # number of the recorded version with this digest
    condition: str
    ids: tuple[int, ...]  # ascending
    sha256: str  # of the digest, the condition, and the ids

    @classmethod
    def of(cls, dataset: Location, condition: str) -> Self:
        """Select the images of a dataset's current state that meet `condition`, SQL over the columns of `images`.

        Raises `UsageError` if the dataset doesn't exist, or if the condition is invalid or selects no image.
        """
        load_manifest(dataset)
        version = name_now(dataset)
        ids = find_ids(dataset, condition).tolist()
        if name_now(dataset).digest != version.digest:
            raise UsageError(f"{dataset} was changed while its images were selected. Run the same command again")
        return cls(
            dataset_id=read_dataset_id(dataset),
            dataset_digest=f"sha256:{version.digest}",
            dataset_version=version.number,
            condition=condition,
            ids=tuple(ids),
            sha256=_sha256(version.digest, condition, ids),
        )

    def to_json(self) -> bytes:
        return canonical_json(self.model_dump(mode="json"))


def read_selection(file: Location) -> Selection:
    """Read a file that `segmint select` wrote. Raises `UsageError` if it doesn't exist or isn't intact."""
    how = "Expected a file that `segmint select` wrote"
    try:
        selection = Selection.model_validate(json.loads(file.read()))
    except NotFoundError as error:
        raise UsageError(f"--select {file}: no such file. {how}") from error
    except ValidationError as error:
        raise UsageError(f"--select {file} is not a selection: {wrong_fields(error)}. {how}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--select {file} is not a selection: {str(error)[:200]}. {how}") from error
    is_ascending = all(before < after for before, after in zip(selection.ids, selection.ids[1:], strict=False))
    digest = selection.dataset_digest.removeprefix("sha256:")
    if not is_ascending or selection.sha256 != _sha256(digest, selection.condition, selection.ids):
        raise UsageError(f"--select {file} was changed: its ids don't match its SHA-256. Select the images again")
    return selection


def open_selected(dataset: Location, select: str | None) -> Dataset:
    """Open a dataset in its current state, limited to the images that `select` selects, if any.

    Raises the errors of `Dataset.open` and `choose_images`.
    """
    opened = Dataset.open(dataset)
    if select is not None:
        opened.subset = choose_images(dataset, select)
    return opened


def choose_images(dataset: Location, select: str, version: Version | None = None) -> Subset:
    """Return the images of a dataset, or of a recorded version of it, that `select` selects.

    `select` is a condition, or the path or URI of a file that `segmint select` wrote, which ends with `.json`. A file
    selects the same images at every later version, except for images that were taken down.

    Raises `UsageError` if the condition is invalid, if no image is selected, or if the file belongs to another dataset
    or names an image that the dataset doesn't contain although no takedown removed it.
    """
    if not select.strip().endswith(_ENDING):
        digest = name_now(dataset).digest if version is None else version.digest
        ids = find_ids(dataset, select, version)
        return Subset(select, ids, _sha256(digest, select, ids.tolist()))
    file = Location(dataset.storage, select.strip())
    selection = read_selection(file)
    if selection.dataset_id != read_dataset_id(dataset):
        raise UsageError(f"--select {file} selects images of another dataset, not of {dataset}")
    pinned = np.array(selection.ids, np.int64)
    missing = np.setdiff1d(pinned, _query_ids(dataset, "true", version), assume_unique=True)
    removed = {image.id for tombstone in read_tombstones(dataset) for image in tombstone.images}
    lost = [str(number) for number in missing.tolist() if number not in removed]
    if lost:
        raise UsageError(
            f"--select {file} names images that {dataset} doesn't contain, and no takedown removed them: {some(lost)}. "
            "Open the version that they were selected from, or a later one"
        )
    ids = np.setdiff1d(pinned, missing, assume_unique=True)
    if not len(ids):
        raise UsageError(f"--select {file}: all of its images were taken down")
    return Subset(selection.condition, ids, selection.sha256, len(missing))


def find_ids(dataset: Location, condition: str, version: Version | None = None) -> Ints:
    """Return the ids of the images that meet a condition, (N,) int64, ascending.

    Raises `UsageError` if the condition is invalid or no image meets it.
    """
    ids = _query_ids(dataset, condition, version)
    if not len(ids):
        raise UsageError(f"no image of {dataset} meets the condition {condition!r}")
    return ids


def _query_ids(dataset: Location, condition: str, version: Version | None) -> Ints:
    """Return the ids of the images that meet a condition, (N,) int64, ascending, or none."""
    # DuckDB is only imported here, because processes that read a subset don't need it.
    from segmint.catalogs.dataset.tables import check_selection, open_committed

    commits = CommitLog(dataset).read_all() if version is None else read_commits(dataset, version)
    with open_committed(dataset, {"images": _IMAGES}, commits=commits) as tables:
        checked = check_selection(tables, condition)
        found = tables.query(f"SELECT id FROM images WHERE {checked} ORDER BY id")
    ids: Ints = found.column("id").to_numpy().astype(np.int64)
    return ids


def _sha256(digest: str, condition: str, ids: Sequence[int]) -> str:
    return json_sha256([digest, condition, ids])
