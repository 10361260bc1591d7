"""Result of a plan: its values, and their text and JSON forms."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from segmint.catalogs.dataset.versions import VersionName
from segmint.catalogs.source.check import CatalogFindings
from segmint.infra.wording import count, counted, duration, number, plural, size
from segmint.pipeline.building.execution.ceiling import Ceiling
from segmint.pipeline.building.plan_rates import ActorStarts, CpuStages, Curation, Estimate, SegmentTime
from segmint.pipeline.building.plan_sample import STAGES, PlanSample


@dataclass(frozen=True)
class BuildPlan:
    """Remaining work of a build, and its estimated cost."""

    catalog: str
    catalog_rows: int
    counted_by: str
    committed: int  # committed shards among the requested ones
    rows: int  # left to build
    shards: int
    encodes_per_image: int
    prompts_per_image: int
    images: Estimate  # all rows, if no sample measures the rejections
    bytes_in: Estimate | None  # unknown (None) without a sample
    bytes_out: Estimate | None
    masks: Estimate | None
    ceiling: Ceiling | None  # None: a segmenter makes the masks, and the operations that it needs are unknown
    hardware: str
    measured: bool  # True: the sample measured the time
    record: SegmentTime | None  # recorded time per image that the plan uses; None: measured, --share, or unknown
    share_of_ceiling: float | None  # assumed, recorded (at the slow end), or reached by the sample; None: unknown
    device_hours: Estimate | None  # GPU-hours, or core-hours if the device is a CPU; None: unknown
    days: Estimate | None
    cpu_core_hours: Estimate  # all stages except segment, and a GPU actor's threads on the CPU
    cpu_stages: CpuStages
    price: float | None
    cost: Estimate | None
    sample: PlanSample | None
    notes: tuple[str, ...]
    version: VersionName | None  # version of the dataset; None: the dataset doesn't exist yet
    checked: CatalogFindings | None  # findings in the catalog's first rows; None: nothing remains to build
    starts: ActorStarts | None = None  # None: unknown without a sample
    elsewhere: bool = False  # True: the plan is for another machine's GPU
    curation: Curation | None = None  # None: the configuration doesn't contain `curate`

    @property
    def hours_of(self) -> str:
        """Unit of `device_hours`: GPU or core."""
        if self.ceiling is None:
            return "actor"
        return "GPU" if self.ceiling.device == "cuda" else "core"

    def to_dict(self) -> dict[str, Any]:
        """Return the plan for JSON: all fields, the unit of `device_hours`, and the total encodes and prompts."""
        return {
            **asdict(self),
            "checked": None if self.checked is None else self.checked.to_dict(),
            "hours_of": self.hours_of,
            "encodes": asdict(self.images.scaled(self.encodes_per_image)),
            "prompts": asdict(self.images.scaled(self.prompts_per_image)),
            "ceiling_images_per_s": None if self.ceiling is None else self.ceiling.images_per_s,
            "rejected": {} if self.sample is None else {k: len(rows) for k, rows in self.sample.rejected.items()},
        }

    def lines(self) -> list[str]:
        committed = f"; already committed: {counted(self.committed, 'shard')}" if self.committed else ""
        lines = [
            _line("catalog", f"{self.catalog_rows:,}", f"{plural(self.catalog_rows, 'row')}, from {self.counted_by}"),
            _line(
                "to build",
                f"{self.rows:,}",
                f"{plural(self.rows, 'row')} in {counted(self.shards, 'shard')}{committed}",
            ),
        ]
        notes = [f"note: {note}" for note in self.notes]
        if not self.rows:
            return [*lines, "nothing to do: all requested shards are committed", *notes, *self._digest_lines()]
        if self.sample is not None:
            lines += self._sample_lines(self.sample)
        lines.append(_line("images", *self._shown(self.images, "of these rows" if self.sample else "at most", count)))
        if self.ceiling is not None:
            lines.append(self._per_image_line("encodes", self.encodes_per_image))
            lines.append(self._per_image_line("prompts", self.prompts_per_image))
        lines += [
            _line("masks", *self._shown(self.masks, "", count)),
            _line("bytes in", *self._shown(self.bytes_in, "", size)),
            _line("bytes out", *self._shown(self.bytes_out, "", size)),
        ]
        lines += self._segmenter_lines() if self.ceiling is None else self._device_lines(self.ceiling)
        if self.curation is not None:
            lines.append(self.curation.line())
        if self.cost is not None:
            lines.append(self._time_line("cost", self.cost, f"at {self.price:g} per {self.hours_of}-hour"))
        return [*lines, *notes, *self._catalog_lines(), *self._digest_lines()]

    def _device_lines(self, ceiling: Ceiling) -> list[str]:
        """Return lines on the time that the devices need, and on the CPUs."""
        ready_in = None if self.days is None else self.days.scaled(86_400)
        lines = [
            _line("ceiling", f"{ceiling.images_per_s:,.3g}", f"images/s, the theoretical peak of {self.hardware}"),
            self._share_line(),
            self._time_line("ready in", ready_in, f"on {self._devices(ceiling)}", duration),
            self._time_line("that is", self.device_hours, f"{self.hours_of}-hours"),
        ]
        if self.starts is not None:
            lines.append(self.starts.line(self.hours_of))
        return [*lines, *self._cpu_lines(ceiling)]

    def _segmenter_lines(self) -> list[str]:
        rest = "core-hours for all stages except the segmenter, as the sample measured them"
        return [
            self._time_line(
                "that is", self.device_hours, "hours of one actor of the segmenter, for one image at a time"
            ),
            _line("CPUs", *self._shown(self.cpu_core_hours, rest)),
        ]

    def _catalog_lines(self) -> list[str]:
        """Return lines on the catalog's first rows: what a build would reject in them, and what an audit would find."""
        if self.checked is None:
            return []
        found = [*self.checked.unusable_lines(), *self.checked.outlook_lines()]
        if self.checked.bad_values.count:
            found.insert(0, f"invalid value: {self.checked.bad_values.named()}: a build won't start with it")
        if not found:
            return []
        part = f"the first {self.checked.rows:,} rows" if self.checked.rows < self.catalog_rows else "all rows"
        return [f"catalog entries of {part}, as `segmint catalog check` finds them:", *(f"  {line}" for line in found)]

    def _digest_lines(self) -> list[str]:
        return [] if self.version is None else [self.version.line()]

    def _per_image_line(self, label: str, each: int) -> str:
        most = "" if self.sample else "at most, "
        return _line(label, *self._shown(self.images.scaled(each), f"{most}{each:,} per image", count))

    def _devices(self, ceiling: Ceiling) -> str:
        if ceiling.device == "cuda":
            return f"{ceiling.devices:,} GPU{'s' * (ceiling.devices > 1)}"
        cores = ceiling.devices * ceiling.threads
        return f"this machine's CPU, {counted(cores, 'core')}"

    def _time_line(
        self, label: str, estimate: Estimate | None, rest: str, written: Callable[[float], str] = number
    ) -> str:
        """Return a line with a time. A recorded range has no most likely value, so only its ends are shown."""
        if estimate is None:
            return self._unknown_time_line(label)
        if self.record is None or self.record.low_s == self.record.high_s:
            return _line(label, *self._shown(estimate, rest, written))
        return _line(label, f"{written(estimate.low)} to {written(estimate.high)}", rest)

    def _unknown_time_line(self, label: str) -> str:
        """Return a line without a time. A sample doesn't measure another machine's GPU."""
        if self.elsewhere:
            return _line(label, "unknown", "without --share")
        return _line(label, "unknown", "without --sample or --share" if self.sample is None else "")

    def _shown(self, estimate: Estimate | None, rest: str, written: Callable[[float], str] = number) -> tuple[str, str]:
        if estimate is None:
            return "unknown", "without --sample" if self.sample is None else ""
        if estimate.low != estimate.high:
            rest = f"{rest} ({written(estimate.low)} to {written(estimate.high)})".lstrip()
        return written(estimate.value), rest

    def _cpu_lines(self, ceiling: Ceiling) -> list[str]:
        """Return lines on the stages other than segment, the limiting stage, and the cores that a GPU needs."""
        stages, each = self.cpu_stages, f"{self.cpu_stages.seconds_an_image:.3g} s per image"
        included = " (in the time above)" if ceiling.device == "cpu" else ""
        rest = f"core-hours for all stages except segment{included}: {each}, {stages.source}"
        lines = [_line("CPUs", *self._shown(self.cpu_core_hours, rest))]
        if self.device_hours is None:
            return lines
        if ceiling.device == "cpu":
            return [*lines, _line("limits", stages.limits, "takes most of the cores' time")]
        if stages.cores_a_gpu is not None:
            fewer, rate = counted(stages.fewer_cores, "core"), number(stages.fewer_images_per_s)
            rest = f"keep a GPU busy; with {fewer}, it reaches at most {rate} images/s"
            lines.append(_line("balanced", counted(stages.cores_a_gpu, "CPU core"), rest))
        reason = "is the slowest stage, which the times above follow"
        if stages.limits == "segment":
            reason = "is the slowest stage if the GPU nodes have enough cores (--cores)"
        return [*lines, _line("limits", stages.limits, reason)]

    def _share_line(self) -> str:
        if self.share_of_ceiling is None:
            return self._unknown_time_line("recorded")
        share = f"{100 * self.share_of_ceiling:.3g}%"
        if self.measured:
            return _line("reached", share, "of the ceiling in the sample, including the time the device waited")
        if self.record is None:
            return _line("assumed", share, "of the ceiling: assumed (--share), not measured")
        least = "" if self.record.low_s == self.record.high_s else "or more "
        return _line("recorded", share, f"{least}of the ceiling, {self.record.source}")

    def _sample_lines(self, sample: PlanSample) -> list[str]:
        lines = [
            _line(
                "sample",
                f"{len(sample.rows):,}",
                f"rows in {sample.seconds:,.1f} s, including {sample.start_s:,.1f} s to start"
                + (f"; {sample.device}, {counted(sample.threads, 'thread')}" if sample.threads else ""),
            )
        ]
        for stage in STAGES:
            seconds = [getattr(row, f"{stage}_s") for row in sample.rows if row.reason is None]
            if seconds:
                spread = f"s per image, {min(seconds):.3g} to {max(seconds):.3g}"
                lines.append(_line(f"  {stage}", f"{sum(seconds) / len(seconds):.3g}", spread))
        for name, title in (("bytes_in", "read"), ("released_bytes", "JPEG"), ("annotation_bytes", "JSON")):
            sizes = [getattr(row, name) for row in sample.rows if row.reason is None]
            if sizes:
                spread = f"per image, {size(min(sizes))} to {size(max(sizes))}"
                lines.append(_line(f"  {title}", size(sum(sizes) / len(sizes)), spread))
        refused = len(sample.rows) - sample.accepted
        lines.append(_line("rejected", f"{refused:,}", f"of the sample's {len(sample.rows):,} rows"))
        for reason, rows in sample.rejected.items():
            first = rows[0]
            lines.append(f"  {reason:<24} {len(rows):>8,}  row {first.ordinal + 1}: {first.detail}")
        return lines


def _line(label: str, value: str, rest: str) -> str:
    return f"{label:<10}{value:>16} {rest}".rstrip()
