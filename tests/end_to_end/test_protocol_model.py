"""Builds, corrections, growth and sweeps, interleaved at their storage calls, killed and paused: against a model.

The invariants are those of docs/guarantees.md, by their numbers. A failure names its history; to repeat that one
alone: `SEGMINT_HISTORY=SEED pytest tests/end_to_end/test_protocol_model.py`.
"""

import os
from collections.abc import Iterable

import pytest

from tests.support.histories import WriterHistory
from tests.support.history_commands import grow, mark, state_of, take_down
from tests.support.protocol import DatasetPath, begin, quick_folder, write
from tests.support.stepped import SteppedThreads, stepping

FEW, MANY = 10, 3_000


def run(seeds: Iterable[int]) -> list[WriterHistory]:
    """Live through histories, or through the one that the environment names."""
    alone = os.environ.get("SEGMINT_HISTORY")
    histories = [WriterHistory(seed) for seed in (seeds if alone is None else [int(alone)])]
    for history in histories:
        history.run()
    return histories


def test_the_protocol_holds_in_any_order_of_events() -> None:
    histories = run(range(FEW))
    told = [line.rpartition("; ")[2] for history in histories for line in history.told]
    if len(histories) > 1:
        ended = {line.split()[0].strip(":") for line in told if line.endswith(": done")}
        corrections = {"mark", "retry", "takedown", "repair", "amend", "import", "submission"}
        assert ended == corrections | {"write", "grow", "resume", "sweep"}
        assert any(line.endswith(": stopped by damage") for line in told)
        assert max(len(history.versions) for history in histories) > 3
        assert any(line.startswith("killed: ") for line in told)


def test_a_history_follows_from_its_seed() -> None:
    one, other = WriterHistory(4), WriterHistory(4)
    one.run()
    other.run()
    assert one.told == other.told


def test_the_model_knows_every_state_of_the_dataset() -> None:
    """Any of them may become a version, even one between two puts of a writer that applies a tombstone."""
    history = WriterHistory(0)
    states = set[str]()

    def made(call: str) -> None:
        history.remember_state(call)
        states.add(state_of(history.folder))

    def work() -> None:
        take_down(place, 0)
        write(place, 0)  # puts the fingerprints of the image that it removes before it commits
        mark(place, 1, 1)
        grow(place)

    with quick_folder() as history.folder:
        place = DatasetPath(str(history.folder))
        begin(place)
        history.states.add(state_of(history.folder))
        with stepping(made):
            stepped = SteppedThreads(work)
            stepped.finish()
    assert stepped.error is None
    assert states == history.states


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_protocol_holds_in_many_more_orders() -> None:
    run(range(FEW, FEW + MANY))
