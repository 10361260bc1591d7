"""Reader of another model's predictions, which are measured in place of weights.

Masks come from a JSON list of COCO results. For clicks, each result also names the true mask (`annotation_id`) and the
number of clicks after which it was predicted (`clicks`); of several results after a click, the first is the choice.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

from segmint.catalogs.layout import image_name
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.operators.annotations.image import UnreadableMaskError, checked_rle, id_number
from segmint.pipeline.engine.evaluate.kinds import DATASET
from segmint.pipeline.engine.evaluate.measure import PredictedResult, Predictions
from segmint.pipeline.engine.evaluate.truth import Truth

_EXPECTED = "expected COCO results, a list of {image_id, segmentation: {size, counts}, …}"


def read_predictions(
    files: Sequence[str], truths: Sequence[Truth], storage: Storage, required: Sequence[str] = ()
) -> tuple[Predictions, ...]:
    """Read files of COCO results. Image ids are those of the ground truth file, or of a segmint dataset's export.

    Raises `UsageError` for several truths, and for a file in another format or an entry without the `required` keys,
    which it names.
    """
    if files and len(truths) > 1:
        raise UsageError(f"--predictions goes with one dataset or file, but {len(truths)} were given")
    return tuple(_read(Location(storage, file), truths[0].kind == DATASET, required) for file in files)


def unmatched_error(predictions: Predictions, keys: str = "image_id") -> UsageError:
    """Return the error for a file in which no prediction belongs to an evaluated image, or to a mask by two `keys`."""
    return UsageError(
        f"no prediction in {predictions.name} belongs to an evaluated image: expected {keys} to be the ids in the "
        "ground truth file, or the numbers or file names of the dataset"
    )


def _read(file: Location, of_dataset: bool, required: Sequence[str]) -> Predictions:
    try:
        data = file.read()
        entries = json.loads(data)
    except NotFoundError as error:
        raise UsageError(f"--predictions {file}: no such file") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--predictions {file} is not JSON ({error}): {_EXPECTED}") from error
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"--predictions {file} is empty or not a list: {_EXPECTED}")
    by_image: dict[str, list[PredictedResult]] = {}
    for number, entry in enumerate(entries, start=1):
        try:
            image, result = _result(entry, required)
        except UnreadableMaskError as error:
            raise UsageError(f"--predictions {file}, entry {number}: {error}") from error
        by_image.setdefault(image_name(image) if of_dataset and isinstance(image, int) else str(image), []).append(
            result
        )
    return Predictions(str(file), hashlib.sha256(data).hexdigest(), by_image, of_dataset)


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
    if score is not None and (type(score) not in (int, float) or not math.isfinite(score)):
        raise UnreadableMaskError(f"its score is {str(score)[:40]}: expected a number")
    for key, value in numbers.items():
        if value is not None and id_number(value) is None:
            raise UnreadableMaskError(f"its {key} is {str(value)[:40]}: expected a whole number")
    return image, PredictedResult(checked_rle(entry["segmentation"]), score, *map(id_number, numbers.values()))
