"""The accounting at the end of a run: `in = written + rejected by reason`, and what is left for the next run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.versions.record import VersionName, put_version
from segmint.infra.errors import UnfinishedError
from segmint.infra.storage.errors import StorageFaultError
from segmint.infra.wording import counted, plural
from segmint.pipeline.building.dataset.dataset import BuildDataset
from segmint.pipeline.building.execution.ceiling import Ceiling
from segmint.pipeline.building.execution.stage_loads import StageLoad, loads_line
from segmint.pipeline.building.status.totals import total


class NotRecordedError(UnfinishedError):
    """A run committed all that it was asked for, and a store's fault kept it from recording that at its end."""

    def __init__(self, accounting: "Accounting", message: str) -> None:
        super().__init__(message)
        self.accounting = accounting


@dataclass(frozen=True)
class Accounting:
    """The contents of the dataset, from the commits alone, and the results of the run."""

    dataset: str
    rows: int  # catalog rows of the shards asked for
    written: int  # images
    rejected: Mapping[str, int] = field(default_factory=dict)  # by reason
    masks: int = 0
    shards: int = 0  # committed, of those asked for
    missing: Sequence[int] = ()  # shards left for the next run
    missing_rows: int = 0
    retried_rows: int = 0  # refused before, and retried by this run
    retried_images: int = 0  # of these, now images
    not_retried: Sequence[int] = ()  # shards whose refused rows could not be retried
    built_rows: int = 0  # rows that this run committed, including rejected ones
    built_images: int = 0
    built_masks: int = 0
    seconds: float = 0.0  # of the whole run, including the start of Ray and the model
    ceiling: Ceiling | None = None  # None if the run had nothing to do or measured nothing
    stages: Sequence[StageLoad] = ()  # how busy their workers were in this run
    version: VersionName | None = None  # the dataset at the end of the run

    @property
    def complete(self) -> bool:
        """Whether every row asked for is in a committed shard, and was retried if that was asked for."""
        return not self.missing and not self.not_retried

    @property
    def images_per_s(self) -> float:
        """Images that this run wrote, per second of the whole run; rejected rows do not count."""
        return self.built_images / self.seconds if self.seconds else 0.0

    @property
    def masks_per_s(self) -> float:
        """Masks that this run wrote, per second of the whole run."""
        return self.built_masks / self.seconds if self.seconds else 0.0

    @property
    def share_of_ceiling(self) -> float | None:
        """The share of the hardware's ceiling that the run reached; it is the same for images and for masks."""
        return self.images_per_s / self.ceiling.images_per_s if self.ceiling else None

    def to_dict(self) -> dict[str, Any]:
        """Return the accounting for JSON: all fields, the rates, and the shares of the ceiling and of the stages."""
        return {
            **asdict(self),
            "stages": [{**asdict(load), "share": load.share} for load in self.stages],
            "images_per_s": self.images_per_s,
            "masks_per_s": self.masks_per_s,
            "ceiling_images_per_s": self.ceiling.images_per_s if self.ceiling else None,
            "share_of_ceiling": self.share_of_ceiling,
        }

    def lines(self) -> list[str]:
        """Return the accounting as lines for people."""
        refused = sum(self.rejected.values())
        lines = [
            f"in        {self.rows:>12,} {plural(self.rows, 'row')}",
            f"written   {self.written:>12,} {plural(self.written, 'image')} with {counted(self.masks, 'mask')} in "
            f"{counted(self.shards, 'shard')}",
            f"rejected  {refused:>12,}",
            *(f"  {reason:<24} {count:>8,}" for reason, count in sorted(self.rejected.items())),
        ]
        if self.missing:
            rows, shards = plural(self.missing_rows, "row"), counted(len(self.missing), "shard")
            lines.append(f"left      {self.missing_rows:>12,} {rows} in {shards}, for a next run")
        if self.retried_rows:
            lines.append(f"retried   {self.retried_rows:>12,} refused rows: {self.retried_images:,} are images now")
        if self.not_retried:
            shards = counted(len(self.not_retried), "shard")
            lines.append(f"left      refused rows in {shards}, to be taken again by a next run")
        if self.built_rows:
            lines.append(
                f"this run  {self.built_rows:>12,} {plural(self.built_rows, 'row')} in {self.seconds:,.1f} s: "
                f"{self.images_per_s:.3g} images/s, {self.masks_per_s:.3g} masks/s"
            )
            lines.extend(self._ceiling_lines())
            if self.stages:
                lines.append(loads_line(self.stages))
        elif self.complete and not self.retried_rows:
            lines.append(f"nothing was left to do ({self.seconds:.1f} s)")
        if self.version is not None:
            lines.append(self.version.line())
        return lines

    def _ceiling_lines(self) -> list[str]:
        share = self.share_of_ceiling
        if self.ceiling is None or not share:
            return []
        return [
            f"ceiling   {self.ceiling.images_per_s:>12.3g} images/s, {self.masks_per_s / share:.3g} masks/s by plain "
            f"algebra on {self.ceiling.hardware}: this run reached {100 * share:.3g} %"
        ]

    def unfinished_message(self, on_hold: Mapping[int, str]) -> str:
        """Return why the run is not complete, shard by shard, and what to do."""
        parts = []
        if self.missing:
            parts.append(
                f"{counted(len(self.missing), 'shard')} with {counted(self.missing_rows, 'row')} could not be "
                "finished; nothing is lost, and the same command goes on:"
            )
            parts += _shards(self.missing, on_hold)
        if self.not_retried:
            parts.append(
                f"refused rows in {counted(len(self.not_retried), 'shard')} could not be judged again; they "
                "stay as they are, and the same command tries again:"
            )
            parts += _shards(self.not_retried, on_hold)
        return "\n".join([*parts, *self.lines()])


def record_end(dataset: BuildDataset, accounting: Accounting, on_hold: Mapping[int, str]) -> Accounting:
    """Write the index of a complete dataset and its version, at the end of a run; return the accounting with that.

    `on_hold` is why shards are missing. Raises `UnfinishedError` if something is left for another run, and
    `NotRecordedError`, with the accounting, if only the record is: a store's fault at the end takes nothing from it.
    """
    fault = None
    try:
        if accounting.complete:
            dataset.write_index()
        accounting = replace(accounting, version=put_version(dataset.location, "build"))
    except (StorageFaultError, OSError) as error:
        fault = error
    problem = f"shards.json and a version could not be recorded at the end of the run: {fault}"
    advice = "Nothing is lost: once that is fixed, the same command records them"
    if not accounting.complete:
        left = accounting.unfinished_message(on_hold)
        raise UnfinishedError(left if fault is None else f"{left}\n{problem}") from fault
    if fault is not None:
        raise NotRecordedError(accounting, f"{problem}\n{advice}") from fault
    return accounting


def _shards(shards: Sequence[int], on_hold: Mapping[int, str]) -> list[str]:
    shown = [f"  shard {shard}: {on_hold.get(shard, 'not reached')}" for shard in shards[:10]]
    return [*shown, *([f"  and {len(shards) - 10} more"] if len(shards) > 10 else [])]


def account(
    dataset: BuildDataset,
    wanted: range,
    *,
    seconds: float,
    built: Mapping[str, int],
    ceiling: Ceiling | None = None,
    stages: Sequence[StageLoad] = (),
) -> Accounting:
    """Sum the commits of the shards in `wanted`; `built` are the counts that this run added in `seconds`."""
    totals = total(dataset.location, dataset.manifest, CommitLog(dataset.location).latest_commits(), wanted)
    return Accounting(
        dataset=str(dataset.location),
        **vars(totals),
        built_rows=built.get("rows", 0),
        built_images=built.get("images", 0),
        built_masks=built.get("masks", 0),
        seconds=seconds,
        ceiling=ceiling,
        stages=stages,
    )
