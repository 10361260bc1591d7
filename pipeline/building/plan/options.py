"""What a plan is asked for besides the configuration."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from segmint.catalogs.shard_ranges import ShardPart
from segmint.infra.errors import UsageError


@dataclass(frozen=True)
class PlanOptions:
    """The options of `segmint plan`. Raises `UsageError` for numbers that make no sense."""

    shards: tuple[int, int] | ShardPart | None = None
    sample: int | None = None  # rows
    gpus: int | None = None  # None: those of this machine
    price: float | None = None  # of a GPU-hour; of a core-hour where the device is a CPU
    share: float | None = None  # of the ceiling, 0 to 1; None: DEFAULT_SHARE, or measured by the sample
    flops: float | None = None  # peak of one GPU of another machine, operations per second
    megapixels: float | None = None  # of an original, on average; None: SA-1B's, or measured by the sample

    def __post_init__(self) -> None:
        checks: list[tuple[str, float | None, Callable[[float], bool], str]] = [
            ("--sample", self.sample, lambda value: value >= 1, "a number of rows from 1"),
            ("--gpus", self.gpus, lambda value: value >= 1, "a number of GPUs from 1"),
            ("--price", self.price, lambda value: value >= 0, "the price of an hour, 0 or more"),
            ("--share", self.share, lambda value: 0 < value <= 1, "a share over 0, and at most 1"),
            ("--flops", self.flops, lambda value: value > 0, "operations per second, such as 9.9e14"),
            ("--megapixels", self.megapixels, lambda value: value > 0, "the originals' average size, such as 12"),
        ]
        for name, value, fits, expected in checks:
            if value is not None and not (math.isfinite(value) and fits(value)):
                raise UsageError(f"{name} is {value:g}: expected {expected}")
        if self.share is not None and self.sample is not None and self.flops is None:
            raise UsageError("--share is an assumption about what --sample measures: give one of them")
        if self.megapixels is not None and self.sample is not None:
            raise UsageError("--megapixels is an assumption about the originals that --sample reads: give one of them")
