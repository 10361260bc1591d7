"""Which images the findings of an audit are about, so that a viewer can show them there."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from infra.errors import UsageError
from infra.storage import NotFoundError, Storage
from operators.shard_files import MASKS_PER_IMAGE_LIMIT

Box = tuple[float, float, float, float]

_PLACES: tuple[tuple[re.Pattern[str], Callable[[int], int]], ...] = (
    (re.compile(r"^mask (\d{1,18})\b"), lambda number: number // MASKS_PER_IMAGE_LIMIT),
    (re.compile(r"^image (\d{1,18})\b"), lambda number: number),
    (re.compile(r"^id (\d{1,18})\b"), lambda number: number),
    (re.compile(r"^sa_(\d{1,18})\."), lambda number: number),
    (re.compile(r"^ordinal (\d{1,18})\b"), lambda number: number + 1),
)


@dataclass(frozen=True)
class ImageFinding:
    """One thing that an audit says of an image: a code, a sentence, and where it is about them a mask and a box.

    `mask` is the mask's `annotation_id`, `box` (x, y, width, height) in pixels of the released image.
    """

    image: int
    code: str
    text: str
    mask: int | None = None
    box: Box | None = None


@dataclass(frozen=True)
class AuditFindings:
    """What an audit says of images, and how many of its findings are of files, shards or rows instead."""

    images: tuple[ImageFinding, ...] = ()
    elsewhere: int = 0


def load_findings(storage: Storage, uri: str) -> AuditFindings:
    """Reads what `segmint audit --json -o FILE` wrote; raises `UsageError` for anything else."""
    try:
        document = json.loads(storage.read(uri))
        return read_findings(document)
    except NotFoundError as error:
        raise UsageError(f"{uri}: there is no such audit; `segmint audit DATASET --json -o FILE` writes one") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{uri} is no audit: expected what `segmint audit DATASET --json -o FILE` writes; {error}"
        ) from error


def read_findings(audit: Mapping[str, Any]) -> AuditFindings:
    """The findings, regions, outliers and near-duplicates of an audit's JSON, by image.

    Raises ValueError, TypeError or KeyError where the JSON is no audit's.
    """
    if not isinstance(audit, dict) or not isinstance(audit.get("findings"), list):
        raise ValueError("it has no list `findings`")
    found: list[ImageFinding] = []
    elsewhere = 0
    for finding in audit["findings"]:
        # In data that segmint did not write the numbers of masks are anybody's, and say nothing of their image.
        image = None if audit.get("kind") == "sa1b" else image_of(finding["where"])
        if image is None:
            elsewhere += 1
        else:
            found.append(_finding(image, finding))
    found.extend(_regions(audit.get("privacy") or {}))
    statistics = audit.get("statistics") or {}
    for outlier in statistics.get("outliers") or []:
        found.append(ImageFinding(int(outlier["id"]), "outlier", str(outlier["reason"])))
    for pair in (statistics.get("near_duplicates") or {}).get("examples") or []:
        one, other = (int(number) for number in pair["annotation_ids"])
        text = f"masks {one} and {other} are nearly the same: IoU {pair['iou']:.3f}"
        found.append(ImageFinding(int(pair["id"]), "near_duplicate", text, mask=one))
    return AuditFindings(tuple(found), elsewhere)


def image_of(where: str) -> int | None:
    """The id of the image that a finding's `where` names: by mask, id, file or ordinal; None where it names none."""
    for pattern, to_image in _PLACES:
        match = pattern.match(where)
        if match is not None:
            return to_image(int(match[1]))
    return None


def _finding(image: int, finding: Mapping[str, Any]) -> ImageFinding:
    where = str(finding["where"])
    mask = int(where.split()[1]) if _PLACES[0][0].match(where) else None
    text = f"{where}: expected {finding['expected']}; found {finding['found']}"
    return ImageFinding(image, str(finding["code"]), text, mask)


def _regions(privacy: Mapping[str, Any]) -> Iterator[ImageFinding]:
    for region in privacy.get("found") or []:
        box = (float(region["x"]), float(region["y"]), float(region["w"]), float(region["h"]))
        text = f"a {region['kind']} by the detector {region['detector']} at score {region['score']:.2f}"
        yield ImageFinding(int(region["id"]), f"{region['kind']}_found", text, box=box)
