"""Reader of another model's predictions, which are evaluated in place of weights.

The file is a JSON list of COCO results with masks. For an evaluation by clicks, each result also names the true mask
(`annotation_id`) and the number of clicks so far (`clicks`). If a model predicts several masks after a click, the first
one in the file is its choice.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from segmint.catalogs.layout import image_name
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.operators.annotations.image import UnreadableMaskError, checked_rle, id_number
from segmint.pipeline.engine.evaluate.kinds import DATASET
from segmint.pipeline.engine.evaluate.measure import EvaluatedWeights, PredictedResult, Predictions
from segmint.pipeline.engine.evaluate.truth import Truth

_EXPECTED = "expected COCO results, a list of {image_id, segmentation: {size, counts}, …}"


def read_predictions(
    files: Sequence[str], truths: Sequence[Truth], storage: Storage, required: Sequence[str] = ()
) -> tuple[Predictions, ...]:
    """Read files of COCO results. Image ids refer to the ground truth file, or to a segmint dataset's export.

    Raises `UsageError` if there are several truths, if a file is in a different format, or if an entry lacks one of the
    `required` keys. The error names the file or the entry.
    """
    if files and len(truths) > 1:
        raise UsageError(f"--predictions takes only one dataset or file, but {len(truths)} were given")
    return tuple(_read(Location(storage, file), truths[0].kind == DATASET, required) for file in files)


def check_matched(models: Sequence[EvaluatedWeights], matched: ArrayLike, keys: str = "image_id") -> None:
    """Raise `UsageError` if none of a model's predictions belongs to an evaluated image or mask.

    `matched` (M,) bool is true for models with such a prediction.
    """
    for model, is_matched in zip(models, np.asarray(matched), strict=False):
        if isinstance(model, Predictions) and not is_matched:
            raise UsageError(
                f"no prediction in {model.name} belongs to an evaluated image: expected {keys} to be the ids in the "
                "ground truth file, or the numbers or file names of the dataset"
            )


def read_entries(option: str, file: Location, expected: str) -> tuple[list[Any], str]:
    """Read a list of COCO results and its file's SHA-256. Raises `UsageError` if the file contains no such list."""
    try:
        data = file.read()
        entries = json.loads(data)
    except NotFoundError as error:
        raise UsageError(f"{option} {file}: no such file") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{option} {file} is not JSON ({error}): {expected}") from error
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"{option} {file} is {'an empty' if entries == [] else 'not a'} list: {expected}")
    return entries, hashlib.sha256(data).hexdigest()


def image_key(image_id: int | str, of_dataset: bool) -> str:
    """Return the key of an entry's image. For the number of an image in a segmint dataset, this is its file name."""
    return image_name(image_id) if of_dataset and isinstance(image_id, int) else str(image_id)


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a finite number."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _read(file: Location, of_dataset: bool, required: Sequence[str]) -> Predictions:
    entries, sha256 = read_entries("--predictions", file, _EXPECTED)
    by_image: dict[str, list[PredictedResult]] = {}
    for number, entry in enumerate(entries, start=1):
        try:
            image, result = _result(entry, required)
        except UnreadableMaskError as error:
            raise UsageError(f"--predictions {file}, entry {number}: {error}") from error
        by_image.setdefault(image_key(image, of_dataset), []).append(result)
    return Predictions(str(file), sha256, by_image, of_dataset)


def _result(entry: Any, required: Sequence[str]) -> tuple[int | str, PredictedResult]:
    if not isinstance(entry, dict) or not isinstance(entry.get("segmentation"), dict):
        raise UnreadableMaskError(f"it is {str(entry)[:40]}: {_EXPECTED}")
    image, score = entry.get("image_id"), entry.get("score")
    numbers = {key: entry.get(key) for key in ("category_id", "annotation_id", "clicks")}
    missing = [key for key in ("image_id", *required) if entry.get(key) is None]
    if missing:
        raise UnreadableMaskError(f"it has no {missing[0]}")
    if not isinstance(image, int | str) or isinstance(image, bool):
        raise UnreadableMaskError(f"its image_id is {str(image)[:40]}: expected an image's id")
    if score is not None and not is_number(score):
        raise UnreadableMaskError(f"its score is {str(score)[:40]}: expected a number")
    for key, value in numbers.items():
        if value is not None and id_number(value) is None:
            raise UnreadableMaskError(f"its {key} is {str(value)[:40]}: expected a whole number")
    return image, PredictedResult(checked_rle(entry["segmentation"]), score, *map(id_number, numbers.values()))
