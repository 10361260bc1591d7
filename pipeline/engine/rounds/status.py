"""`segmint engine status`: datasets round by round, from their manifests, commits and tables alone.

A build's own commits, of generation 1, have only automatic masks, and their sums are saved by blocks. Tables are read
of the shards that were changed since: people's masks come in as a later generation.
"""

from collections.abc import Sequence

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.dataset.summaries import sum_listed
from segmint.catalogs.dataset.tables import open_committed
from segmint.infra.storage.location import Location
from segmint.operators.schemas import AUTOMATIC, SCHEMAS, SOURCES
from segmint.pipeline.engine.rounds.answer import EngineStatus, RoundStatus
from segmint.pipeline.engine.rounds.lineages import in_order

# As `lanes.is_untouched`: masks that a detector's box prefilled, on which nobody spent time.
_UNTOUCHED = """coalesce(
    source = 'assisted' AND parent IS NULL AND seconds = 0 AND len(prompts) = 1 AND prompts[1].kind = 'box', false
)"""

_BY_SOURCE = f"""
SELECT source, count(*) AS masks,
       count(seconds) FILTER (NOT {_UNTOUCHED}) AS timed, sum(seconds)::DOUBLE AS seconds
FROM masks WHERE seconds IS NULL OR isfinite(seconds) GROUP BY 1
"""


def read_engine(datasets: Sequence[Location]) -> EngineStatus:
    """Return the rounds of these datasets, those of one lineage together.

    Raises `UsageError` for a place without a dataset, and `DamagedDatasetError` for a commit or a table that cannot be
    read. It writes nothing but the sums of blocks of commits (`summaries/`), where it may.
    """
    return EngineStatus(tuple(in_order([read_round(dataset) for dataset in datasets])))


def read_round(dataset: Location) -> RoundStatus:
    """Return one dataset as a row of the table; its lineage's number is 1."""
    manifest = load_manifest(dataset)
    held = CommitLog(dataset).held()
    sums = sum_listed(dataset, held)
    built = frozenset(commit.shard for commit in held if commit.generation == 1)
    masks, timed, seconds = dict.fromkeys(SOURCES, 0), 0, 0.0
    if len(built) < len(held):
        with open_committed(dataset, SCHEMAS, leave_out=built) as tables:
            for row in tables.query(_BY_SOURCE).to_pylist():
                masks[row["source"]] = masks.get(row["source"], 0) + row["masks"]
                timed += row["timed"]
                seconds += row["seconds"] or 0.0
    total = sums.counts.get("masks", 0)
    masks[AUTOMATIC] = total - sum(count for source, count in masks.items() if source != AUTOMATIC)
    return RoundStatus(
        dataset=str(dataset),
        name=manifest.name,
        round=manifest.round,
        lineage=1,
        weights=manifest.weights,
        trainings=manifest.lineage,
        shards=sums.shards,
        shards_of=manifest.shards,
        images=sums.counts.get("images", 0),
        masks=total,
        by_source=masks,
        timed=timed,
        seconds=seconds,
    )
