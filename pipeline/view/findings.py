"""Which images the findings of an audit are about, so that a viewer can show them there."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.storage import Storage

Box = tuple[float, float, float, float]

_MASK = re.compile(r"^mask (\d{1,18})\b")


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
        if finding["image"] is None:
            elsewhere += 1
        else:
            found.append(_finding(finding))
    found.extend(_regions(audit.get("privacy") or {}))
    statistics = audit.get("statistics") or {}
    for outlier in statistics.get("outliers") or []:
        found.append(ImageFinding(int(outlier["id"]), "outlier", str(outlier["reason"])))
    for pair in (statistics.get("near_duplicates") or {}).get("examples") or []:
        one, other = (int(number) for number in pair["annotation_ids"])
        text = f"masks {one} and {other} are nearly the same: IoU {pair['iou']:.3f}"
        found.append(ImageFinding(int(pair["id"]), "near_duplicate", text, mask=one))
    return AuditFindings(tuple(found), elsewhere)


def _finding(finding: Mapping[str, Any]) -> ImageFinding:
    where = str(finding["where"])
    mask = _MASK.match(where)
    text = f"{where or finding['file']}: expected {finding['expected']}; found {finding['found']}"
    return ImageFinding(int(finding["image"]), str(finding["code"]), text, None if mask is None else int(mask[1]))


def _regions(privacy: Mapping[str, Any]) -> Iterator[ImageFinding]:
    for region in privacy.get("found") or []:
        box = (float(region["x"]), float(region["y"]), float(region["w"]), float(region["h"]))
        text = f"a {region['kind']} by the detector {region['detector']} at score {region['score']:.2f}"
        yield ImageFinding(int(region["id"]), f"{region['kind']}_found", text, box=box)
