"""Statistics and audits of an empty dataset, for tests that fill in what they need."""

from dataclasses import replace
from typing import Any

from segmint.catalogs.findings import Findings
from segmint.pipeline.quality.audit.result import AuditReport, CheckedCounts
from segmint.pipeline.quality.statistics.values import (
    Centers,
    Concavity,
    Geography,
    Histogram,
    HugeMasks,
    MaskLevels,
    MasksPerImage,
    NearDuplicates,
    Statistics,
    TinyMasks,
)

_UNKNOWN = Histogram((0.0, 1.0), None, None)

_NOTHING = Statistics(
    images=0,
    sources=None,
    labels=(),
    masks=0,
    relative_size=_UNKNOWN,
    concavity=Concavity((0.0, 1.0), None, None, ()),
    aspect_ratio=_UNKNOWN,
    predicted_iou=_UNKNOWN,
    stability_score=_UNKNOWN,
    centers=Centers(1, ((0,),)),
    tiny=TinyMasks(100, 0),
    huge=HugeMasks(0.95, 0),
    levels=MaskLevels((0, 0, 0), 0),
    rejected=None,
    rejected_by_reason=None,
    masks_per_image=MasksPerImage(None, None, ()),
    without_masks=0,
    coverage=_UNKNOWN,
    funnel=None,
    cleanup=None,
    near_duplicates=NearDuplicates(0, 0.9, 0, 0, ()),
    geography=Geography(0, 0, (), (), ()),
    licenses=(),
    providers=(),
    drift=(),
    outliers=(),
)


def statistics_of(**known: Any) -> Statistics:
    """Statistics in which nothing else is known."""
    return replace(_NOTHING, **known)


def audit_of(**known: Any) -> AuditReport:
    """An audit without findings, with these fields."""
    report = AuditReport("x", "all", "segmint", 1, 100, Findings({}, ()), CheckedCounts())
    return replace(report, **known)
