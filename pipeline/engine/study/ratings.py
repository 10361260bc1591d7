"""Ratings study: people rate the ground truth and models' masks of the same objects without knowing which is which.

As in the SAM paper (section 7.1 and appendix E), raters see one mask at a time, in random order. Masks smaller than 24
x 24 pixels are left out.
"""

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.dataset.outputs import note_output
from segmint.catalogs.dataset.ratings import (
    HIGHEST,
    LEAST_AREA,
    LOWEST,
    Rating,
    counts_digest,
    last_ratings,
    list_ratings,
    read_ratings,
)
from segmint.catalogs.dataset.versions import VersionName, name_now
from segmint.catalogs.layout import wrong_fields
from segmint.infra.arrays import Floats, Ints
from segmint.infra.assets import sha256_of
from segmint.infra.errors import UsageError
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location, put_new_file
from segmint.infra.uris import base_name
from segmint.infra.wording import counted, listed, not_checked_lines, number
from segmint.operators.annotations.image import UnreadableMaskError, checked_rle
from segmint.operators.intervals import Interval, basis, holm, mean_intervals, sign_flip_p
from segmint.operators.rows import AUTOMATIC, Row
from segmint.pipeline.engine.study.files import MANIFEST, StudyKind, read_json, read_manifest
from segmint.pipeline.export.export import refuse_existing
from segmint.pipeline.quality.statistics.masks import open_tables

TRUTH = "ground truth"
CONFIDENCE = 0.99
"""Confidence level of the intervals by mask, as in the paper (appendix E)."""


@dataclass(frozen=True)
class RatedObject:
    """Object to rate, with its image and its true mask's annotation id.

    `counts` contains the run lengths of the true mask, followed by each model's mask.
    """

    image: int
    mask: int
    counts: tuple[str, ...]


@dataclass(frozen=True)
class RatingStudy:
    """Ratings study with its objects. `names` lists the ground truth and the models in the order of `counts`."""

    folder: Location
    names: tuple[str, ...]
    objects: tuple[RatedObject, ...]
    seed: int
    version: VersionName
    config_sha256: str  # hash of the dataset's configuration

    def root(self, variant: int) -> Location:
        """Return the folder with the ratings of a model's masks. Variant 0 is the ground truth."""
        return self.folder / f"ratings/{variant}"

    def lines(self) -> list[str]:
        size = f"{counted(len(self.objects), 'mask')} of {counted(len({each.image for each in self.objects}), 'image')}"
        times = f"{len(self.objects) * len(self.names):,} times"
        return [f"{size}, to rate {times}: {listed(self.names)}", self.version.line()]

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest."""
        dataset = {"config_sha256": self.config_sha256, **asdict(self.version)}
        head = {"schema_version": 1, "kind": StudyKind.RATINGS, "dataset": dataset, "seed": self.seed}
        return {**head, "names": list(self.names), "objects": [asdict(each) for each in self.objects]}


def sample_ratings(
    location: Location, predictions: Sequence[Location], count: int, seed: int, output: Location
) -> RatingStudy:
    """Draw `count` true masks that all models predicted, and write them to `output`.

    Masks with fewer than `LEAST_AREA` pixels are left out. `predictions` are files of COCO results with
    `annotation_id`; results after more than one click are ignored. Raises `UsageError` if a file isn't of this kind, if
    two files have the same name, if there is no such mask, or if `output` contains a study.
    """
    if not predictions:
        raise UsageError("--kind ratings needs --predictions: a file of COCO results for each model")
    names = (TRUTH, *(base_name(each.uri) for each in predictions))
    if len(set(names)) < len(names):
        raise UsageError(f"--predictions {listed(names[1:])}: expected different file names, which name the models")
    refuse_existing(location, output, output / MANIFEST)
    config_sha256, version = load_manifest(location).config_sha256, name_now(location)
    models = list(map(_read, predictions))
    with ScratchFolder() as scratch:
        with open_tables(location, scratch=Path(scratch)) as tables:
            rows = tables.query(
                "SELECT id, annotation_id, segmentation.counts AS counts, segmentation.size AS size FROM masks "
                f"WHERE area >= {LEAST_AREA:d} AND source <> '{AUTOMATIC}' "
                f"ORDER BY md5('{seed:d}:' || annotation_id), annotation_id"
            ).to_pylist()
        known = [row for row in rows if all(row["annotation_id"] in model for model in models)][:count]
        if not known:
            least = f"{LEAST_AREA} pixels or more"
            raise UsageError(f"no annotated mask of {least} in {location} has a prediction in each file")
        known.sort(key=lambda row: int(row["annotation_id"]))
        objects = [_object(row, models, predictions) for row in known]
        study = RatingStudy(output, names, tuple(objects), seed, version, config_sha256)
        path = Path(scratch) / MANIFEST
        path.write_text(f"{json.dumps(study.to_dict(), indent=1, allow_nan=False)}\n", encoding="utf-8")
        note_output(location, "study sample", output, {MANIFEST: sha256_of(path)})
        put_new_file(output / MANIFEST, path)
    return study


def load_ratings(folder: Location) -> RatingStudy:
    """Read a ratings study. Raises `UsageError` if it doesn't exist or is damaged."""
    manifest = read_manifest(folder)
    try:
        objects = TypeAdapter(tuple[RatedObject, ...]).validate_python(manifest["objects"])
        names = TypeAdapter(tuple[str, ...]).validate_python(manifest["names"])
        if any(len(each.counts) != len(names) for each in objects):
            raise ValueError(f"expected {len(names)} masks per object")
        dataset = manifest["dataset"]
        version, config = VersionName(dataset["digest"], dataset["number"]), dataset["config_sha256"]
        return RatingStudy(folder, names, objects, manifest["seed"], version, config)
    except ValidationError as error:
        raise UsageError(f"{folder} isn't a ratings study, or it's damaged: {wrong_fields(error)}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{folder} isn't a ratings study, or it's damaged ({error!r})") from error


@dataclass(frozen=True)
class MeanRating:
    """Mean rating of a variant, or the difference between two variants' mean ratings.

    An object's ratings are averaged over its raters first. `by_mask` is the 99% interval of Student's t over masks, as
    in the paper. `by_image` is a 95% interval by image. For a difference, `p` comes from the paired t-test.
    `p_by_image` comes from a test that flips the sign of all differences of an image at once. `holm` and
    `holm_by_image` are these values after Holm's correction over all differences.
    """

    name: str
    mean: float
    by_mask: Interval | None
    by_image: Interval | None
    p: float | None = None
    holm: float | None = None
    p_by_image: float | None = None
    holm_by_image: float | None = None

    def line(self, sign: str = "") -> str:
        """Format the mean as a human-readable line. With the sign "+", format it as a difference."""
        by_mask, by_image = _between(self.by_mask, sign), _between(self.by_image, sign)
        if sign:
            by_mask += f", p {number(self.p)}, corrected {number(self.holm)}"
            by_image += f", p {number(self.p_by_image)}, corrected {number(self.holm_by_image)}"
        return f"  {self.name}: {self.mean:{sign}.2f} (by mask {by_mask}; by image {by_image})"


@dataclass(frozen=True)
class RatingScore:
    """Result of a ratings study: means and paired differences, over the masks for which all variants were rated."""

    masks: int
    images: int
    drawn: int  # number of drawn masks
    raters: int
    ratings: int
    by_rater: Mapping[str, int]
    per_rater: int  # number of ratings that complete the study
    means: tuple[MeanRating, ...]
    differences: tuple[MeanRating, ...]
    not_checked: tuple[str, ...]
    version: VersionName

    def lines(self) -> list[str]:
        size = f"{counted(self.masks, 'mask')} of {counted(self.images, 'image')}"
        given = ", ".join(f"{name} {count:,} of {self.per_rater:,}" for name, count in sorted(self.by_rater.items()))
        by = counted(self.raters, "rater")
        if given:
            by += f" ({given})"
        lines = [f"{counted(self.ratings, 'rating')} by {by}; {self.drawn:,} masks drawn"]
        lines += not_checked_lines(self.not_checked)
        if self.masks:
            lines.append(f"means over {size}; by mask 99% intervals of Student's t; {basis(self.images)}")
            for each in self.means:
                lines.append(each.line())
            tests = "p by a paired t-test and by flipping the signs of whole images, Holm's correction"
            lines.append(f"paired differences over the same {size}; {tests}")
            for each in self.differences:
                lines.append(each.line("+"))
        return [*lines, self.version.line()]


def score_ratings(folder: Location) -> RatingScore:
    """Summarize the ratings of a study. Raises `UsageError` if there is no study."""
    study = load_ratings(folder)
    raters, other = Counter[str](), 0
    given: list[dict[int, list[int]]] = []
    for variant in range(len(study.names)):
        root, found = study.root(variant), dict[int, list[int]]()
        shown = {each.mask: counts_digest(each.counts[variant]) for each in study.objects}
        for rating in read_ratings(root, last_ratings(list_ratings(root))):
            if not isinstance(rating, Rating) or rating.counts_sha256 != shown.get(rating.mask):
                other += 1
            elif rating.score is not None:
                found.setdefault(rating.mask, []).append(rating.score)
                raters[rating.rater] += 1
        given.append(found)
    rated, means_by_object = [], []
    for each in study.objects:
        if all(each.mask in found for found in given):
            rated.append(each)
            means_by_object.append([np.mean(found[each.mask]) for found in given])
    scores = np.array(means_by_object).reshape(-1, len(given))
    images = np.array([each.image for each in rated], np.int64)
    names, span = study.names if rated else (), float(HIGHEST - LOWEST)
    means = tuple(_mean(name, scores[:, place], images, (LOWEST, HIGHEST)) for place, name in enumerate(names))
    differences = []
    for one, two in combinations(range(len(names)), 2):
        name = f"{names[two]} minus {names[one]}"
        differences.append(_mean(name, scores[:, two] - scores[:, one], images, (-span, span)))
    by_mask, by_image = holm([each.p for each in differences]), holm([each.p_by_image for each in differences])
    missing = len(study.objects) - len(rated)
    not_checked = []
    if missing:
        not_checked.append(f"{counted(missing, 'mask')} without a rating of each model and the ground truth")
    if other:
        not_checked.append(f"{counted(other, 'rating')} unreadable, or not of the study's masks")
    return RatingScore(
        len(rated),
        len(set(images.tolist())),
        len(study.objects),
        len(raters),
        raters.total(),
        dict(raters),
        len(study.objects) * len(study.names),
        means,
        tuple(
            replace(each, holm=one, holm_by_image=two)
            for each, one, two in zip(differences, by_mask, by_image, strict=True)
        ),
        tuple(not_checked),
        study.version,
    )


def masks_for(difference: float, deviation: float, power: float, confidence: float = CONFIDENCE) -> int:
    """Compute how many masks a paired t-test needs to find a difference with probability `power`.

    `deviation` is the standard deviation of the differences between masks. The test is two-sided at 1 - `confidence`,
    and its power comes from the noncentral t distribution. The masks are assumed to be independent, for example one per
    image.
    """
    from scipy.stats import nct, t

    def suffices(masks: int) -> bool:
        limit, shift = t.ppf((1 + confidence) / 2, masks - 1), difference / deviation * np.sqrt(masks)
        opposite = np.nan_to_num(nct.cdf(-limit, masks - 1, shift))  # scipy returns NaN for some values near 0
        return bool(nct.sf(limit, masks - 1, shift) + opposite >= power)

    most = 4
    while not suffices(most):
        most *= 2
    return bisect_left(range(2, most), True, key=suffices) + 2


def _between(interval: Interval | None, sign: str) -> str:
    if interval is None:
        return "no interval"
    return f"{interval[0]:{sign}.2f} to {interval[1]:{sign}.2f}"


def _mean(name: str, values: Floats, images: Ints, limits: Interval) -> MeanRating:
    """Compute the mean of the masks' values. If values can be negative, p tests whether the mean is 0."""
    from scipy.stats import ttest_1samp

    by_mask: Interval | None = None
    p: float | None = None
    if len(values) > 1 and np.ptp(values) > 0:
        test = ttest_1samp(values, 0.0)
        low, high = test.confidence_interval(CONFIDENCE)
        by_mask, p = (max(limits[0], float(low)), min(limits[1], float(high))), float(test.pvalue)
    places = np.unique(images, return_inverse=True)[1]
    sums = np.bincount(places, values).astype(np.float64)[:, None]
    by_image = mean_intervals(sums, np.bincount(places).astype(np.float64), limits=limits)[0]
    found = MeanRating(name, float(values.mean()), by_mask, by_image)
    if limits[0] > 0:
        return found
    return replace(found, p=p, p_by_image=sign_flip_p(sums, 0)[0])


def _read(file: Location) -> Mapping[int, Any]:
    """Read each true mask's first prediction, as run lengths by the true mask's annotation id."""
    entries = read_json(file, f"--predictions {file} can't be read")
    found: dict[int, Any] = {}
    if not isinstance(entries, list):
        entries = [None]
    for place, entry in enumerate(entries, start=1):
        where = f"--predictions {file}, entry {place}"
        if not isinstance(entry, dict) or type(mask := entry.get("annotation_id")) is not int:
            raise UsageError(f"{where}: expected a COCO result with annotation_id, the id of a true mask")
        if entry.get("clicks", 1) == 1 and mask not in found:
            rle = entry.get("segmentation")
            if not isinstance(rle, dict):
                rle = {}
            try:
                found[mask] = checked_rle(rle)
            except UnreadableMaskError as error:
                raise UsageError(f"{where}: {error}") from error
    return found


def _object(row: Row, models: Sequence[Mapping[int, Any]], files: Sequence[Location]) -> RatedObject:
    counts = [row["counts"]]
    for model, file in zip(models, files, strict=True):
        mask = model[row["annotation_id"]]
        if list(mask["size"]) != list(row["size"]):
            raise UsageError(f"--predictions {file}: mask {row['annotation_id']} has another size than its image")
        counts.append(mask["counts"].decode("ascii"))
    return RatedObject(row["id"], row["annotation_id"], tuple(counts))
