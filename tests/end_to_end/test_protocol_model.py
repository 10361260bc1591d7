"""Writers, corrections and sweeps, interleaved at their storage calls, killed and paused, checked against a model.

The invariants are those of docs/exactly-once.md, by their numbers.
"""

import os
from contextlib import ExitStack
from datetime import timedelta
from functools import cache

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.dataset.sweep import sweep
from segmint.catalogs.dataset.torch_dataset import open_dataset
from segmint.infra.storage.location import Location
from segmint.pipeline.audit.integrity import audit_integrity
from tests.support.protocol import (
    ROWS,
    SHARDS,
    VARIANTS,
    Place,
    begin,
    broken_promises,
    contents,
    holding,
    quick_folder,
    sweep_all,
    write,
)
from tests.support.stepped import Stepped, stepping

shards = st.integers(0, SHARDS - 1)
variants = st.integers(0, VARIANTS - 1)
choices = st.integers(0, 7)
calls = st.integers(1, 4)


@cache
def commit_of(shard: int, variant: int, generation: int) -> bytes:
    """The bytes of the commit that an undisturbed writer makes."""
    with quick_folder() as folder:
        place = Place(str(folder))
        write(place, shard, variant, generation)
        return place.log.location(shard, generation).read()


class Protocol(RuleBasedStateMachine):
    """What may happen to a dataset, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self._made = ExitStack()
        self.folder = self._made.enter_context(quick_folder())
        self.place = Place(str(self.folder))
        self.writers: list[tuple[int, Stepped]] = []
        self.sweeps: list[Stepped] = []
        self.held: dict[int, tuple[int, bytes]] = {}  # by shard: generation and bytes of the commit

    @initialize()
    def begin(self) -> None:
        begin(self.place)

    # --- what happens ---

    @precondition(lambda self: len(self.writers) < 4)
    @rule(shard=shards, variant=variants, count=st.integers(0, 6))
    def start_a_writer(self, shard: int, variant: int, count: int) -> None:
        self.writers.append((shard, Stepped(lambda: write(self.place, shard, variant))))
        self.a_writer_goes_on(len(self.writers) - 1, count)

    @precondition(lambda self: self.writers)
    @rule(choice=choices, count=calls)
    def a_writer_goes_on(self, choice: int, count: int) -> None:
        index = choice % len(self.writers)
        _, writer = self.writers[index]
        for _ in range(count):
            if not writer.done:
                writer.step()
        if writer.done:
            assert writer.error is None
            self.writers.pop(index)

    @precondition(lambda self: self.writers)
    @rule(choice=choices)
    def a_writer_is_killed(self, choice: int) -> None:
        _, writer = self.writers.pop(choice % len(self.writers))
        writer.kill()

    @precondition(lambda self: not self.sweeps)
    @rule(grace=st.sampled_from([0, 24]), at_once=st.booleans())
    def start_a_sweep(self, grace: int, at_once: bool) -> None:
        """Without a grace period while no correction is being written: writers of a first generation need none."""
        self.sweeps.append(Stepped(lambda: sweep(self.place.location, timedelta(hours=grace))))
        if at_once:
            self.sweeps[0].finish()
            assert self.sweeps.pop().error is None

    @precondition(lambda self: self.sweeps)
    @rule(count=st.integers(1, 8))
    def the_sweep_goes_on(self, count: int) -> None:
        for _ in range(count):
            if not self.sweeps[0].done:
                self.sweeps[0].step()
        if self.sweeps[0].done:
            assert self.sweeps.pop().error is None

    @precondition(lambda self: self.sweeps)
    @rule()
    def the_sweep_is_killed(self) -> None:
        self.sweeps.pop().kill()

    @precondition(lambda self: self.held and not self.sweeps)
    @rule(choice=choices, variant=variants, calls_made=st.none() | st.integers(0, 7))
    def a_shard_is_corrected(self, choice: int, variant: int, calls_made: int | None) -> None:
        """Commit the next generation, or be killed; not while a losing writer is between its check and deletions."""
        shard = sorted(self.held)[choice % len(self.held)]
        if any(at == shard and writer.next_call.startswith("delete") for at, writer in self.writers):
            return
        generation = self.held[shard][0] + 1
        correction = Stepped(lambda: write(self.place, shard, variant, generation))
        if calls_made is None:
            correction.finish()
        for _ in range(calls_made or 0):
            if not correction.done:
                correction.step()
        correction.kill()
        assert correction.error is None

    @rule(hours=st.integers(-30, 30))
    def clocks_differ(self, hours: int) -> None:
        """Time passes, or the store's clock is not ours: every object gets older or younger."""
        for path in self.folder.rglob("*"):
            if path.is_file():
                modified = path.stat().st_mtime - hours * 3600
                os.utime(path, (modified, modified))

    # --- what always holds ---

    @invariant()
    def what_a_commit_names_is_there_whole(self) -> None:
        """I1, I5, I8."""
        assert broken_promises(self.place) == []

    @invariant()
    def commits_stay(self) -> None:
        """I2, I3, I9: a shard's valid commit was made by a writer, and only a higher generation replaces it."""
        now = {commit.shard: (commit.generation, data) for commit, data in holding(self.place)}
        assert self.held.keys() <= now.keys()
        for shard, (generation, data) in now.items():
            assert data in {commit_of(shard, variant, generation) for variant in range(VARIANTS)}
            if shard in self.held:
                held_generation, held_data = self.held[shard]
                assert generation >= held_generation
                assert generation > held_generation or data == held_data
        self.held = now

    @invariant()
    def readers_see_one_whole_generation(self) -> None:
        """I4: every committed ordinal occurs once, and refused ones do not occur."""
        ids = [sample.id for sample in open_dataset(self.place.uri)]
        assert ids == sorted(set(ids))
        images = sum(commit.counts["images"] for commit, _ in holding(self.place))
        assert len(ids) == images
        assert {(number - 1) // ROWS for number in ids} == {commit.shard for commit, _ in holding(self.place)}

    def teardown(self) -> None:
        """Whatever happened, repeating the work and a sweep leave a whole dataset and nothing else."""
        try:
            for _, each in [*self.writers, *((0, each) for each in self.sweeps)]:
                each.finish()
                assert each.error is None
            for shard in range(SHARDS):
                if shard not in self.held:
                    write(self.place, shard)
            self.commits_stay()
            sweep_all(self.place)
            named = {entry.path for commit, _ in holding(self.place) for entry in commit.files}
            commits = {f"commits/{shard:06}.g{generation}.json" for shard, (generation, _) in self.held.items()}
            parts = {part.path for part in load_manifest(self.place.location).catalog}
            assert contents(self.place).keys() == {"dataset.json"} | parts | named | commits
            report = audit_integrity(Location(self.place.storage, self.place.uri))
            assert [finding.line() for finding in report.findings] == []
            assert list(report.not_built) == []
        finally:
            for _, writer in self.writers:
                writer.kill()
            for each in self.sweeps:
                each.kill()
            self._made.close()


def run(examples: int, steps: int, derandomize: bool) -> None:
    with stepping():
        run_state_machine_as_test(
            Protocol,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                derandomize=derandomize,
                database=None,
                phases=[Phase.generate],  # report a failure at once; shrinking it takes minutes
                suppress_health_check=list(HealthCheck),
            ),
        )


def test_the_protocol_holds_in_any_order_of_events() -> None:
    run(examples=60, steps=30, derandomize=True)


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_the_protocol_holds_in_many_more_orders() -> None:
    run(examples=400, steps=60, derandomize=False)
