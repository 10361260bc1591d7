"""Images of datasets that no weights were trained on."""

from collections.abc import Callable
from pathlib import Path

import pytest

from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.dataset.outputs import note_output
from segmint.catalogs.dataset.versions.digest import current_digest
from segmint.catalogs.lineage import Round, TrainedOn
from segmint.infra.storage.storage import Storage
from segmint.pipeline.evaluate.gate.held_out import untrained_images
from segmint.pipeline.evaluate.gate.lineage import Lineage, lineage_of
from segmint.pipeline.evaluate.measure import Weights
from tests.pipeline.evaluate.gate.conftest import held_by_hash, put_lineage
from tests.support.locations import location_of
from tests.support.trainable import write_trainable

Make = Callable[[str], Path]

SHARE = 0.5


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "small"
    write_trainable(location_of(path), 2)
    return path


def untrained(dataset: Path, *lineages: Lineage):
    return untrained_images([str(dataset)], lineages, Storage())[str(dataset)]


def lineage(file: Path, *rounds: tuple[TrainedOn, float | None]) -> Lineage:
    if rounds:
        put_lineage(file, rounds)
    return lineage_of(Weights.of(str(file)), Storage())


def test_a_dataset_of_no_lineage_is_held_out_whole(dataset: Path, weights_file: Make) -> None:
    trained = lineage(weights_file("b"), (TrainedOn(name="other", digest="1" * 64), SHARE))
    found = untrained(dataset, trained)
    assert (found.ids, found.trained) == (None, frozenset())
    assert found.of([3, 4]) == {3, 4}


@pytest.mark.parametrize("known_by", ["name", "digest"])
def test_the_rule_of_training_holds_for_a_dataset_of_the_lineage(
    dataset: Path, weights_file: Make, known_by: str
) -> None:
    digest = current_digest(location_of(dataset))
    named = TrainedOn(name="small", digest="1" * 64) if known_by == "name" else TrainedOn(name="other", digest=digest)
    base = lineage(weights_file("a"))
    found = untrained(dataset, base, lineage(weights_file("b"), (named, SHARE)))
    held = held_by_hash(6, SHARE)
    assert 0 < len(held) < 6
    assert found.ids == held
    assert found.trained == set(range(1, 7)) - held
    assert found.why == "b.pth trained on it: images of its held-out 50 % remain"


def test_the_smallest_share_of_both_weights_holds(dataset: Path, weights_file: Make) -> None:
    named = TrainedOn(name="small", digest="1" * 64)
    first, second = lineage(weights_file("a"), (named, 0.3)), lineage(weights_file("b"), (named, 0.8))
    assert untrained(dataset, first, second).ids == held_by_hash(6, 0.3) < held_by_hash(6, 0.8)


def test_a_dataset_that_was_built_with_the_weights_is_a_later_round(dataset: Path, weights_file: Make) -> None:
    sha256 = load_manifest(location_of(dataset)).weights.sha256
    built_with = Round(weights=sha256, name="sam.pth", datasets=(TrainedOn(name="other", digest="1" * 64),))
    found = untrained(dataset, Lineage(Weights.of(str(weights_file("b"))), True, (built_with,), SHARE))
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
    assert found.why == "b.pth trained on it: no share of it was held out"


def test_a_copy_in_another_dataset_was_trained_on_too(tmp_path: Path, dataset: Path, weights_file: Make) -> None:
    """The other dataset, of no lineage, has the same photographs as the first half of the dataset, and no others."""
    copy = tmp_path / "copy"
    write_trainable(location_of(copy), 1)
    trained = lineage(weights_file("b"), (TrainedOn(name="other", digest=current_digest(location_of(dataset))), SHARE))
    found = untrained_images([str(dataset), str(copy)], [trained], Storage())
    held = held_by_hash(6, SHARE)
    assert found[str(dataset)].ids == held
    assert found[str(copy)].ids == held & {1, 2, 3}
    assert found[str(copy)].why == "in no lineage: images that show none of those trained on count as held out"
