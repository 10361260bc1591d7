"""Random histories of a dataset: builds, corrections, growth and sweeps, interleaved storage call by storage call.

A history follows from its seed. Processes are killed, sleep for any time between two calls, and see clocks that differ;
files are damaged and repaired. The dataset is compared with a model of what is committed, corrected and taken down, and
each recorded version with the states that there were. What is assumed is that a deletion follows the look at its shard
at once (`SteppedThreads.look_and_delete`).
"""

import hashlib
import os
import random
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow.parquet as pq

from segmint.catalogs.dataset.commits import Commit, FileEntry
from segmint.catalogs.dataset.manifest import load_latest_manifest, load_manifest
from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.catalogs.dataset.submissions import parse_submission_path
from segmint.catalogs.dataset.sweep import sweep
from segmint.catalogs.dataset.tombstones import read_tombstones, removed_images
from segmint.catalogs.dataset.versions import Version, put_version, version_numbers, version_path
from segmint.catalogs.layout import RESERVATIONS, DamagedDatasetError
from segmint.operators.rows import Row
from segmint.operators.shards.put import build_shard_files, named_files
from segmint.operators.shards.revise import finish_dead_writers, read_committed_rows
from segmint.pipeline.corrections.correction import otherwise_credited
from segmint.pipeline.corrections.repair import repair
from segmint.pipeline.quality.audit.integrity import audit_integrity
from tests.support.described_rows import rectangle_mask
from tests.support.everything import mentions
from tests.support.history_commands import (
    NOW,
    amend_row,
    answer_and_merge,
    answered,
    grow,
    import_mask,
    imported,
    mark,
    marks_of,
    rectangle_of,
    resume,
    state_of,
    take_down,
)
from tests.support.locations import handle_of
from tests.support.protocol import (
    ROWS,
    VARIANTS,
    DatasetPath,
    begin,
    broken_promises,
    contents,
    latest,
    quick_folder,
    retry,
    sweep_all,
    write,
)
from tests.support.stepped import SteppedThreads, stepping

MOST_AT_ONCE = 6
_UNIQUE = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Actor:
    """A process at work."""

    name: str
    work: Callable[[], Any]
    stepped: SteppedThreads
    damages: int  # how many were mended before it started


class BrokenHistoryError(AssertionError):
    """An invariant did not hold; the message says in which history, and after what."""


class WriterHistory:
    """One history, from its seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.told: list[str] = []
        self.actors: list[Actor] = []
        self.repeat: list[Callable[[], Any]] = []  # builds and corrections that were killed, or stopped by damage
        self.held: dict[int, tuple[int, bytes]] = {}  # generation and bytes of the commit, by shard
        self.rows: dict[int, list[Row]] = {}  # of the commit that holds, by shard
        self.unread: dict[int, Commit] = {}  # new commits by shard, whose rows are not compared yet
        self.damaged: set[str] = set()  # paths of files that were damaged, and may still be
        self.damages = 0
        self.states: set[str] = set()  # digests of all that the dataset has been
        self.versions: list[bytes] = []
        self.blank: set[int] = set()  # ordinals that were seen blank
        self.marks: set[tuple[int, int]] = set()  # ordinal and mark of corrections that ended
        self.retried: set[int] = set()  # shards whose retries ended with an image
        self.amended: set[int] = set()  # ordinals whose amendments ended
        self.imports: set[tuple[int, str]] = set()  # ordinal and run lengths of masks whose imports ended
        self.answers: set[tuple[int, str]] = set()  # likewise of masks that people drew
        self.next_mark = 0

    def run(self, steps: int = 40) -> None:
        """Live through the history, then repeat what was killed and check what is left."""
        with ExitStack() as made:
            self.folder = made.enter_context(quick_folder())
            self.place = DatasetPath(str(self.folder))
            begin(self.place)
            self.states.add(state_of(self.folder))
            made.enter_context(stepping(self.remember_state))
            try:
                for _ in range(steps):
                    self._tell(self._act())
                    self._check()
                self._end()
            except BaseException as error:
                told = "\n".join(self.told[-60:])
                raise BrokenHistoryError(
                    f"history {self.seed}, after\n{told}\n{type(error).__name__}: {error}"
                ) from error
            finally:
                for actor in self.actors:
                    actor.stepped.kill()

    # --- what happens ---

    def _act(self) -> str:
        acts = [self._go_on] * 10 + [self._kill, self._time_passes, self._damage]
        if len(self.actors) < MOST_AT_ONCE:
            acts += [self._start] * 5
        return self.random.choice(acts)()

    def _start(self) -> str:
        shards = load_manifest(self.place.location).shards
        shard, ordinal = self.random.randrange(shards), self.random.randrange(shards * ROWS)
        variant, hours = self.random.randrange(VARIANTS), self.random.choice([0, 0, 24])
        skew = self.random.choice([None, -30, 0, 30])  # hours by which the clock is wrong; None: the store's clock
        self.next_mark += 1
        x, place = self.next_mark, self.place
        commands: list[tuple[str, Callable[[], Any]]] = [
            (f"write {shard} as {variant}", lambda: write(place, shard, variant)),
            (f"write {shard} as {variant}", lambda: write(place, shard, variant)),
            (f"mark {ordinal} {x}", lambda: mark(place, ordinal, x)),
            (f"mark {ordinal} {x}", lambda: mark(place, ordinal, x)),
            (f"retry {shard}", lambda: retry(place, shard)),
            (f"takedown {ordinal}", lambda: take_down(place, ordinal)),
            ("grow", lambda: grow(place)),
            ("resume", lambda: resume(place)),
            ("repair", lambda: repair(place.location)),
            (f"sweep {hours} {skew}", lambda: self._sweep(hours, skew)),
        ]
        if self.seed % 3 == 0:  # not in all, since it starts a database
            commands.append((f"amend {ordinal} {x}", lambda: amend_row(place, ordinal, x)))
        if self.seed % 5 == 0:  # likewise
            commands += [(f"import {ordinal} {x}", lambda: import_mask(place, ordinal, x))] * 2
        if self.seed % 5 == 1:
            commands += [(f"submission {ordinal} {x}", lambda: answer_and_merge(place, ordinal, x))] * 2
        name, work = self.random.choice(commands)
        mended = self.damages - len(self.damaged)
        self.actors.append(Actor(name, work, SteppedThreads(work), mended))
        return f"start: {name}; {self._advance(len(self.actors) - 1, self.random.randrange(12))}"

    def _sweep(self, hours: int, skew: int | None) -> None:
        now = None if skew is None else datetime.now(UTC) + timedelta(hours=skew)
        sweep(self.place.location, timedelta(hours=hours), now, threads=1)

    def _go_on(self) -> str:
        if not self.actors:
            return "nothing"
        calls = self.random.choice([1, 1, 2, 3, 5, 8, 20, 60])
        return self._advance(self.random.randrange(len(self.actors)), calls)

    def _advance(self, index: int, calls: int) -> str:
        actor = self.actors[index]
        stepped = actor.stepped
        for _ in range(calls):
            if not stepped.done:
                stepped.look_and_delete(self.folder.name)
            if not stepped.done:
                stepped.step()
        if not stepped.done:
            return f"{actor.name}: before {self._call(stepped)}"
        self.actors.pop(index)
        # It may report what a repair mends before the report.
        if isinstance(stepped.error, DamagedDatasetError) and self.damages > actor.damages:
            self._repeat(actor)
            return f"{actor.name}: stopped by damage"
        if stepped.error is not None:
            raise stepped.error
        self._acknowledge(actor.name, stepped.result)
        return f"{actor.name}: done"

    def _repeat(self, actor: Actor) -> None:
        """Remember to repeat at the end what did not end."""
        if not actor.name.startswith(("sweep", "resume")):
            self.repeat.append(actor.work)

    def _acknowledge(self, name: str, result: Any) -> None:
        """Remember what a command said that it did: from now on that must hold."""
        what, *numbers = name.split()
        if what == "mark" and result:
            self.marks.add((int(numbers[0]), int(numbers[1])))
        if what == "import" and result:
            code = rectangle_mask(30, 40, *rectangle_of(int(numbers[1])))["segmentation"]
            self.imports.add((int(numbers[0]), code["counts"]))
        if what == "submission" and result:
            code = rectangle_mask(30, 40, *rectangle_of(int(numbers[1])))["segmentation"]
            self.answers.add((int(numbers[0]), code["counts"]))
        if what == "amend" and result:
            self.amended.add(int(numbers[0]))
        if what == "retry" and result == "committed":
            self.retried.add(int(numbers[0]))

    def _kill(self) -> str:
        if not self.actors:
            return "nothing"
        actor = self.actors.pop(self.random.randrange(len(self.actors)))
        if not actor.stepped.done:
            actor.stepped.look_and_delete(self.folder.name, self.random.randrange(6))
        actor.stepped.kill()
        self._repeat(actor)
        return f"killed: {actor.name}, before {self._call(actor.stepped) or 'its end'}"

    def _damage(self) -> str:
        """Flip a bit of a file that can be made again from the rest of its shard, or delete it; one of a shard."""
        whole = [commit for commit, _ in latest(self.place) if not any(map(self._is_damaged, commit.files))]
        if not whole:
            return "nothing"
        commit = self.random.choice(whole)
        kind = self.random.choice(["masks", "shards"] + ["rejects"] * (commit.counts["rejected"] == 0))
        if kind == "masks" and self._of_people(commit):
            kind = "shards"  # what people said of masks is in no other file
        path = commit.file(kind).path
        data = bytearray((self.folder / path).read_bytes())
        # The JPEGs are in no other file: of a tar the zeros behind the last of them.
        data[-1 if kind == "shards" else self.random.randrange(len(data))] ^= 1
        if kind != "shards" and self.random.random() < 0.5:
            (self.folder / path).unlink()
        else:
            (self.folder / path).write_bytes(data)
        self.damaged.add(path)
        self.damages += 1
        return f"damaged: {path}"

    def _of_people(self, commit: Commit) -> bool:
        rows = pq.read_table(self.folder / commit.file("masks").path, columns=["source"]).column("source").to_pylist()
        return bool(set(rows) - {"automatic"})

    def _is_damaged(self, entry: FileEntry) -> bool:
        file = self.folder / entry.path
        return not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() != entry.sha256

    def remember_state(self, call: str) -> None:
        """Remember what the dataset is after a storage call, unless that call can't have changed it."""
        if call.startswith(("create", "put")):
            self.states.add(state_of(self.folder))

    def _call(self, actor: SteppedThreads) -> str:
        """The call that an actor waits before, without what differs between two runs."""
        return _UNIQUE.sub("", actor.next_call.replace(self.folder.name, "dataset"))

    def _time_passes(self) -> str:
        hours = self.random.randrange(-30, 31)
        for path in self.folder.rglob("*"):
            if path.is_file():
                modified = path.stat().st_mtime - hours * 3600
                os.utime(path, (modified, modified))
        return f"{hours} hours pass"

    def _tell(self, text: str) -> None:
        self.told.append(text)

    # --- what always holds ---

    def _check(self) -> None:
        self._forget_damages()
        broken = [line for line in broken_promises(self.place) if not any(path in line for path in self.damaged)]
        _must(not broken, f"I1, I5, I8: {broken}")
        now = {commit.shard: (commit, data) for commit, data in latest(self.place)}
        _must(self.held.keys() <= now.keys(), f"I2: shards {self.held.keys() - now.keys()} have no commit any more")
        for shard, (commit, data) in now.items():
            generation, before = self.held.get(shard, (0, b""))
            _must(commit.generation >= generation, f"I2: shard {shard} went back to generation {commit.generation}")
            if (commit.generation, data) == (generation, before):
                continue
            _must(commit.generation > generation, f"I2: generation {generation} of shard {shard} was changed")
            self.held[shard] = (commit.generation, data)
            self.unread[shard] = commit
        for shard, commit in list(self.unread.items()):
            if not any(map(self._is_damaged, commit.files)):
                self._check_rows(self.unread.pop(shard))
        self._check_versions()

    def _forget_damages(self) -> None:
        """Forget damaged files that are whole again, and those that are gone and that nothing names."""
        named = {entry.path: entry for commit, _ in latest(self.place) for entry in commit.files}
        for path in sorted(self.damaged):
            file = self.folder / path
            digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else None
            reserved = any(
                path.encode() in reservation.read_bytes() for reservation in (self.folder / RESERVATIONS).glob("*")
            )
            if (digest is None and path not in named and not reserved) or (digest and f"-{digest[:12]}." in path):
                self.damaged.remove(path)

    def _check_versions(self) -> None:
        """Compare the recorded versions with what the dataset has been; they are numbered from 1, and never change."""
        numbers = version_numbers(self.place.location)
        _must(numbers == list(range(1, len(numbers) + 1)), f"I12: versions {numbers}")
        versions = [(self.folder / version_path(number)).read_bytes() for number in numbers]
        _must(versions[: len(self.versions)] == self.versions, "I12: a version was changed or removed")
        for data in versions[len(self.versions) :]:
            version = Version.from_json(data, "a version")
            before = Version.from_json(self.versions[-1], "a version").digest if self.versions else None
            _must(version.digest in self.states, f"I12: version {version.number} is of what the dataset never was")
            _must(version.number == len(self.versions) + 1, f"I12: a version is number {version.number}")
            _must(version.before == before, f"I12: before version {version.number} is {version.before}, not {before}")
            self.versions.append(data)

    def _check_rows(self, commit: Commit) -> None:
        rows = read_committed_rows(self.place.location, commit)
        entries = {entry for entry, _ in named_files(commit.shard, build_shard_files(rows, with_images=True))}
        _must(entries == set(commit.files), f"I9: other files follow from the rows of shard {commit.shard}")
        _must([row["ordinal"] for row in rows] == list(range(*commit.ordinals)), f"I5: rows of shard {commit.shard}")
        for row in rows:
            ordinal = row["ordinal"]
            blank = row["reason"] == "taken_down"
            _must(blank or ordinal not in self.blank, f"I10: {ordinal} was taken down and is back")
            if blank:
                self.blank.add(ordinal)
                _must(not row["image_id"], f"I10: {ordinal} was taken down and has its name")
                continue
            missing = {x for marked, x in self.marks if marked == ordinal} - marks_of(row)
            _must(not missing, f"I11: the marks {missing} of {ordinal} are lost")
            lost = {counts for into, counts in self.imports if into == ordinal} - imported(row)
            _must(not lost, f"I11: {len(lost)} imported masks of {ordinal} are lost")
            lost = {counts for into, counts in self.answers if into == ordinal} - answered(row)
            _must(not lost, f"I11: {len(lost)} masks of answers for {ordinal} are lost")
            if commit.shard in self.retried and ordinal == commit.ordinals[1] - 1:
                _must(row["reason"] is None, f"I11: the retried row {ordinal} is refused again")
        self.rows[commit.shard] = rows

    def _end(self) -> None:
        """Repeat what was killed, finish the build, sweep: the whole dataset with all corrections is left, no more."""
        while self.actors:
            self._tell(self._advance(0, 10_000))
            self._check()
        if self.seed % 3 == 0 and not self.damaged:
            self._check_amendments()
        left = repair(self.place.location).not_repaired
        _must(not left, f"not repaired: {left}")
        for work in self.repeat:
            work()
        location = self.place.location
        manifest = load_manifest(location)
        for shard in range(manifest.shards):
            if shard not in self.held:
                write(self.place, shard)
        finish_dead_writers(handle_of(location), range(manifest.shards))
        self._check()
        sweep_all(self.place)
        self._check()
        _must(not self.unread and not self.damaged & self._named(), f"still damaged: {self.damaged}")
        recorded = put_version(location, "build", now=NOW)
        self._check_versions()
        _must(recorded.number == len(self.versions), f"I12: the last version is {recorded}")
        _must(recorded.digest == state_of(self.folder), "I12: the last version is not what the dataset is")
        commits = {f"commits/{shard:06}.g{generation}.json" for shard, (generation, _) in self.held.items()}
        tombstones = read_tombstones(location)
        manifest, generation = load_latest_manifest(location)
        expected = {f"dataset.g{number}.json" for number in range(2, generation + 1)} | {"dataset.json"}
        expected |= {part.path for part in manifest.catalog} | {f"tombstones/{each.name}" for each in tombstones}
        taken = removed_images(tombstones)
        paths = [path for path in contents(self.place) if not path.startswith("fingerprints/")]
        names = {path: parse_submission_path(path) for path in paths}
        expected |= {path for path, name in names.items() if name is not None and name.ordinal not in taken}
        left = names.keys() ^ (expected | self._named() | commits)
        _must(not left, f"too many files or too few: {sorted(left)}")
        _must(self.blank == taken.keys(), f"I10: {self.blank ^ taken.keys()} are blank or in tombstones, not both")
        providers = {
            row["ordinal"]: row["provider"] for rows in self.rows.values() for row in rows if not row["reason"]
        }
        lost = [ordinal for ordinal in self.amended & providers.keys() if providers[ordinal] is None]
        _must(not lost, f"I11: the amendments of {lost} are lost")
        named = mentions(self.folder, [f"image-{ordinal}" for ordinal in taken])
        _must(not named, f"I10: {named} name images that were taken down")
        ids = [sample.id for sample in open_dataset(self.place.uri)]
        accepted = [row["id"] for _, rows in sorted(self.rows.items()) for row in rows if row["reason"] is None]
        _must(ids == accepted, f"I4: readers see {ids} of {accepted}")
        report = audit_integrity(location)
        _must(not report.findings.total and not report.not_built, f"{[each.line() for each in report.findings]}")

    def _check_amendments(self) -> None:
        """Amend a row: that completes all amendments that were killed, and of those that crossed the last one holds."""
        rows = load_manifest(self.place.location).shards * ROWS
        if any(amend_row(self.place, ordinal, self.next_mark + 1) for ordinal in range(rows)):
            self._check()
            stale = otherwise_credited(self.place.location, self.held)
            _must(not stale, f"I11: shards {stale} have other credits than the catalog")

    def _named(self) -> set[str]:
        return {entry.path for commit, _ in latest(self.place) for entry in commit.files}


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)
