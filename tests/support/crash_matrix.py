"""Kill operations at each of their storage calls, and check what is left: a separate process, which forks.

    python -m tests.support.crash_matrix OPERATION,OPERATION,… FOLDER [URI OPTIONS]

Prints a JSON object: for each operation its calls, how many points were tried, and what was wrong at which of them.
Datasets are below FOLDER, or below URI, which is opened with OPTIONS (JSON). On local files the steps of each put are
points, too; on another store a put is one call.
"""

import gc
import json
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.dataset  # noqa: F401 (this and the next imported once, for all forks: the product imports them late)
import tenacity  # noqa: F401

from segmint.catalogs.dataset.commits import Reservation, write_shards_index
from segmint.catalogs.dataset.submissions import put_submission
from segmint.catalogs.dataset.tombstones import TakedownRequest, read_tombstones
from segmint.catalogs.dataset.versions import VERSIONS, name_now
from segmint.catalogs.layout import DATASET_ID, data_path
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.uris import join
from segmint.operators.shards.revise import finish_dead_writers
from segmint.pipeline.corrections.amend import amend
from segmint.pipeline.corrections.apply.columns import label, remove_column
from segmint.pipeline.corrections.correction import forget, tell_apart
from segmint.pipeline.corrections.merge import merge_submissions
from segmint.pipeline.corrections.redact import redact
from segmint.pipeline.corrections.repair import repair
from segmint.pipeline.corrections.takedown import takedown
from segmint.pipeline.quality.audit.integrity import audit_integrity
from tests.support.applied import applied, segmenter
from tests.support.applied_columns import apply_column, means
from tests.support.crashing_store import CallCounter, CrashingChild, CrashPoint, StopPoint, gated, points_of
from tests.support.everything import mentions
from tests.support.imported import FIRST, import_coco, write_coco
from tests.support.labeled import shades, write_labeled
from tests.support.locations import location_of
from tests.support.protocol import (
    GIVEN_UP,
    REDACTED,
    ROWS,
    SHARDS,
    VARIANTS,
    DatasetPath,
    begin,
    broken_promises,
    contents,
    copy_folder,
    everything,
    retry,
    rows_of,
    segmented_rows,
    sweep_all,
    write,
)
from tests.support.s3_server import know_s3
from tests.support.submissions import answer_to, new_mask
from tests.support.traces import files_with_traces, scan_data, telling_windows

NOW = datetime(2026, 3, 4, tzinfo=UTC)
"""When images are taken down."""


@dataclass(frozen=True)
class Operation:
    """Work that may be killed anywhere and done again, and the state before it."""

    before: Callable[[DatasetPath], object]
    work: Callable[[DatasetPath], object]
    mends: bool = False  # whether the state before it is damaged, so that promises hold only after it
    versioned: bool = False  # whether it ends by recording a version
    taken: tuple[int, ...] = ()  # ordinals of images of which only tombstones may be left
    segmenter: bool = False  # whether a segmenter makes the masks


def _both_shards(place: DatasetPath) -> None:
    write(place, 0)
    write(place, 1)


def _given_up(place: DatasetPath) -> None:
    """A row of shard 1 was rejected because of a persistent fault."""
    write(place, 0)
    write(place, 1, GIVEN_UP)


def _left_overs(place: DatasetPath) -> None:
    """A replaced generation, a file of a writer that died, and a temporary file."""
    _both_shards(place)
    write(place, 0, variant=2, generation=2)
    place.storage.put(join(place.uri, data_path("masks", 1, "0" * 64)), b"left over")
    place.storage.put(join(place.uri, "images/.tmp-0"), b"left over")


def _damaged(place: DatasetPath) -> None:
    """A table with other bytes, and another one that is not there and had no rows."""
    write(place, 0)
    write(place, 1, variant=2)
    for shard, kind in enumerate(("masks", "rejects")):
        commit = place.log.latest(shard)
        assert commit is not None
        uri = join(place.uri, commit.file(kind).path)
        place.storage.put(uri, b"other bytes") if shard == 0 else place.storage.delete(uri)


def _take_down(place: DatasetPath) -> None:
    takedown(place.location, TakedownRequest(ids=("image-0", "image-2")), "as was asked", NOW)


def _writer_died(place: DatasetPath) -> None:
    """A build in which shard 0 is committed, and the writer of shard 1 died before its commit."""
    _both_shards(place)
    commit = place.log.latest(1)
    assert commit is not None
    reservation = Reservation(1, 1, tuple(entry.path for entry in commit.files))
    reservation.location(place.location).put(reservation.to_json())
    place.log.location(1, 1).delete()


def _take_down_redacted(place: DatasetPath) -> None:
    """Of an image that a redaction left a fingerprint of; none is kept."""
    takedown(place.location, TakedownRequest(ids=("image-3",), fingerprints=False), "as was asked", NOW)


def _redacted(place: DatasetPath) -> None:
    _both_shards(place)
    _redact(place)


def _taken_down(place: DatasetPath) -> None:
    _both_shards(place)
    _take_down(place)


def _tell_apart(place: DatasetPath) -> None:
    (tombstone,) = read_tombstones(place.location)
    tell_apart(place.location, "image-4", tombstone.name, "the other side of the house", NOW)


def _take_down_in_a_build(place: DatasetPath) -> None:
    """Of both shards; the build goes on with rows that were made before."""
    takedown(place.location, TakedownRequest(ids=("image-0", "image-4")), "as was asked", NOW)
    write(place, 1)


def _redact(place: DatasetPath) -> None:
    regions = Path(f"{place.uri}.jsonl")
    regions.write_text('{"id": 4, "kind": "face", "x": 5, "y": 5, "w": 20, "h": 15}\n')
    redact(place.location, location_of(regions))


def _amend(place: DatasetPath, *ordinals: int) -> None:
    catalog = Path(f"{place.uri}-corrected.jsonl")
    rows = [{"uri": f"photo_{n}.jpg", "license": "", "image_id": f"image-{n}", "country": "NO"} for n in ordinals]
    catalog.write_text("".join(json.dumps(row) + "\n" for row in rows))
    amend(place.location, location_of(catalog))


def _amend_in_a_build(place: DatasetPath) -> None:
    """Images of both shards; the build goes on with rows that were made before."""
    _amend(place, 0, 4)
    write(place, 1)


def _import(place: DatasetPath) -> None:
    """Masks of both shards; image 4 loses one, and one that was corrected is not its own parent."""
    import_coco(
        place, write_coco(place, {1: [(FIRST, 10_000), ((22, 5, 28, 30), None)], 4: [((3, 4, 11, 21), 40_001)]})
    )


def _answered(place: DatasetPath) -> None:
    """Both shards, and answers for an image of each; image 4 has a second one, and a second assignment."""
    _both_shards(place)
    for given in (
        answer_to(place.location, 1, [new_mask((3, 4, 11, 21), 10_001)]),
        answer_to(place.location, 4, [new_mask((22, 5, 28, 30))], deleted=[40_000]),
        answer_to(place.location, 4, [new_mask((22, 5, 28, 31))], deleted=[40_000], n=2),
        answer_to(place.location, 4, assignment=1),
    ):
        put_submission(place.location, given)


def _annotated(place: DatasetPath) -> None:
    """Both shards: answers were merged into images 1 and 5, and a person labeled a mask of image 4."""
    write(place, 0)
    write_labeled(place, 1)
    for given in (
        answer_to(place.location, 1, [new_mask((3, 4, 11, 21), 10_001)], complete=False),
        answer_to(place.location, 5, [new_mask((22, 5, 28, 30))]),
    ):
        put_submission(place.location, given)
    merge_submissions(place.location)


def _apply(place: DatasetPath) -> None:
    """New masks of all images but the one that a person confirmed as complete; those of people stay."""
    applied(place, segmenter())


def _labeled_by_people(place: DatasetPath) -> None:
    write(place, 0)
    write_labeled(place, 1)


def _labeled_by_a_model(place: DatasetPath) -> None:
    _labeled_by_people(place)
    _label(place)


def _label(place: DatasetPath) -> None:
    label(place.location, shades())


def _add_column(place: DatasetPath) -> None:
    apply_column(place.location, means())


def _with_a_column(place: DatasetPath) -> None:
    _both_shards(place)
    _add_column(place)


def _remove_column(place: DatasetPath) -> None:
    remove_column(place.location, means().stage)


def _partly_with_a_column(place: DatasetPath) -> None:
    """Both shards, of which only the first one got the column before the run died."""
    write(place, 0)
    _add_column(place)
    write(place, 1)


def _retry(place: DatasetPath) -> None:
    """As a build does, which first completes what dead writers left."""
    finish_dead_writers(place.handle, range(SHARDS))
    retry(place, 1)


OPERATIONS = {
    "write_shard": Operation(lambda place: write(place, 0), lambda place: write(place, 1, REDACTED)),
    "next generation": Operation(_both_shards, lambda place: write(place, 1, variant=2, generation=2)),
    "sweep": Operation(_left_overs, sweep_all),
    "shards.json": Operation(_both_shards, lambda place: write_shards_index(place.location, "protocol", threads=1)),
    "takedown": Operation(_both_shards, _take_down, versioned=True, taken=(0, 2)),
    "takedown in a build": Operation(_writer_died, _take_down_in_a_build, taken=(0, 4)),
    "takedown without fingerprints": Operation(_redacted, _take_down_redacted, versioned=True, taken=(3,)),
    "forget fingerprints": Operation(_taken_down, lambda place: forget(place.location, "image-0"), versioned=True),
    "other picture": Operation(_taken_down, _tell_apart, versioned=True),
    "redact": Operation(_both_shards, _redact, versioned=True),
    "retry": Operation(_given_up, _retry),
    "amend": Operation(_both_shards, lambda place: _amend(place, 0, 4), versioned=True),
    "amend in a build": Operation(_writer_died, _amend_in_a_build),
    "import": Operation(_both_shards, _import, versioned=True),
    "merge": Operation(_answered, lambda place: merge_submissions(place.location), versioned=True),
    "apply": Operation(_annotated, _apply, versioned=True),
    "label": Operation(_labeled_by_people, _label, versioned=True),
    "remove labels": Operation(_labeled_by_a_model, lambda place: label(place.location, None), versioned=True),
    "add a column": Operation(_both_shards, _add_column, versioned=True),
    "fill in a column": Operation(_partly_with_a_column, _add_column, versioned=True),
    "remove a column": Operation(_with_a_column, _remove_column, versioned=True),
    "takedown beside a column": Operation(_partly_with_a_column, _take_down, versioned=True, taken=(0, 2)),
    "takedown of answers": Operation(_answered, _take_down, versioned=True, taken=(0, 2)),
    "repair": Operation(_damaged, lambda place: repair(place.location), mends=True, versioned=True),
}
OF_SEGMENTER = (
    "write_shard",
    "sweep",
    "takedown",
    "takedown in a build",
    "redact",
    "retry",
    "amend",
    "import",
    "merge",
    "label",
    "remove labels",
)
OPERATIONS |= {f"{name} with a segmenter": replace(OPERATIONS[name], segmenter=True) for name in OF_SEGMENTER}
"""One line each: all are killed at every call, and at the steps of a local one, or with `CHANGES` after the name, at
every call that changes a file, and not at its steps."""

CHANGES = " where files change"


def _without_masks(place: DatasetPath) -> None:
    """Delete a file of shard 1 that can be made again from the others."""
    commit = place.log.latest(1)
    assert commit is not None
    (place.location / commit.file("masks").path).delete()


@dataclass(frozen=True)
class Sleeper:
    """A revision of shard 1 that sleeps while all images of the shard are taken down, and the damage before it."""

    work: Callable[[DatasetPath], object]
    damage: Callable[[DatasetPath], object] | None = None  # repaired by another process before the takedown
    before: Callable[[DatasetPath], object] = _both_shards


REVISIONS = {
    "redaction beside a takedown": Sleeper(_redact),
    "retry beside a takedown": Sleeper(lambda place: retry(place, 1)),
    "amendment beside a takedown": Sleeper(lambda place: _amend(place, 0, 4)),
    "import beside a takedown": Sleeper(_import),
    "merge beside a takedown": Sleeper(lambda place: merge_submissions(place.location), before=_answered),
    "apply beside a takedown": Sleeper(_apply, before=_annotated),
    "label beside a takedown": Sleeper(_label, before=_labeled_by_people),
    "new column beside a takedown": Sleeper(_add_column),
    "removed column beside a takedown": Sleeper(_remove_column, before=_with_a_column),
    "repair beside a takedown": Sleeper(lambda place: repair(place.location), _without_masks),
}

PAUSES = {"sleep beside other content": 1, "sleep beside equal content": 0}
"""What the other writer writes while the first one, of variant 0, is asleep."""


State = frozenset[tuple[str, bytes]]
"""All files of a dataset, by path."""


def try_operation(operation: Operation, place: DatasetPath, folder: Path, changes: bool) -> dict[str, Any]:
    """Kill an operation at points; `folder` is for a copy of the state before it. For `changes` see `CHANGES`."""
    steps = "://" not in place.uri and not changes
    before = folder / "before"
    place = replace(place, segmenter=operation.segmenter)

    def prepare() -> None:
        local = DatasetPath(str(before), segmenter=operation.segmenter)
        begin(local)
        operation.before(local)

    def undisturbed() -> tuple[list[str], dict[str, str]]:
        there = replace(place, uri=f"{place.uri}/undisturbed")
        copy_folder(before, there)
        count = CallCounter()
        with gated(count, files=steps):
            operation.work(there)
        sweep_all(there)
        return count.calls, contents(there)

    CrashingChild(prepare).result()
    calls, expected = CrashingChild(undisturbed).result()
    wrong: dict[str, list[str]] = {}
    dead = {}
    points = points_of(calls, reads=not changes)
    for number, point in enumerate(points):
        there = replace(place, uri=f"{place.uri}/{number}")
        name = f"{point} ({calls[point.number - 1]})"
        if CrashingChild(partial(_until_death, operation, before, there, point, steps)).killed():
            dead[name] = there
        else:
            wrong[name] = ["was not killed"]
    found = CrashingChild(partial(_look_at_each, operation, dead, expected)).result()
    return {
        "calls": calls,
        "points": len(points),
        "wrong": wrong | {n: lines for n, lines in found.items() if lines},
    }


def _until_death(operation: Operation, before: Path, place: DatasetPath, point: CrashPoint, steps: bool) -> None:
    copy_folder(before, place)
    with gated(StopPoint(point), files=steps):
        operation.work(place)


def _look_at_each(operation: Operation, dead: dict[str, DatasetPath], expected: dict[str, str]) -> dict[str, list[str]]:
    """What is wrong after each death. Deaths that left the same files, as around a read, are looked at once."""
    seen: dict[State, list[str]] = {}
    ended: dict[State, list[str]] = {}
    found = {}
    for name, place in dead.items():
        left = frozenset(_comparable(everything(place)))
        if left not in seen:
            seen[left] = _look(operation, place, expected, ended)
        found[name] = seen[left]
    return found


def _look(
    operation: Operation, place: DatasetPath, expected: dict[str, str], ended: dict[State, list[str]]
) -> list[str]:
    """Return the problems after a death and after the repeated work. `ended` has the findings of states seen before."""
    wrong = [] if operation.mends else [f"killed: {promise}" for promise in broken_promises(place)]
    operation.work(place)
    sweep_all(place)
    if operation.versioned and name_now(place.location).number is None:
        wrong.append("done again: no version is recorded of what the dataset is")
    state = frozenset(_comparable(everything(place)))
    if state not in ended:
        ended[state] = [f"done again: {line}" for line in _wrong_at_the_end(operation, place, expected)]
    return wrong + ended[state]


def _wrong_at_the_end(operation: Operation, place: DatasetPath, expected: dict[str, str]) -> Iterator[str]:
    """Yield what is wrong after the repeated work, apart from what `_comparable` removes."""
    found = contents(place)
    different = {path for path in found.keys() | expected.keys() if found.get(path) != expected.get(path)}
    yield from (f"{path} is not as undisturbed" for path in sorted(different))
    yield from broken_promises(place)
    yield from (f"{path} has something of an image that was taken down" for path in _left(operation, place))
    yield from (finding.line() for finding in audit_integrity(Location(place.storage, place.uri)).findings)


def _comparable(files: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """Yield the files without what differs from run to run: the times of readable versions and the dataset id."""
    for name, data in files:
        with suppress(ValueError, AttributeError):
            if name.startswith(f"{VERSIONS}/"):
                version = json.loads(data)
                data = json.dumps([item for item in version.items() if item[0] not in ("when", "checksum")]).encode()
        if name == DATASET_ID:
            data = re.sub(rb"[0-9a-f]{32}", b"an id", data)
        yield name, data


def _left(operation: Operation, place: DatasetPath) -> list[str]:
    """Files with a name of an image that was taken down, and files with 64 bytes of its picture."""
    if not operation.taken:
        return []
    pictures = [rows_of(n // ROWS, 0).column("release")[n % ROWS].as_py() for n in operation.taken]
    windows = telling_windows(b"".join(scan_data(picture) for picture in pictures if picture is not None))
    names = [f"{form}{n}{end}" for n in operation.taken for form, end in (("image-", ""), ("photo_", ".jpg"))]
    found = mentions(Path(place.uri), names)
    return found + [str(path.relative_to(place.uri)) for path in files_with_traces(windows, [Path(place.uri)])]


def try_a_pause(variant: int, folder: Path) -> dict[str, Any]:
    """Stop the writer of shard 1 at every point, let another one write `variant`, and wake the first one up."""
    outcomes = {}
    for each in {0, variant}:
        place = DatasetPath(str(folder / f"alone-{each}"))

        def alone(place: DatasetPath = place, each: int = each) -> tuple[list[str], dict[str, str]]:
            begin(place)
            count = CallCounter()
            with gated(count, files=True):
                write(place, 1, each)
            return count.calls, contents(place)

        outcomes[each] = CrashingChild(alone).result()
    wrong = {}
    points = [point for point in points_of(outcomes[0][0]) if point.moment != "torn"]  # a stopped process tears nothing
    for number, point in enumerate(points):
        place = DatasetPath(str(folder / str(number)))

        def sleeper(place: DatasetPath = place, point: CrashPoint = point) -> None:
            begin(place)
            with gated(StopPoint(point, signal.SIGSTOP), files=True):
                write(place, 1, 0)

        def other(place: DatasetPath = place) -> bytes:
            write(place, 1, variant)
            return place.log.location(1, 1).read()

        child = CrashingChild(sleeper)
        if not child.wait_until_stopped():
            wrong[str(point)] = ["was not stopped"]
            continue
        standing = CrashingChild(other).result()
        child.go_on()
        child.result()
        after = CrashingChild(lambda place=place: (place.log.location(1, 1).read(), contents(place))).result()
        lines = [] if after[0] == standing else ["the commit was changed"]
        if after[1] not in [outcome[1] for outcome in outcomes.values()]:
            lines.append(f"there are more or fewer files than either writer's: {sorted(after[1])}")
        if lines:
            wrong[f"{point} ({outcomes[0][0][point.number - 1]})"] = lines
    return {"calls": outcomes[0][0], "points": len(points), "wrong": wrong}


def try_a_sleeping_revision(sleeping: Sleeper, folder: Path) -> dict[str, Any]:
    """Stop a revision at every storage call, take its images down, and wake it up: nothing of them may come back."""
    before = folder / "before"

    def prepare() -> list[str]:
        begin(DatasetPath(str(before)))
        sleeping.before(DatasetPath(str(before)))
        if sleeping.damage is not None:
            sleeping.damage(DatasetPath(str(before)))
        alone = DatasetPath(str(folder / "alone"))
        copy_folder(before, alone)
        count = CallCounter()
        with gated(count):
            sleeping.work(alone)
        return count.calls

    calls = CrashingChild(prepare).result()
    wrong = {}
    points = points_of(calls)
    for number, point in enumerate(points):
        place = DatasetPath(str(folder / str(number)))

        def sleeper(place: DatasetPath = place, point: CrashPoint = point) -> str:
            copy_folder(before, place)
            with gated(StopPoint(point, signal.SIGSTOP)):
                try:
                    sleeping.work(place)
                except UsageError as error:
                    return str(error)  # it was not asleep before it looked what there is
            return ""

        def other(place: DatasetPath = place) -> None:
            ids = tuple(f"image-{ordinal}" for ordinal in range(ROWS, 2 * ROWS))
            if sleeping.damage is not None:
                repair(place.location)
            takedown(place.location, TakedownRequest(ids=ids), "as was asked", NOW)

        def look(place: DatasetPath = place) -> list[str]:
            commit = place.log.latest(1)
            lines = broken_promises(place)
            if commit is None or commit.counts.get("rejected:taken_down") != ROWS:
                lines.append("an image is back")
            sweep_all(place)
            named = mentions(Path(place.uri), [f"image-{ordinal}" for ordinal in range(ROWS, 2 * ROWS)])
            return lines + [f"{path} names an image that was taken down" for path in named]

        child = CrashingChild(sleeper)
        if not child.wait_until_stopped():
            wrong[str(point)] = ["was not stopped"]
            continue
        CrashingChild(other).result()
        child.go_on()
        said = child.result()
        lines = CrashingChild(look).result()
        lines += [said] if said and "the dataset has no image" not in said else []
        if lines:
            wrong[f"{point} ({calls[point.number - 1]})"] = lines
    return {"calls": calls, "points": len(points), "wrong": wrong}


def main(words: list[str], folder: Path, uri: str = "", options: str = "{}") -> None:
    if uri:
        know_s3()
    for shard in range(SHARDS):
        for variant in (*range(VARIANTS), GIVEN_UP, REDACTED):
            rows_of(shard, variant)  # made once, for all forks
        segmented_rows(shard)
    gc.freeze()
    gc.disable()  # a collection would copy the pages that a fork shares
    results = {}
    for name in words:
        here = folder / name.replace(" ", "-")
        if name in REVISIONS:
            results[name] = try_a_sleeping_revision(REVISIONS[name], here)
        elif name in PAUSES:
            results[name] = try_a_pause(PAUSES[name], here)
        else:
            place = DatasetPath(f"{uri or folder}/{here.name}", json.loads(options))
            operation, only_changes, _ = name.partition(CHANGES)
            results[operation] = try_operation(OPERATIONS[operation], place, here, changes=bool(only_changes))
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1].split(","), Path(sys.argv[2]), *sys.argv[3:])
