"""Plan of a build with a segmenter, whose time is only known from a sample."""

from segmint.catalogs.dataset.versions.record import VersionName
from segmint.catalogs.source.check import CatalogFindings
from segmint.catalogs.source.files import catalog_format
from segmint.catalogs.source.sampling import COUNTED_BY
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
    catalog_rows: int,
    remaining: RemainingShards,
    sample: PlanSample | None,
    version: VersionName | None,
    checked: CatalogFindings | None,
) -> BuildPlan:
    """Return the plan of a build with a segmenter. `sample` is None if nothing remains to be built."""
    rows = () if sample is None else sample.rows
    per_row = Extrapolation(remaining.rows, max(1, len(rows)))
    accepted = column([row.reason is None for row in rows])
    images, masks, bytes_in, bytes_out, hours = exactly(0), None, None, None, None
    cpu_hours = exactly(0)
    if sample is not None:
        images = per_row.count(accepted)
        masks = per_row.total(column([row.masks for row in rows]))
        bytes_in = per_row.total(column([row.bytes_in for row in rows]))
        bytes_out = sample.written_bytes(per_row, remaining.shards)
        hours = per_row.total(column([row.segment_s for row in rows]) / 3600)
        cpu_hours = per_row.total(column([row.seconds - row.segment_s for row in rows]) / 3600)
    return BuildPlan(
        catalog=config.catalog,
        catalog_rows=catalog_rows,
        counted_by=COUNTED_BY[catalog_format(config.catalog)],
        committed=remaining.committed,
        rows=remaining.rows,
        shards=remaining.shards,
        encodes_per_image=0,
        prompts_per_image=0,
        images=images,
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        masks=masks,
        ceiling=None,
        hardware="",
        measured=True,
        record=None,
        share_of_ceiling=None,
        device_hours=hours,
        days=None,
        cpu_core_hours=cpu_hours,
        cpu_stages=cpu_stages(cpu_hours.value * 3600 / max(images.value, 1), None, "segment", measured=True),
        price=options.price,
        cost=None if options.price is None or hours is None else hours.scaled(options.price),
        sample=sample,
        notes=(*stage_notes(config), *detector_advice(config)),
        version=version,
        checked=checked,
    )
