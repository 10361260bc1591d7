"""Which datasets are of one lineage, and in which order."""

from segmint.catalogs.dataset.manifest import Weights
from segmint.catalogs.lineage import Round, trainings
from segmint.pipeline.engine.rounds.answer import RoundStatus
from segmint.pipeline.engine.rounds.lineages import in_order
from tests.support.lineages import chain_of

A, B, C, D, X = (letter * 64 for letter in "abcdf")


def row(name: str, *weights: str) -> RoundStatus:
    lineage: tuple[Round, ...] = chain_of(*weights) if len(weights) > 1 else ()
    made = Weights(name="sam.pth", sha256=weights[-1])
    return RoundStatus(name, name, trainings(lineage), 1, made, lineage, 1, 1, 1, 1, {"automatic": 1}, 0, 0.0)


def ordered(*rows: RoundStatus) -> list[tuple[str, int, int]]:
    return [(each.name, each.lineage, each.round) for each in in_order(rows)]


def test_rounds_are_in_order_however_they_are_given() -> None:
    given = (row("third", A, B, C), row("first", A), row("second", A, B))
    assert ordered(*given) == [("first", 1, 0), ("second", 1, 1), ("third", 1, 2)]


def test_datasets_of_one_round_stay_as_given() -> None:
    assert ordered(row("b", A), row("a", A)) == [("b", 1, 0), ("a", 1, 0)]


def test_another_branch_and_other_weights_are_other_lineages() -> None:
    """The first dataset belongs to both branches, and is shown once."""
    given = (row("other", X), row("branch", A, D), row("first", A), row("third", A, B, C))
    assert ordered(*given) == [("first", 1, 0), ("third", 1, 2), ("branch", 2, 1), ("other", 3, 0)]


def test_a_round_that_is_not_given_is_no_gap() -> None:
    assert ordered(row("second", A, B, C), row("first", B)) == [("second", 1, 2), ("first", 2, 0)]
    assert ordered(row("third", A, B, C), row("first", A)) == [("first", 1, 0), ("third", 1, 2)]
