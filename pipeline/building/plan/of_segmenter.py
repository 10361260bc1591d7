"""Plan of a build with a segmenter, whose time is only known from a sample."""

from collections.abc import Callable
from typing import Any

from segmint.pipeline.building.plan.cpu_stages import cpu_stages
from segmint.pipeline.building.plan.estimates import Extrapolation, column, exactly
from segmint.pipeline.building.plan.options import PlanOptions
from segmint.pipeline.building.plan.remaining import RemainingShards
from segmint.pipeline.building.plan.result import BuildPlan
from segmint.pipeline.building.plan.sample import PlanSample
from segmint.pipeline.config.advice import detector_advice, stage_notes
from segmint.pipeline.config.config import Config


def plan_segmenter(
    config: Config,
    options: PlanOptions,
    remaining: RemainingShards,
    sample: PlanSample | None,
    make: Callable[..., BuildPlan],
) -> BuildPlan:
    """Return the plan of a build with a segmenter. `sample` is None if nothing remains to be built.

    `make` returns a plan with the fields that don't depend on the maker of the masks.
    """
    totals: dict[str, Any] = {"images": exactly(0), "masks": None, "bytes_in": None, "bytes_out": None}
    totals["cpu_core_hours"] = exactly(0)
    hours = None
    if sample is not None:
        totals |= sample.totals(remaining.rows, remaining.shards)
        per_row = Extrapolation(remaining.rows, len(sample.rows))
        hours = per_row.total(column([row.segment_s for row in sample.rows]) / 3600)
    seconds = totals["cpu_core_hours"].value * 3600 / max(totals["images"].value, 1)
    return make(
        **totals,
        encodes_per_image=0,
        prompts_per_image=0,
        ceiling=None,
        hardware="",
        measured=True,
        record=None,
        share_of_ceiling=None,
        device_hours=hours,
        days=None,
        cpu_stages=cpu_stages(seconds, None, "segment", measured=True),
        cost=None if options.price is None or hours is None else hours.scaled(options.price),
        notes=(*stage_notes(config), *detector_advice(config)),
    )
