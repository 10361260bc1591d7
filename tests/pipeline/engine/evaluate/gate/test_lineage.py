"""What weights were trained on, by the record beside them, and which images of datasets they were not."""

import hashlib
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.dataset.outputs import note_output
from segmint.catalogs.dataset.versions.digest import current_digest
from segmint.catalogs.layout import DamagedDatasetError
from segmint.catalogs.lineage import TRAINING, TrainingDatasetRef, TrainingRound
from segmint.infra.assets.cache import sha256_of
from segmint.infra.errors import UsageError
from segmint.infra.storage.storage import Storage
from segmint.pipeline.engine.evaluate.gate.lineage import Lineage, lineage_of, untrained_images
from segmint.pipeline.engine.evaluate.measure import EvaluatedWeights
from segmint.pipeline.engine.train.data.splits import is_held_out
from tests.pipeline.engine.evaluate.gate.conftest import held_by_hash, put_lineage
from tests.support.committed import write_dataset
from tests.support.locations import location_of
from tests.support.trainable import row_of, write_trainable

Make = Callable[[str], Path]

ONE, TWO = TrainingDatasetRef(name="street", digest="1" * 64), TrainingDatasetRef(name="shop", digest="2" * 64)


def find(path: Path | str):
    return lineage_of(EvaluatedWeights.of(str(path)), Storage())


def test_known_weights_were_not_trained_by_segmint(mobile_sam_path: Path) -> None:
    for name in ("mobile_sam", str(mobile_sam_path)):
        lineage = find(name)
        assert (lineage.known, lineage.rounds, lineage.share) == (True, (), None)
    assert lineage.line() == f"{mobile_sam_path.name}: not trained by segmint"


def test_all_rounds_count_with_the_smallest_share(weights_file: Make) -> None:
    file = weights_file("b")
    put_lineage(file, [(ONE, 0.1), (TWO, 0.2)])
    lineage = find(file)
    assert (lineage.known, lineage.share) == (True, 0.1)
    assert (lineage.names, lineage.digests) == ({"street", "shop"}, {"1" * 64, "2" * 64})
    assert lineage.line() == "b.pth: trained on shop, street, with 10% held out"


def test_a_round_without_its_share_held_nothing_out(weights_file: Make) -> None:
    file = weights_file("b")
    put_lineage(file, [(ONE, None), (TWO, 0.2)])
    assert find(file).share == 0


def test_weights_without_their_record_are_unknown(weights_file: Make) -> None:
    alone, other = weights_file("alone"), weights_file("other")
    put_lineage(other, [(ONE, 0.1)])
    other.write_bytes(b"weights of another run")
    for file in (alone, other):
        lineage = find(file)
        assert (lineage.known, lineage.rounds) == (False, ())
        assert "there's no training.json for these weights next to them" in lineage.line()


def test_a_damaged_record_is_an_error(weights_file: Make) -> None:
    file = weights_file("b")
    (file.parent / TRAINING).write_text('{"weights": 7}')
    with pytest.raises(UsageError, match=r"training\.json was not written by segmint train"):
        find(file)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"lineage": []}, "its lineage does not end with its weights"),
        ({"datasets": []}, "its datasets are not those of the last round of its lineage"),
    ],
)
def test_a_record_that_contradicts_itself_is_an_error(
    weights_file: Make, changes: dict[str, object], problem: str
) -> None:
    """Else it would read as weights that segmint did not train."""
    file = weights_file("b")
    put_lineage(file, [(ONE, 0.1)])
    record = json.loads((file.parent / TRAINING).read_bytes())
    (file.parent / TRAINING).write_text(json.dumps({**record, **changes}))
    with pytest.raises(UsageError, match=problem):
        find(file)


def test_a_lineage_that_begins_with_weights_of_others_is_not_known(weights_file: Make) -> None:
    file = weights_file("b")
    put_lineage(file, [(ONE, 0.1)], begun=TrainingRound(weights="5" * 64, name="p.pth"))
    lineage = find(file)
    assert (lineage.known, lineage.share, lineage.unexplained) == (False, 0.1, {"5" * 64})
    assert lineage.ancestors == {"5" * 64, lineage.weights.sha256}
    assert "with 10% held out; it's unknown what p.pth was trained on before that" in lineage.line()


SHARE = 0.5


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "small"
    write_trainable(location_of(path), 2)
    return path


def untrained(dataset: Path, *lineages: Lineage):
    return untrained_images([str(dataset)], lineages, Storage())[str(dataset)]


def lineage(file: Path, *rounds: tuple[TrainingDatasetRef | tuple[TrainingDatasetRef, ...], float | None]) -> Lineage:
    if rounds:
        put_lineage(file, rounds)
    return lineage_of(EvaluatedWeights.of(str(file)), Storage())


def test_a_dataset_of_no_lineage_is_held_out_whole(dataset: Path, weights_file: Make) -> None:
    trained = lineage(weights_file("b"), (TrainingDatasetRef(name="other", digest="1" * 64), SHARE))
    found = untrained(dataset, trained)
    assert (found.ids, found.trained) == (None, frozenset())
    assert found.of([3, 4]) == {3, 4}


@pytest.mark.parametrize("known_by", ["name", "digest"])
def test_the_rule_of_training_holds_for_a_dataset_of_the_lineage(
    dataset: Path, weights_file: Make, known_by: str
) -> None:
    digest = current_digest(location_of(dataset))
    named = (
        TrainingDatasetRef(name="small", digest="1" * 64)
        if known_by == "name"
        else TrainingDatasetRef(name="other", digest=digest)
    )
    base = lineage(weights_file("a"))
    found = untrained(dataset, base, lineage(weights_file("b"), (named, SHARE)))
    held = held_by_hash(6, SHARE)
    assert 0 < len(held) < 6
    assert found.ids == held
    assert found.trained == set(range(1, 7)) - held
    assert found.why == "b.pth trained on it: its held-out 50% remains"


def test_the_smallest_share_of_both_weights_holds(dataset: Path, weights_file: Make) -> None:
    named = TrainingDatasetRef(name="small", digest="1" * 64)
    first, second = lineage(weights_file("a"), (named, 0.3)), lineage(weights_file("b"), (named, 0.8))
    assert untrained(dataset, first, second).ids == held_by_hash(6, 0.3) < held_by_hash(6, 0.8)


def test_a_dataset_that_was_built_with_the_weights_is_a_later_round(dataset: Path, weights_file: Make) -> None:
    sha256 = load_manifest(location_of(dataset)).weights.sha256
    built_with = TrainingRound(
        weights=sha256, name="sam.pth", datasets=(TrainingDatasetRef(name="other", digest="1" * 64),)
    )
    found = untrained(dataset, Lineage(EvaluatedWeights.of(str(weights_file("b"))), True, (built_with,), SHARE))
    assert found.ids == held_by_hash(6, SHARE)


def test_a_note_tells_of_weights_without_their_record(tmp_path: Path, weights_file: Make) -> None:
    path = tmp_path / "small"
    write_trainable(location_of(path), 1)
    file = weights_file("b")
    unknown = lineage(file)
    assert untrained(path, unknown).ids is None
    note_output(location_of(path), "train", location_of(file.parent), {file.name: unknown.weights.sha256})
    found = untrained(path, unknown)
    assert (found.ids, found.trained) == (frozenset(), {1, 2, 3})
    assert found.why == "b.pth trained on it: nothing was held out"


def test_a_copy_in_another_dataset_was_trained_on_too(tmp_path: Path, dataset: Path, weights_file: Make) -> None:
    """The other dataset, of no lineage, has the same photographs as the first half of the dataset, and no others."""
    copy = tmp_path / "copy"
    write_trainable(location_of(copy), 1)
    trained = lineage(
        weights_file("b"), (TrainingDatasetRef(name="other", digest=current_digest(location_of(dataset))), SHARE)
    )
    found = untrained_images([str(dataset), str(copy)], [trained], Storage())
    held = held_by_hash(6, SHARE)
    assert found[str(dataset)].ids == held
    assert found[str(copy)].ids == held & {1, 2, 3}
    assert found[str(copy)].why == "in no lineage: images that aren't near-duplicates of trained ones count as held out"


def test_a_dataset_of_a_round_that_is_not_named_leaves_no_image(
    tmp_path: Path, dataset: Path, weights_file: Make
) -> None:
    """An image may look like one of the other dataset that was trained on; with that named, too, this is known."""
    copy = tmp_path / "copy"
    write_dataset(location_of(copy), 2, make_row=resaved, refuse=0)
    named = [TrainingDatasetRef(name=path.name, digest=current_digest(location_of(path))) for path in (dataset, copy)]
    named[1] = named[1].model_copy(update={"name": "other"})
    trained = lineage(weights_file("b"), (tuple(named), SHARE))
    found = untrained(dataset, trained)
    assert (found.ids, found.trained) == (frozenset(), set(range(1, 7)))
    assert found.why.startswith("b.pth trained on it together with other, not given here. ")
    both = untrained_images([str(dataset), str(copy)], [trained], Storage())
    assert both[str(dataset)].ids == frozenset()  # every image has a copy that was trained on
    assert both[str(dataset)].why == "b.pth trained on it: its held-out 50% remains"


def resaved(ordinal: int, refused: bool) -> dict[str, Any]:
    """A row with the picture of the dataset's, saved again, of another source that is not held out."""
    row = row_of(ordinal, refused)
    saved = io.BytesIO()
    Image.open(io.BytesIO(row["release"])).save(saved, "JPEG", quality=85)
    sources = (hashlib.sha256(f"{ordinal} {number}".encode()).digest() for number in itertools.count())
    source = next(each for each in sources if not is_held_out(each, SHARE))
    return {**row, "release": saved.getvalue(), "source_sha256": source.hex()}


def test_a_shard_that_cannot_be_read_is_an_error_where_it_was_trained_on(tmp_path: Path, weights_file: Make) -> None:
    path = tmp_path / "small"
    write_trainable(location_of(path), 2)
    trained = lineage(weights_file("b"), (TrainingDatasetRef(name="small", digest="1" * 64), SHARE))
    other = lineage(weights_file("c"), (TrainingDatasetRef(name="other", digest="1" * 64), SHARE))
    tar = next((path / "shards").glob("sa_000001*"))
    tar.write_bytes(tar.read_bytes()[:3000])
    with pytest.raises(DamagedDatasetError, match=r"was trained on, but has unreadable shards.*shard 1: "):
        untrained(path, trained)
    found = untrained(path, other)
    assert found.ids is None
    assert [line.partition(":")[0] for line in found.skipped] == ["shard 1"]


def test_a_dataset_that_notes_weights_of_unknown_origin_is_not_held_out(tmp_path: Path, weights_file: Make) -> None:
    """The parent's `training.json` was not beside it when the round began."""
    path = tmp_path / "small"
    write_trainable(location_of(path), 1)
    parent, file = weights_file("p"), weights_file("b")
    begun = TrainingRound(weights=sha256_of(parent), name="p.pth")
    note_output(location_of(path), "train", location_of(parent.parent), {"p.pth": begun.weights})
    put_lineage(file, [(TrainingDatasetRef(name="elsewhere", digest="1" * 64), SHARE)], begun)
    found = untrained(path, lineage(file))
    assert (found.ids, found.trained) == (frozenset(), {1, 2, 3})


def test_a_dataset_of_another_lineage_on_the_same_dataset_is_a_later_round(
    dataset: Path, weights_file: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both were trained on `street`, in two versions of it."""
    before = TrainingRound(
        weights="5" * 64, name="sam.pth", datasets=(TrainingDatasetRef(name="street", digest="2" * 64),)
    )
    changed = load_manifest(location_of(dataset)).model_copy(update={"lineage": (before,)})
    monkeypatch.setattr("segmint.pipeline.engine.evaluate.gate.lineage.load_manifest", lambda dataset: changed)
    found = untrained(dataset, lineage(weights_file("b"), (TrainingDatasetRef(name="street", digest="3" * 64), SHARE)))
    assert found.ids == held_by_hash(6, SHARE)
