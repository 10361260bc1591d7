"""Labels by a stage: only masks tables change, people's labels stay, and removing them restores every byte."""

from collections.abc import Iterator, Sequence

import pytest

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.mask_labels import may_label
from segmint.catalogs.dataset.submissions import put_submission
from segmint.catalogs.dataset.tombstones import TakedownRequest
from segmint.catalogs.dataset.versions import latest_version
from segmint.infra.ray_session import Cluster
from segmint.operators.custom.contract import StageContractError, StageRow, load_stage
from segmint.pipeline.corrections.apply.columns import label, list_labels, without_model_labels
from segmint.pipeline.corrections.apply.engine import FAILED
from segmint.pipeline.corrections.merge import merge_submissions
from segmint.pipeline.corrections.proof import prove
from segmint.pipeline.corrections.repair import repair
from segmint.pipeline.corrections.takedown import takedown
from segmint.pipeline.quality.audit.integrity import audit_integrity
from tests.support.crashing_store import CallCounter, gated
from tests.support.imported import masks_of
from tests.support.labeled import ShadeLabels, shades, write_labeled
from tests.support.protocol import DatasetPath, broken_promises, contents, two_shards
from tests.support.submissions import answer_to, new_mask


@pytest.fixture
def place() -> Iterator[DatasetPath]:
    """Images 1, 2, 4 and 5 with two masks each; a person has labeled the first masks of images 1 and 4."""
    with two_shards(committed=0) as place:
        write_labeled(place, 0)
        write_labeled(place, 1)
        yield place


def labels(place: DatasetPath) -> list[tuple[str | None, str | None]]:
    return [(mask["label"], mask["label_source"]) for ordinal in (0, 1, 3, 4) for mask in masks_of(place, ordinal)]


def data_files(place: DatasetPath) -> dict[str, str]:
    return {name: digest for name, digest in contents(place).items() if not name.startswith("commits/")}


def test_only_the_tables_of_masks_are_put_once_per_shard_and_peoples_labels_stay(place: DatasetPath) -> None:
    before, calls = contents(place), CallCounter()
    listed = list_labels(place.location, shades())
    assert (listed.images, listed.masks, listed.shards) == (4, {"labeled": 6, "kept": 2}, (0, 1))
    assert contents(place) == before
    with gated(calls):
        done = label(place.location, shades())
    assert (done.listed, done.changed_shards) == (listed, (0, 1))
    puts = [call.split("-")[0] for call in calls.calls if call.startswith("put ")]
    assert puts == ["put masks/sa_000000", "put masks/sa_000001"]
    creates = [call for call in calls.calls if call.startswith("create commits/")]
    assert creates == ["create commits/000000.g2.json", "create commits/000001.g2.json"]
    source = f"model:{100:064x}"
    assert labels(place) == [("née", "person"), *3 * [("bright", source)], ("née", "person"), *3 * [("bright", source)]]
    assert masks_of(place, 0)[0]["label_score"] is None
    assert masks_of(place, 1)[0]["label_score"] == 170 / 1200
    assert [finding.line() for finding in audit_integrity(place.location).findings] == []
    assert broken_promises(place) == []
    version = latest_version(place.location)
    assert version is not None
    assert (version.command, version.reason) == ("label", f"label, SHA-256 {100:064x}"[:27] + ": 6 labeled in 4 images")


def test_labeling_again_changes_nothing_and_another_model_replaces_only_models_labels(place: DatasetPath) -> None:
    label(place.location, shades())
    before = contents(place)
    again = label(place.location, shades())
    assert (again.listed.images, again.changed_shards, contents(place)) == (0, (), before)
    assert again.lines()[0].startswith("no label to change")
    other = label(place.location, shades(200))
    assert other.listed.masks == {"labeled": 6, "kept": 2}
    source = f"model:{200:064x}"
    assert labels(place) == [("née", "person"), *3 * [("dark", source)], ("née", "person"), *3 * [("dark", source)]]


def test_removed_labels_leave_the_bytes_that_were_there_before(place: DatasetPath) -> None:
    before = data_files(place)
    label(place.location, shades())
    assert data_files(place).keys() - before.keys() == {
        commit.file("masks").path for commit in CommitLog(place.location).read_all()
    }
    removed = label(place.location, None)
    assert removed.listed.masks == {"removed": 6}
    assert data_files(place) == before
    assert label(place.location, None).changed_shards == ()


class Interrupted(ShadeLabels):
    """A stage that is interrupted in the second shard."""

    def __call__(self, rows: Sequence[StageRow]) -> list[StageRow]:
        if rows[0]["id"] > 3:
            raise KeyboardInterrupt
        return super().__call__(rows)


def test_an_interrupted_call_is_completed_without_labeling_again(place: DatasetPath) -> None:
    with pytest.raises(KeyboardInterrupt):
        label(place.location, load_stage(f"{__name__}.Interrupted", {"threshold": 100}))
    listed = list_labels(place.location, shades())
    assert (listed.images, listed.masks, listed.shards) == (2, {"labeled": 3, "kept": 5}, (1,))
    assert label(place.location, shades()).changed_shards == (1,)
    version = latest_version(place.location)
    assert version is not None
    assert {(shard, generation) for shard, generation, _ in version.commits} == {(0, 2), (1, 2)}


def test_a_labeled_image_is_taken_down_and_proved_gone(place: DatasetPath) -> None:
    label(place.location, shades())
    takedown(place.location, TakedownRequest(ids=("image-0",)), "as was asked")
    proof = prove(place.location, "image-0")
    assert (list(proof.found), list(proof.not_checked)) == ([], [])
    assert label(place.location, None).listed.masks == {"removed": 5}


def test_a_model_labels_what_a_person_left_without_a_label_but_not_what_lost_it(place: DatasetPath) -> None:
    label(place.location, shades())
    drawn, cleared = new_mask((22, 5, 28, 30)), new_mask((3, 4, 11, 21), 10_001, label="")
    assert put_submission(place.location, answer_to(place.location, 1, [drawn, cleared]))
    assert put_submission(place.location, answer_to(place.location, 4, [new_mask((3, 4, 13, 21), 40_001, label="")]))
    merge_submissions(place.location)
    label(place.location, shades(20))
    by_person, by_model, removed = ("née", "person"), ("bright", f"model:{20:064x}"), (None, "person")
    assert labels(place) == [by_person, by_model, removed, by_model, by_model, by_person, removed, by_model, by_model]
    assert [finding.line() for finding in audit_integrity(place.location).findings] == []


def test_a_label_without_a_source_is_nobodys_to_replace() -> None:
    assert not may_label({"label": "cup", "label_source": None}, "model:")


def test_repair_names_the_labels_that_are_lost_with_their_table(place: DatasetPath) -> None:
    label(place.location, shades())
    commit = place.log.latest(1)
    assert commit is not None
    (place.location / commit.file("masks").path).put(b"damaged")
    (said,) = repair(place.location).not_repaired.values()
    assert said.endswith("with --config. A build can't restore what `segmint label` and `segmint apply` set.")


class Unstartable(ShadeLabels):
    """A stage whose model is missing where it starts."""

    def __init__(self, threshold: int) -> None:
        raise FileNotFoundError("no model here")


def test_a_stage_that_cannot_start_is_refused_by_name(place: DatasetPath) -> None:
    before = contents(place)
    with pytest.raises(StageContractError, match=r"label can't start in a worker: FileNotFoundError: no model here"):
        label(place.location, load_stage(f"{__name__}.Unstartable", {"threshold": 3}))
    assert contents(place) == before


class Failing(ShadeLabels):
    """A stage that fails for image 2."""

    def __call__(self, rows: Sequence[StageRow]) -> list[StageRow]:
        if rows[0]["id"] == 2:
            raise ValueError("no label")
        return super().__call__(rows)


def test_an_image_that_fails_keeps_its_labels_and_stops_no_other(place: DatasetPath) -> None:
    done = label(place.location, load_stage(f"{__name__}.Failing", {"threshold": 100}))
    assert (done.listed.images, done.listed.masks, done.changed_shards) == (3, {"labeled": 4, "kept": 2}, (0, 1))
    assert done.listed.not_checked == [f"1 image: {FAILED}"]
    assert done.listed.examples[0].startswith(
        "image 2: skipped: stage_label: ValueError: no label (test_columns_label.py, line"
    )
    assert [finding.line() for finding in audit_integrity(place.location).findings] == []
    assert label(place.location, shades()).listed.masks == {"labeled": 2, "kept": 6}


def test_a_change_returns_unchanged_rows_as_the_same_objects(place: DatasetPath) -> None:
    rows = [{"id": 1, "label": "née", "label_source": "person", "label_score": None}]
    commit = place.log.latest(0)
    assert commit is not None
    assert all(one is other for one, other in zip(rows, without_model_labels(commit, rows), strict=True))


@pytest.mark.ray
def test_ray_labels_the_shards_of_a_large_dataset(
    place: DatasetPath, local_ray: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = label(place.location, shades(), ray_from=2)
    assert (done.changed_shards, [source for _, source in labels(place)].count(f"model:{100:064x}")) == ((0, 1), 6)
    with pytest.raises(StageContractError, match=r"label can't start in a worker: FileNotFoundError: no model here"):
        label(place.location, load_stage(f"{__name__}.Unstartable", {"threshold": 4}), ray_from=2)
    monkeypatch.setattr("segmint.pipeline.corrections.apply.columns.run_on_ray", None)
    here = load_stage(f"{ShadeLabels.__module__}.OnDevice", {"threshold": 50, "device": "cuda"})
    assert label(place.location, here, ray_from=2).changed_shards == (0, 1)
