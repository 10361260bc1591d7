"""Categories of an export: an ordered list of names, chosen from the labels of a dataset's masks or a vocabulary.

Provenance of images and datasets, for formats that support it.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.reader import Dataset, MaskAnnotation
from segmint.catalogs.dataset.versions import VersionName
from segmint.catalogs.licenses import license_url
from segmint.infra.errors import UsageError
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.wording import counted, some
from segmint.pipeline.export.formats import Format

OBJECT = "object"
"""Category of masks without a label."""

_THREADS = 16  # many, because requests to stores take most of the time
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_LONGEST_IN_CVAT = 64
_LIMITS: Mapping[Format, tuple[Callable[[str], bool], str]] = {
    Format.CVAT: (
        lambda name: len(name) > _LONGEST_IN_CVAT or bool(_CONTROL.search(name)),
        f"at most {_LONGEST_IN_CVAT} characters, and no line breaks or other control characters",
    ),
    # In the XML of a labeling interface, `$name` stands for a value of the task's data.
    Format.LABEL_STUDIO: (
        lambda name: bool(re.search(r"[\x00-\x1f\x7f\ufffe\uffff]|\$[\w\[\].{}]", name)) or name != name.strip(),
        "no control characters, no spaces at the start or end, and no $ before a word",
    ),
}
"""Formats that can't hold every label, each with a test that detects invalid labels and a description of valid
labels."""


@dataclass(frozen=True)
class Categories:
    """Names of categories, numbered from 0. A mask whose label isn't a category belongs to `object`."""

    names: tuple[str, ...] = (OBJECT,)
    has_prompts: bool = False  # whether a mask of the dataset has prompts

    @property
    def is_labeled(self) -> bool:
        """False if all masks belong to `object`."""
        return len(self.names) > 1

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    def number_of(self, label: str | None) -> int:
        """Return the number of the category for a mask's label."""
        return self._numbers.get(label or OBJECT, self._numbers[OBJECT])

    def name_of(self, mask: MaskAnnotation) -> str:
        return self.names[self.number_of(mask.label)]

    def facts_of(self, mask: MaskAnnotation) -> dict[str, Any]:
        """Return the mask's prompts and the known score and source of its label, as columns of the masks table."""
        facts: dict[str, Any] = {"prompts": mask.prompts or None}
        if self.is_labeled and mask.label:
            facts = {"label_score": mask.label_score, "label_source": mask.label_source, **facts}
        return {name: value for name, value in facts.items() if value is not None}


UNLABELED = Categories()
"""Categories of an export that ignores labels."""


def count_labels(dataset: Dataset) -> Counter[str]:
    """Count the masks per label in all shards. Memory only grows with the number of distinct labels."""
    counts: Counter[str] = Counter()
    for of_shard in map_ahead(dataset.count_labels, dataset.commits(), _THREADS, _THREADS, "count-labels"):
        counts.update(of_shard)
    del counts[""]
    return counts


def has_prompts(dataset: Dataset) -> bool:
    """Return whether a mask of the dataset has prompts. This reads the footers of tables up to the first one."""
    return any(map_ahead(dataset.has_prompts, dataset.commits(), _THREADS, _THREADS, "find-prompts"))


def choose_categories(format: Format, labels: Mapping[str, int], vocabulary: Sequence[str] | None = None) -> Categories:
    """Choose the categories for a dataset. `labels` maps each label to its number of masks.

    The first category is `object`. The other categories are the names in the vocabulary or, without a vocabulary, the
    labels sorted by code point. If the vocabulary contains `object`, `object` keeps its place there. Raises
    `UsageError` for labels that aren't in the vocabulary, and for categories that the format can't hold.
    """
    if vocabulary is not None and (unknown := labels.keys() - {*vocabulary, OBJECT}):
        listing = some([f"{_quoted(label)} ({counted(labels[label], 'mask')})" for label in sorted(unknown)])
        raise UsageError(f"the vocabulary lacks labels of the dataset: {listing}. Add them, or relabel these masks.")
    names = sorted(labels) if vocabulary is None else list(vocabulary)
    is_wrong, expected = _LIMITS.get(format, (None, ""))
    if is_wrong is not None and (wrong := [name for name in names if is_wrong(name)]):
        listing = some([f"{_quoted(name)} ({counted(labels.get(name, 0), 'mask')})" for name in wrong])
        raise UsageError(f"{format} can't hold these labels: {listing}. Expected {expected}.")
    is_placed = vocabulary is not None and OBJECT in vocabulary
    return Categories(tuple(names) if is_placed else (OBJECT, *(name for name in names if name != OBJECT)))


def read_vocabulary(file: Location) -> tuple[str, ...]:
    """Read a vocabulary file. Raises `UsageError` if it doesn't exist, and the errors of `parse_vocabulary`."""
    try:
        return parse_vocabulary(file.read(), str(file))
    except NotFoundError as error:
        raise UsageError(f"{file} does not exist: expected a file with one label per line") from error


def parse_vocabulary(data: bytes, name: str) -> tuple[str, ...]:
    """Parse a vocabulary file with one label per line, and return the labels. Errors name the file as `name`.

    Raises `UsageError` with the line number if a line is blank, if a label is repeated, or if the text isn't UTF-8.
    """
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    first: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        try:
            label = line.removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise UsageError(f"{name}, line {number}: expected UTF-8 ({error.reason})") from error
        if not label.strip():
            raise UsageError(f"{name}, line {number}: blank; expected one label per line")
        if label in first:
            raise UsageError(f"{name}, line {number}: {_quoted(label)} is already on line {first[label]}")
        first[label] = number
    if not first:
        raise UsageError(f"{name} is empty: expected one label per line")
    return tuple(first)


def _quoted(label: str) -> str:
    return repr(label if len(label) <= 100 else f"{label[:100]}…")


CREDITS = ("image_id", "license", "license_url", "attribution", "provider", "source_url", "country")
"""Keys in the result of `credits_of`. `image_id` is the id in the catalog."""


def credits_of(row: Mapping[str, Any]) -> dict[str, str | None]:
    """Return an image's catalog id, license, author, and source. Unknown values are None."""
    known = {**row, "license_url": license_url(row["license"])}
    return {name: known[name] for name in CREDITS}


def describe_dataset(manifest: DatasetManifest, version: VersionName) -> dict[str, Any]:
    """Return a dataset's name and version, and the model that made its masks, as JSON values."""
    return {
        "name": manifest.name,
        "model": manifest.weights.name,
        "segmint_version": manifest.code_version,
        "dataset_digest": f"sha256:{version.digest}",
        "dataset_version": version.number,
    }
