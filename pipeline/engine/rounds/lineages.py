"""Which datasets belong together: those whose weights come one from another."""

from collections.abc import Sequence
from dataclasses import replace

from segmint.pipeline.engine.rounds.answer import RoundStatus


def in_order(rows: Sequence[RoundStatus]) -> list[RoundStatus]:
    """Return datasets by lineage, and in a lineage by round, with the numbers of the lineages, from 1.

    A lineage is the longest chain of weights among the datasets, and all whose weights are on it; then the longest
    among the others. Of equally long ones, that of the dataset which was given first comes first.
    """
    ordered: list[RoundStatus] = []
    left = list(rows)
    number = 0
    while left:
        number += 1
        longest = max(left, key=lambda row: len(row.chain)).chain
        own = [row for row in left if row.chain == longest[: len(row.chain)]]
        ordered += [replace(row, lineage=number) for row in sorted(own, key=lambda row: (len(row.chain), row.round))]
        left = [row for row in left if row not in own]
    return ordered
