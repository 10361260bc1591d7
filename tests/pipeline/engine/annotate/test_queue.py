"""The queue: which images, in what order, which of them twice, and how it is walked."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.dataset.submissions import put_submission
from segmint.infra.errors import UsageError
from segmint.pipeline.corrections.merge import merge_submissions
from segmint.pipeline.engine.annotate.queue import Queue, QueueOptions, make_queue
from segmint.pipeline.engine.study.sample import sample_study
from segmint.pipeline.quality.statistics.masks import open_tables
from tests.support.locations import location_of
from tests.support.protocol import DatasetPath, two_shards
from tests.support.submissions import answer_to, new_mask


@pytest.fixture(scope="module")
def place() -> Iterator[DatasetPath]:
    """Images 1, 2, 4 and 5 with two masks each; an answer with one more is merged into 4, one deletes a mask of 5."""
    with two_shards() as place:
        assert put_submission(place.location, answer_to(place.location, 4, [new_mask((22, 5, 28, 30))]))
        assert put_submission(place.location, answer_to(place.location, 5, deleted=[50_000]))
        merge_submissions(place.location)
        assert put_submission(place.location, answer_to(place.location, 1))
        yield place


def queue_of(place: DatasetPath, **options: Any) -> Queue:
    manifest = load_manifest(place.location)
    with open_tables(place.location) as tables:
        return make_queue(tables, manifest, QueueOptions(**options))


def test_images_come_in_the_order_that_was_asked_for(place: DatasetPath) -> None:
    assert queue_of(place).ids.tolist() == [1, 2, 4, 5]
    assert queue_of(place, order="fewest").ids.tolist() == [5, 1, 2, 4]
    drawn = [queue_of(place, order="random").ids.tolist() for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert sorted(drawn[0]) == [1, 2, 4, 5]
    assert queue_of(place, select="masks = 2").ids.tolist() == [1, 2]
    with pytest.raises(UsageError, match="no images to annotate"):
        queue_of(place, select="masks > 99")


def test_images_whose_answers_are_in_the_tables_are_known(place: DatasetPath) -> None:
    """An answer that is not merged is for the board to know."""
    queue = queue_of(place, order="fewest")
    assert {image: (row["assignment"], row["n"]) for image, row in queue.merged.items()} == {4: (0, 1), 5: (0, 1)}
    assert queue.shards.tolist() == [1, 0, 0, 1]


def test_a_share_of_the_images_is_annotated_twice_the_same_ones_always(place: DatasetPath) -> None:
    for share, assignments in ((0.0, {1}), (1.0, {2})):
        queue = queue_of(place, overlap=share)
        assert {queue.assignments(image) for image in queue.ids.tolist()} == assignments
    assert queue.assignments(99) == 1
    half = [queue_of(place, overlap=0.5, order=order) for order in ("number", "fewest")]
    twice = [{image for image in queue.ids.tolist() if queue.assignments(image) == 2} for queue in half]
    assert twice[0] == twice[1]
    with pytest.raises(UsageError, match="a share of the images, from 0 to 1"):
        queue_of(place, overlap=1.5)


def test_a_study_has_its_own_images_and_no_others(place: DatasetPath, tmp_path: Path) -> None:
    study = location_of(tmp_path / "study")
    sample_study(place.location, 2, 0, study)
    manifest = json.loads((tmp_path / "study" / "manifest.json").read_text())
    drawn = sorted(image["id"] for image in manifest["images"])
    assert len(drawn) == 2
    assert queue_of(place, study=study).ids.tolist() == drawn
    manifest["dataset"]["config_sha256"] = "0" * 64
    (tmp_path / "study" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="was drawn from another dataset"):
        queue_of(place, study=study)


def test_it_is_walked_from_one_image_to_the_end_and_round() -> None:
    ids = np.array([30, 10, 20, 40], dtype=np.int64)
    queue = Queue(ids, np.zeros(4, np.bool_), np.zeros(4, np.int64), {})
    asked: list[int] = []

    def is_open(ranks: Any) -> Any:
        asked.extend(ranks.tolist())
        return ranks != 2  # all but image 20

    assert [queue.rank(image) for image in (30, 10, 20, 40, 5, 99)] == [0, 1, 2, 3, None, None]
    assert list(queue.after(None, is_open)) == [30, 10, 40]
    assert list(queue.after(10, is_open)) == [40, 30]
    assert list(queue.after(40, is_open)) == [30, 10]
    assert list(queue.after(99, is_open)) == [30, 10, 40]  # of none that is in it: from the first
    asked.clear()
    assert next(queue.after(10, is_open)) == 40
    assert asked == [2, 3]  # no more than are needed
