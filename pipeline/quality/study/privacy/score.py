"""Score of a privacy study: the share of images with a missed face or plate, and its upper confidence bound."""

from dataclasses import dataclass
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from segmint.catalogs.dataset.manifest import manifest_generations
from segmint.catalogs.dataset.regions import write_regions
from segmint.catalogs.dataset.versions.record import VersionName, name_now, read_version, version_numbers
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.wording import counted, not_checked_lines, upper_bound
from segmint.operators.annotations.image import Size
from segmint.operators.intervals import at_most
from segmint.pipeline.quality.study.files import CORRECTED, MANIFEST, read_json, unanswered
from segmint.pipeline.quality.study.kind import StudyKind
from segmint.pipeline.quality.study.privacy.marks import Mark, Marks, read_marks
from segmint.pipeline.quality.study.privacy.sample import KINDS, SCHEMA_VERSION

ANY = "any"
"""Kind of a `MissedCounts` that counts an image once for marks of any kind."""


@dataclass(frozen=True)
class MissedCounts:
    """Marks of one kind, and the images that contain such a mark.

    Images with an unreadable mark count for each kind. `share` is relative to the reviewed images, and `at_most` is its
    one-sided 95 % Clopper-Pearson upper bound; both are None if none were reviewed.
    """

    kind: str
    marks: int
    images: int
    share: float | None
    at_most: float | None


@dataclass(frozen=True)
class PrivacyScore:
    """Misses that people found in released images of a dataset.

    `images` were drawn from a `population`, and `answered` of them were reviewed. `missed` has an entry for each kind
    and, at the end, one for `any`. `foreign` images are ignored, but marks from `further` reviews of an image count.
    `version` is the dataset's version from which the sample was drawn, and `config_sha256` the hash of its
    configuration.
    """

    name: str
    config_sha256: str
    images: int
    population: int
    answered: int
    missed: tuple[MissedCounts, ...]
    unreadable: tuple[str, ...]
    foreign: int
    further: int
    version: VersionName
    kind: Literal["privacy"] = "privacy"
    regions: str | None = None  # the file that was written for `segmint redact`

    def lines(self) -> list[str]:
        """Return the result as lines for people."""
        lines = [
            f"{self.answered:,} of {counted(self.images, 'image')} answered, drawn from {self.population:,}",
            f"ignored: {counted(self.foreign, 'image')} not drawn",
            f"{counted(self.further, 'further answer')} for the same images, whose marks count",
            *not_checked_lines(self.not_checked),
        ]
        if not self.answered:
            lines.append("no image was answered, so there is no bound")
        else:
            lines += [f"{each.kind:<7}{self.sentence(each)}" for each in self.missed]
            lines.append("the bound is one-sided Clopper-Pearson at 95 % confidence, exact for a random sample")
        if 0 < self.answered < self.images:
            lines.append("note: the bound holds only if no image is without an answer because of its content")
        if self.regions is not None:
            lines.append(f"marks: {self.regions}. Redact them with `segmint redact DATASET --regions {self.regions}`")
        return [*lines, self.version.line()]

    def sentence(self, missed: MissedCounts) -> str:
        """Return the misses of a kind as a sentence without its final period."""
        if missed.at_most is None:
            return "no images were inspected"
        return (
            f"{counted(missed.marks, 'mark')}, in {missed.images:,} of {counted(self.answered, 'image')}: at most "
            f"{upper_bound(missed.at_most)} of all images"
        )

    @property
    def not_checked(self) -> list[str]:
        """Images without an answer, and the problem of each mark that couldn't be read, which counts as missed."""
        unreadable = (f"unreadable, and counted as missed: {problem}" for problem in self.unreadable)
        return [*unanswered(self.images, self.answered), *unreadable]

    @property
    def any(self) -> MissedCounts:
        """Counts for marks of any kind."""
        return self.missed[-1]


def score_privacy(folder: Location, marked: Location | None = None, regions: Location | None = None) -> PrivacyScore:
    """Count the marks in a privacy study's images from a COCO or Label Studio file.

    `regions` is written for `segmint redact` if anything was marked. Raises `UsageError` if there is no such study, or
    if the file of marks is missing or in an unknown format.
    """
    manifest = read_json(folder / MANIFEST, f"{folder} is not a study. Create one with `segmint study sample`")
    try:
        if (manifest["kind"], manifest["schema_version"]) != (StudyKind.PRIVACY, SCHEMA_VERSION):
            raise UsageError(
                f"{folder}: a study of kind {manifest['kind']!r}, schema_version {manifest['schema_version']!r}; "
                f"expected {StudyKind.PRIVACY.value!r}, {SCHEMA_VERSION}"
            )
        sizes: dict[int, Size] = {image["id"]: (image["height"], image["width"]) for image in manifest["images"]}
        dataset = manifest["dataset"]
        version = VersionName(dataset["digest"], dataset["number"])
        name, config = str(dataset["name"]), str(dataset["config_sha256"])
        population = int(manifest["population"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{folder}: {MANIFEST} is damaged ({error!r}). Draw the sample again") from error
    marks = read_marks(marked or folder / CORRECTED, sizes)
    rows = [
        {"id": image, "kind": each.kind, "x": each.x, "y": each.y, "w": each.w, "h": each.h}
        for image, found in sorted(marks.found.items())
        for each in found
    ]
    if regions is not None and rows:
        write_regions(regions, rows)
    return PrivacyScore(
        name=name,
        config_sha256=config,
        images=len(sizes),
        population=population,
        answered=len(marks.found),
        missed=tuple(_missed(marks, kind) for kind in (*KINDS, ANY)),
        unreadable=tuple(marks.unreadable),
        foreign=marks.foreign,
        further=marks.further,
        version=version,
        regions=str(regions) if regions is not None and rows else None,
    )


def read_score(file: Location) -> PrivacyScore:
    """Read the output of `segmint study score --json` for a privacy study. Raises `UsageError` for anything else."""
    expected = "expected the output of `segmint study score DIR --json` for a privacy study"
    try:
        score = TypeAdapter(PrivacyScore).validate_json(file.read())
    except NotFoundError as error:
        raise UsageError(f"{file} does not exist; {expected}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"{file} is not a score: {where}: {first['msg']}; {expected}") from error
    counted_again = tuple(_share(each.kind, each.marks, each.images, score.answered) for each in score.missed)
    if [each.kind for each in score.missed] != [*KINDS, ANY] or counted_again != score.missed:
        raise UsageError(f"{file} is not a score: its shares contradict its counts; {expected}")
    return score


def check_sampled(score: PrivacyScore, where: str, dataset: Location) -> PrivacyScore:
    """Return a score if its sample was drawn from the current or a recorded version of a dataset.

    Otherwise, raises `UsageError`, which names the score's source `where`.
    """
    digests = {name_now(dataset).digest} if manifest_generations(dataset) else set()
    if score.version.digest not in digests | {read_version(dataset, n).digest for n in version_numbers(dataset)}:
        raise UsageError(
            f"{where} is of sha256:{score.version.digest}, which is not a version of {dataset}. Draw a sample of this "
            "dataset, and score the marks made there"
        )
    return score


def _missed(marks: Marks, kind: str) -> MissedCounts:
    def is_of(mark: Mark) -> bool:
        return kind in (ANY, mark.kind)

    images = {image for image, found in marks.found.items() if any(map(is_of, found))} | marks.doubtful
    return _share(
        kind, sum(is_of(mark) for found in marks.found.values() for mark in found), len(images), len(marks.found)
    )


def _share(kind: str, marks: int, images: int, answered: int) -> MissedCounts:
    if not answered:
        return MissedCounts(kind, marks, images, None, None)
    return MissedCounts(kind, marks, images, images / answered, at_most(images, answered))
