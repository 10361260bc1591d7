"""`segmint merge`: puts what people answered into a dataset, as the next generation of its shards."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from segmint.catalogs.dataset.annotations.answers import Answer, AnswerError, read_answer, read_lane
from segmint.catalogs.dataset.annotations.lanes import answers_apart, lane_to_merge
from segmint.catalogs.dataset.annotations.names import AnswerName, list_answers, purge_of_images
from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.handle import DatasetHandle
from segmint.catalogs.dataset.tombstones import read_tombstones, taken_images
from segmint.catalogs.layout import image_stem
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead
from segmint.operators.rows import Row
from segmint.operators.shards.committed_rows import rows_of
from segmint.operators.shards.revise import with_holding
from segmint.pipeline.corrections.correction import correct
from segmint.pipeline.corrections.merge.answer import MergedAnswers, MergeList, Tally
from segmint.pipeline.corrections.merge.row import Left, answer_to_merge, left_alone, merge_answer
from segmint.pipeline.corrections.people_revision import MaskCorrection, MaskPlan, is_unfinished

_THREADS = 16

Names = Mapping[int, Sequence[AnswerName]]
"""The answers of images, by ordinal."""


@dataclass(frozen=True)
class MergeChange:
    """The next rows of a shard: answers are merged into those that have one. Answers are never changed."""

    dataset: Location
    names: Names

    def __call__(self, commit: Commit, rows: Sequence[Row]) -> list[Row]:
        """Return the rows, the same objects where nothing changes."""
        wanted = {row["ordinal"]: _to_merge(row, self.names) for row in rows}
        answers = _read(self.dataset, {ordinal: lane for ordinal, lane in wanted.items() if lane})
        return [
            row
            if isinstance(found := answers.get(row["ordinal"], []), AnswerError) or not found
            else merge_answer(row, found).row
            for row in rows
        ]


def list_merge(dataset: Location) -> MergeList:
    """List what `merge_answers` would change; raises what it raises before anything is changed."""
    return _Merge().plan(DatasetHandle.open(dataset)).listed


def merge_answers(
    dataset: Location, confirm: Callable[[MergeList], None] | None = None, now: datetime | None = None
) -> MergedAnswers:
    """Merge the last answer of each image into its row; `confirm` and `now` as in `correct`.

    Answers stay where they are, those of a second lane, too; but those for images that were taken down are removed, as
    a takedown does. Raises `UsageError` for a place without a dataset, or a store whose older versions cannot be
    removed, and `DamagedDatasetError` if a shard cannot be read.
    """
    handle = DatasetHandle.open(dataset)
    _forget_taken(dataset, _names(dataset))
    return correct(handle, _Merge(), confirm, now)


@dataclass(frozen=True)
class _Merge(MaskCorrection[MergeList, MergedAnswers]):
    """The correction; see `segmint.pipeline.corrections.correction.Correction`."""

    command = "merge"
    result_class = MergedAnswers

    def plan(self, dataset: DatasetHandle) -> MaskPlan[MergeList]:
        location, names = dataset.location, _names(dataset.location)
        manifest = dataset.manifest()
        by_shard: dict[int, list[int]] = {}
        for ordinal in names:
            by_shard.setdefault(ordinal // manifest.images_per_shard, []).append(ordinal)
        change = MergeChange(location, names)
        tally = Tally()
        unchanged: dict[int, int] = {}
        changing = []
        for shard, ordinals in by_shard.items():
            looked, generation = _look(location, shard, ordinals, change)
            if looked.images:
                changing.append(shard)
            elif generation is not None:
                unchanged[shard] = generation
            tally.add(looked)
        listed = MergeList.of((str(dataset), manifest.name), len(names), tally, tuple(changing))
        is_done = not listed.images and not is_unfinished(dataset, sorted(by_shard))
        return MaskPlan(listed, frozenset(by_shard), change, unchanged, is_done)


def _forget_taken(dataset: Location, names: Names) -> None:
    """Remove answers for images that were taken down: of a server that died before it looked at the tombstones."""
    taken = taken_images(read_tombstones(dataset)).keys() & names.keys()
    if taken:
        purge_of_images(dataset, taken)


def _names(dataset: Location) -> Names:
    names: dict[int, list[AnswerName]] = {}
    for name in list_answers(dataset):
        names.setdefault(name.ordinal, []).append(name)
    return names


def _look(dataset: Location, shard: int, ordinals: Sequence[int], change: MergeChange) -> tuple[Tally, int | None]:
    """Return what the merge would do in a shard, from its tables; and the generation that was looked at."""

    def read(commit: Commit) -> tuple[Tally, int]:
        found = rows_of(dataset, commit, ordinals, ("images", "rejects"))
        tally = Tally()
        wanted = {}
        for row in found:
            lane = _to_merge(row, change.names)
            if (left := left_alone(row)) is not None:
                tally.leave(image_stem(row["id"]), left.value)
            elif lane:
                wanted[row["ordinal"]] = lane
            else:
                tally.merged += 1
            if left is None and (other := _left_apart(dataset, row, change.names)) is not None:
                tally.count_apart(row["id"], other)
        answers = _read(dataset, wanted)
        for row in rows_of(dataset, commit, wanted) if wanted else ():
            answer = answers[row["ordinal"]]
            if isinstance(answer, AnswerError):
                tally.leave(image_stem(row["id"]), Left.UNREADABLE.value, str(answer))
            else:
                tally.count(row["id"], merge_answer(row, answer))
        return tally, commit.generation

    found = with_holding(dataset, shard, read)
    if found is not None:
        return found
    tally = Tally()
    for ordinal in ordinals:
        tally.leave(image_stem(ordinal + 1), Left.NOT_BUILT.value)
    return tally, None


def _to_merge(row: Row, names: Names) -> list[AnswerName]:
    """Return the answers of the lane whose last one is to be merged into a row; none if nothing is."""
    own = names.get(row["ordinal"], ())
    last = answer_to_merge(row, own) if own and left_alone(row) is None else None
    return [] if last is None else [name for name in own if name.lane == last.lane]


def _left_apart(dataset: Location, row: Row, names: Names) -> int | None:
    """Return the lane of an image whose last answer is neither merged nor compared with one of the merged lane."""
    own = names[row["ordinal"]]
    lane = lane_to_merge(row["answer"], (name.lane for name in own))
    others = [name for name in own if name.lane != lane]
    if not others or len(others) == len(own):
        return others[-1].lane if others else None
    try:
        answers = [read_answer(dataset, name) for name in own]
    except AnswerError:  # the audit names it
        return None
    last = max((answer for answer in answers if answer.lane != lane), key=lambda answer: answer.n)
    pair = answers_apart(answers)
    return None if pair is not None and last.base == pair[0].base else last.lane


def _read(dataset: Location, wanted: Names) -> dict[int, list[Answer] | AnswerError]:
    """Read the answers of images; an error where the last one cannot be read, and earlier ones that can."""

    def read(ordinal: int) -> tuple[int, list[Answer] | AnswerError]:
        try:
            return ordinal, read_lane(dataset, wanted[ordinal])
        except AnswerError as error:
            return ordinal, error

    return dict(map_ahead(read, wanted, _THREADS, 2 * _THREADS, "answers"))
