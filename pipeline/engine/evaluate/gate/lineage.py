"""What weights were trained on, by the `training.json` beside them."""

from dataclasses import dataclass
from typing import Any

from segmint.catalogs.lineage import TRAINING, TrainingRound, check_lineage
from segmint.infra.assets.known import ASSETS
from segmint.infra.assets.names import is_web_address
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import absolute, parent
from segmint.pipeline.engine.evaluate.measure import EvaluatedWeights
from segmint.pipeline.engine.train.record import TrainingRecord, read_record

_PUBLISHED = frozenset(asset.sha256 for asset in ASSETS.values())
"""The SHA-256 of weights that segmint knows, and that no training of its made."""


@dataclass(frozen=True)
class Lineage:
    """What weights were trained on: the rounds that trained them or the weights that they descend from.

    `known` is False for weights of others, without their `training.json`, and where the lineage begins with such.
    `share` is the smallest held-out share of all rounds; None without a round, 0 if that of a round is not known.
    `begun` are the weights that the first round began from: a link without datasets.
    """

    weights: EvaluatedWeights
    known: bool
    rounds: tuple[TrainingRound, ...] = ()
    share: float | None = None
    begun: tuple[TrainingRound, ...] = ()

    @property
    def hashes(self) -> frozenset[str]:
        """The SHA-256 of these weights and of all that they descend from."""
        return frozenset([self.weights.sha256, *(each.weights for each in (*self.begun, *self.rounds))])

    @property
    def ancestors(self) -> frozenset[str]:
        """The SHA-256 of all weights of the lineage whose datasets may have masks of training images.

        Published weights are not among them: they made many datasets, and were trained on none of them.
        """
        return frozenset(each.weights for each in (*self.begun, *self.rounds)) - _PUBLISHED

    @property
    def unexplained(self) -> frozenset[str]:
        """The SHA-256 of weights of the lineage of which it is not known what they were trained on."""
        return self.hashes - {each.weights for each in self.rounds} - _PUBLISHED

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
        if not self.known and not self.rounds:
            return (
                f"{self.weights.label}: where these weights come from is not known, as no {TRAINING} of theirs is "
                "beside them; images count as held out unless a dataset notes that it trained them"
            )
        if not self.rounds:
            return f"{self.weights.label}: not trained by segmint"
        names = ", ".join(sorted(self.names))
        line = f"{self.weights.label}: trained on {names}, with {100 * (self.share or 0):g} % held out"
        if self.known:
            return line
        begun = self.begun[0].name if self.begun else "the weights that the first round began from"
        return (
            f"{line}; what {begun} was trained on before is not known: images count as held out from that unless a "
            "dataset notes that it trained it"
        )


def lineage_of(weights: EvaluatedWeights, storage: Storage) -> Lineage:
    """Find what weights were trained on; raises `UsageError` for a `training.json` that cannot be read."""
    if weights.sha256 in _PUBLISHED:
        return Lineage(weights, known=True)
    if is_web_address(weights.name):
        return Lineage(weights, known=False)
    file = Location(storage, parent(absolute(weights.name))) / TRAINING
    record = read_record(file, TrainingRecord)
    if record is None or record.weights != weights.sha256:
        return Lineage(weights, known=False)
    try:
        check_lineage(record.weights, record.lineage, record.datasets)
        if not record.datasets:
            raise ValueError("it names no dataset")
    except ValueError as error:
        raise UsageError(
            f"{file} is not what segmint train writes: {error}. Put back the file that the training wrote"
        ) from error
    rounds = tuple(each for each in record.lineage if each.datasets)
    begun = tuple(each for each in record.lineage if not each.datasets)
    known = not record.lineage[0].datasets and all(each.weights in _PUBLISHED for each in begun)
    share = min(each.held_out_share or 0.0 for each in rounds)
    return Lineage(weights, known, rounds, share, begun)
