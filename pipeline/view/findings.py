"""The findings of an audit by image, for a viewer."""

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
    """A finding of an audit about an image: a code and a sentence, and the mask or box that it is about, if any.

    `mask` is the mask's `annotation_id`, `box` (x, y, width, height) in pixels of the released image.
    """

    image: int
    code: str
    text: str
    mask: int | None = None
    box: Box | None = None


@dataclass(frozen=True)
class AuditFindings:
    """The findings about images, and the number of findings about files, shards or rows instead."""

    images: tuple[ImageFinding, ...] = ()
    elsewhere: int = 0


def load_findings(storage: Storage, uri: str) -> AuditFindings:
    """Read the output of `segmint audit --json -o FILE`; raises `UsageError` for anything else."""
    try:
        document = json.loads(storage.read(uri))
        return read_findings(document)
    except NotFoundError as error:
        raise UsageError(f"{uri} does not exist; `segmint audit DATASET --json -o FILE` writes an audit") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{uri} is not an audit: expected the output of `segmint audit DATASET --json -o FILE`; {error}"
        ) from error


def read_findings(audit: Mapping[str, Any]) -> AuditFindings:
    """Return the findings, regions, outliers and near-duplicates of an audit's JSON.

    Raises ValueError, TypeError or KeyError if the JSON is not an audit's.
    """
    if not isinstance(audit, dict) or not isinstance(audit.get("findings"), list):
        raise ValueError("no list `findings`")
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
        text = f"masks {one} and {other} are near-duplicates: IoU {pair['iou']:.3f}"
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
        text = f"a {region['kind']} found by {region['detector']} at score {region['score']:.2f}"
        yield ImageFinding(int(region["id"]), f"{region['kind']}_found", text, box=box)
