"""A dataset after its first build: it grows with its catalog, and retries refused rows."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.catalogs.dataset.submissions import put_submission
from segmint.pipeline.corrections.merge import merge_submissions
from segmint.pipeline.quality.audit.integrity import audit_integrity
from tests.support.builds import digests, segmint, small_catalog, write_catalog, write_config, write_photographs
from tests.support.locations import location_of
from tests.support.submissions import answer_to, committed_row

pytestmark = [pytest.mark.ray, pytest.mark.long]


def rows_of(catalog: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in catalog.read_text().splitlines()]


def answer(printed: str) -> Any:
    """Parse the JSON in a command's output."""
    found = re.search(r"^\{$.*^\}$", printed, re.MULTILINE | re.DOTALL)
    assert found is not None, printed
    return json.loads(found[0])


def grown_catalog(folder: Path) -> Path:
    """The small catalog with three photographs and a missing image added at the front."""
    catalog = small_catalog(folder)
    names = write_photographs(folder, 10)[7:]
    new = [{"uri": name, "license": "CC0-1.0", "image_id": f"new-{name}"} for name in [*names, "late.jpg"]]
    return write_catalog(catalog, [*new, *rows_of(catalog)])


def test_a_dataset_grows_and_no_byte_of_it_changes(tmp_path: Path) -> None:
    catalog = small_catalog(tmp_path / "photos")
    config = write_config(tmp_path / "build.yaml", catalog, tmp_path / "dataset")
    segmint("build", config)
    dataset = tmp_path / "dataset"
    first = digests(dataset)
    grown_catalog(tmp_path / "photos")

    assert "has 4 new rows" in segmint("build", config, check=2)
    assert digests(dataset) == first
    # First the pilot's shard, then all, as in any build.
    segmint("build", config, "--grow", "--shards", "4:5")
    assert sorted(path.name for path in (dataset / "commits").iterdir())[-1] == "000004.g1.json"
    accounting = answer(segmint("build", config, "--json"))
    assert (accounting["rows"], accounting["written"], accounting["shards"]) == (12, 9, 5)
    grown = digests(dataset)
    assert {path: digest for path, digest in grown.items() if path in first} == first | {
        "shards.json": grown["shards.json"]
    }
    assert audit_integrity(location_of(dataset)).findings.total == 0
    ids = [sample.id for sample in open_dataset(str(dataset))]
    assert ids == [1, 2, 4, 5, 6, 7, 10, 11, 12]
    assert len(json.loads((dataset / "shards.json").read_text())["shardlist"]) == 4
    assert "nothing to do: all rows of " in segmint("build", config, "--grow")
    assert digests(dataset) == grown

    # The new images equal those of a separate dataset, except for their numbers.
    alone = write_catalog(tmp_path / "photos" / "alone.jsonl", rows_of(catalog)[:4])
    segmint("build", write_config(tmp_path / "alone.yaml", alone, tmp_path / "alone"))
    new = [sample for sample in open_dataset(str(dataset)) if sample.id >= 10]
    for sample, other in zip(new, open_dataset(str(tmp_path / "alone")), strict=True):
        assert (sample.id, sample.jpeg) == (other.id + 9, other.jpeg)
        assert [mask.counts for mask in sample.masks] == [mask.counts for mask in other.masks]


def test_refused_rows_are_retried_and_the_others_stay(tmp_path: Path) -> None:
    """The result is what a first build of the photographs in their current state would write."""
    photos = tmp_path / "photos"
    catalog = small_catalog(photos)
    config = write_config(tmp_path / "build.yaml", catalog, tmp_path / "dataset")
    segmint("build", config)
    dataset = tmp_path / "dataset"
    before = digests(dataset)
    commits = CommitLog(location_of(dataset))

    printed = segmint("build", config, "--retry-rejected", "license_not_allowed", "--retry-rejected", "not_found")
    assert "2 rejected rows, of which 0 became images" in printed
    assert digests(dataset) == before
    assert "expected one of license_not_allowed" in segmint("build", config, "--retry-rejected", "wrong", check=2)

    (photos / "nowhere.jpg").write_bytes((photos / "photo_000.jpg").read_bytes())
    assert "nothing to do: all rows of " in segmint("build", config, "--retry-rejected", "truncated")
    segmint("build", config, "--retry-rejected", "not_found", "--shards", "0:2")
    assert digests(dataset) == before
    accounting = answer(segmint("build", config, "--json", "--retry-rejected", "not_found"))
    assert (accounting["retried_rows"], accounting["retried_images"], accounting["written"]) == (1, 1, 7)
    assert accounting["rejected"] == {"license_not_allowed": 1}
    assert commits.generations() == {0: [1], 1: [1], 2: [2]}

    segmint("build", write_config(tmp_path / "rebuilt.yaml", catalog, tmp_path / "rebuilt"))
    rebuilt = digests(tmp_path / "rebuilt")
    after = digests(dataset)
    assert after.keys() - rebuilt.keys() == {"commits/000002.g2.json"}
    assert rebuilt.keys() - after.keys() == {"commits/000002.g1.json"}
    assert all(after[path] == rebuilt[path] for path in after.keys() & rebuilt.keys())
    assert audit_integrity(location_of(dataset)).findings.total == 0
    assert "nothing to do: all rows of " in segmint("build", config, "--retry-rejected", "not_found")
    assert digests(dataset) == after


def test_a_dataset_with_answers_grows_and_retries(tmp_path: Path) -> None:
    """Answers stay as they are; what was merged stays merged, and what was not is merged afterwards, new images too."""
    photos = tmp_path / "photos"
    config = write_config(tmp_path / "build.yaml", small_catalog(photos), tmp_path / "dataset")
    segmint("build", config)
    dataset = location_of(tmp_path / "dataset")

    def deleted(image: int, n: int = 1) -> int:
        """Answer that an image's first mask is deleted; returns its id."""
        first = min(mask["annotation_id"] for mask in committed_row(dataset, image - 1)["masks"])
        assert put_submission(dataset, answer_to(dataset, image, deleted=[first], n=n))
        return int(first)

    def masks(image: int) -> list[int]:
        return [mask["annotation_id"] for mask in committed_row(dataset, image - 1)["masks"]]

    gone = {image: [deleted(image)] for image in (1, 7)}
    merge_submissions(dataset)
    gone[7].append(deleted(7, n=2))  # in the shard of the row that is retried
    gone[4] = [deleted(4)]
    answers = {
        path: digest for path, digest in digests(tmp_path / "dataset").items() if path.startswith("annotations/")
    }
    assert len(answers) == 4

    grown_catalog(photos)
    (photos / "nowhere.jpg").write_bytes((photos / "photo_000.jpg").read_bytes())
    segmint("build", config, "--grow")
    accounting = answer(segmint("build", config, "--json", "--retry-rejected", "not_found"))
    assert accounting["retried_images"] == 1
    assert audit_integrity(dataset).findings.total == 0
    after = digests(tmp_path / "dataset")
    assert {path: after[path] for path in answers} == answers
    assert committed_row(dataset, 6)["submission"]["n"] == 1
    assert (gone[1][0] in masks(1), gone[7][0] in masks(7), gone[4][0] in masks(4)) == (False, False, True)

    gone |= {image: [deleted(image)] for image in (8, 10)}
    done = merge_submissions(dataset)
    assert (done.listed.images, done.listed.merged, done.listed.masks["deleted"]) == (4, 1, 4)
    assert not any(id in masks(image) for image, ids in gone.items() for id in ids)
    assert audit_integrity(dataset).findings.total == 0
