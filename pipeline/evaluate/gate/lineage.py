"""What weights were trained on, by the `training.json` beside them."""

from dataclasses import dataclass
from typing import Any

from segmint.catalogs.lineage import TRAINING, Round
from segmint.infra.assets.known import ASSETS
from segmint.infra.assets.names import is_web_address
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import absolute, parent
from segmint.pipeline.evaluate.measure import Weights
from segmint.pipeline.train.record import TrainingRecord, read_record


@dataclass(frozen=True)
class Lineage:
    """What weights were trained on: the rounds that trained them or the weights that they descend from.

    `known` is False for weights of others, without their `training.json`. `share` is the smallest held-out share of all
    rounds; None without a round, 0 if that of a round is not known.
    """

    weights: Weights
    known: bool
    rounds: tuple[Round, ...] = ()
    share: float | None = None

    @property
    def hashes(self) -> frozenset[str]:
        """The SHA-256 of all weights that were trained, and of these."""
        return frozenset([self.weights.sha256, *(each.weights for each in self.rounds)])

    @property
    def names(self) -> frozenset[str]:
        """The names of the datasets that were trained on."""
        return frozenset(dataset.name for each in self.rounds for dataset in each.datasets)

    @property
    def digests(self) -> frozenset[str]:
        """The digests of the versions that were trained on."""
        return frozenset(dataset.digest for each in self.rounds for dataset in each.datasets)

    def to_dict(self) -> dict[str, Any]:
        """The lineage as JSON values."""
        return {
            **self.weights.to_dict(),
            "known": self.known,
            "held_out_share": self.share,
            "rounds": [each.model_dump(mode="json") for each in self.rounds],
        }

    def line(self) -> str:
        """The lineage in a sentence, without a full stop."""
        if not self.known:
            return (
                f"{self.weights.label}: where these weights come from is not known, as no {TRAINING} of theirs is "
                "beside them; images count as held out unless a dataset notes that it trained them"
            )
        if not self.rounds:
            return f"{self.weights.label}: not trained by segmint"
        names = ", ".join(sorted(self.names))
        return f"{self.weights.label}: trained on {names}, with {100 * (self.share or 0):g} % held out"


def lineage_of(weights: Weights, storage: Storage) -> Lineage:
    """Find what weights were trained on; raises `UsageError` for a `training.json` that cannot be read."""
    if weights.sha256 in {asset.sha256 for asset in ASSETS.values()}:
        return Lineage(weights, known=True)
    if is_web_address(weights.name):
        return Lineage(weights, known=False)
    record = read_record(Location(storage, parent(absolute(weights.name))) / TRAINING, TrainingRecord)
    if record is None or record.weights != weights.sha256:
        return Lineage(weights, known=False)
    rounds = tuple(each for each in record.lineage if each.datasets)
    shares = [each.held_out_share for each in rounds]
    return Lineage(weights, True, rounds, min((share or 0.0 for share in shares), default=None))
