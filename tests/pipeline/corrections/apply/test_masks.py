"""New masks over a finished dataset: only automatic masks go, numbers stay unique, and nothing is lost or comes back."""

from collections.abc import Iterator

import pytest

from segmint.catalogs.dataset.annotations.submissions import put_submission
from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.dataset.tombstones import TakedownRequest
from segmint.catalogs.dataset.versions.record import latest_version
from segmint.infra.errors import UsageError
from segmint.pipeline.corrections.apply.change import MasksMode
from segmint.pipeline.corrections.apply.masks import list_masks
from segmint.pipeline.corrections.merge.run import merge_submissions
from segmint.pipeline.corrections.takedown import takedown
from segmint.pipeline.quality.audit.integrity import audit_integrity
from tests.support.applied import applied, segmenter
from tests.support.imported import masks_of
from tests.support.labeled import write_labeled
from tests.support.protocol import DatasetPath, broken_promises, contents, two_shards, write
from tests.support.submissions import answer_to, new_mask


@pytest.fixture
def place() -> Iterator[DatasetPath]:
    """Images 1, 2, 4 and 5 with two masks each. A person has labeled a mask of image 4, and answered for image 2."""
    with two_shards(committed=0) as place:
        write(place, 0)
        write_labeled(place, 1)
        answer = answer_to(place.location, 1, [new_mask((3, 4, 11, 21), 10_001)])
        put_submission(place.location, answer)
        merge_submissions(place.location)
        yield place


def findings(place: DatasetPath) -> list[str]:
    return [finding.line() for finding in audit_integrity(place.location).findings] + broken_promises(place)


def test_new_masks_replace_only_automatic_ones_and_are_numbered_on(place: DatasetPath) -> None:
    before = {ordinal: masks_of(place, ordinal) for ordinal in (0, 1, 3, 4)}
    done = applied(place, segmenter())
    print(done.lines())
    assert findings(place) == []
