"""Options of `segmint plan`, and the GPU that they describe."""

from dataclasses import dataclass

from segmint.catalogs.shard_ranges import ShardPart
from segmint.infra.errors import UsageError
from segmint.infra.units import FLOPS, OVER_ZERO, check_option
from segmint.pipeline.building.plan.rates import GIVEN, Card, card_named, known_cards


@dataclass(frozen=True)
class PlanOptions:
    """Options of `segmint plan`. Raises `UsageError` for invalid numbers."""

    shards: tuple[int, int] | ShardPart | None = None
    sample: int | None = None  # rows
    gpu: str | None = None  # name of another machine's GPU, such as H200
    gpus: int | None = None  # None: the GPUs of this machine
    price: float | None = None  # price per GPU-hour, or per core-hour if the device is a CPU
    share: float | None = None  # fraction of the ceiling, 0 to 1; None: recorded, or measured by the sample
    flops: float | None = None  # peak of one GPU of another machine, in operations per second
    megapixels: float | None = None  # average size of the originals; None: SA-1B's, or measured by the sample
    cores: int | None = None  # cores per GPU on the GPU nodes; None: this machine's, or enough on another machine

    def __post_init__(self) -> None:
        check_option("--sample", self.sample, "a number of rows from 1", 1)
        check_option("--gpus", self.gpus, "a number of GPUs from 1", 1)
        check_option("--cores", self.cores, "a number of cores from 1", 1)
        check_option("--flops", self.flops, "operations per second, such as 9.9e14", *FLOPS)
        check_option("--share", self.share, "a share above 0 and at most 1", OVER_ZERO, 1)
        check_option("--megapixels", self.megapixels, "the originals' average size, such as 12", OVER_ZERO)
        check_option("--price", self.price, "the price per hour, 0 or more", 0)
        if self.share is not None and self.sample is not None and not self.elsewhere:
            raise UsageError("--share assumes what --sample measures: use only one of them")
        if self.megapixels is not None and self.sample is not None:
            raise UsageError("--megapixels assumes the size of the originals that --sample reads: use only one of them")
        if self.elsewhere and self.card is None:
            raise UsageError(
                f"--gpu {self.gpu}: expected one of {', '.join(known_cards())}; for another GPU, also pass its peak, "
                "such as --flops 9.9e14"
            )

    @property
    def elsewhere(self) -> bool:
        """True if the plan is for another machine's GPUs."""
        return self.gpu is not None or self.flops is not None

    @property
    def card(self) -> Card | None:
        """The other machine's GPU, or None if the plan is for this machine."""
        return card_named(self.gpu or "", self.flops, GIVEN) if self.elsewhere else None
