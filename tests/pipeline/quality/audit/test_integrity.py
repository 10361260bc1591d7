"""The audit of a real, whole dataset: what it looks at, what it tells without a finding, and its sample.

What it finds in a damaged one is in `test_planted_faults.py`.
"""

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.manifest import LatestManifest
from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.catalogs.dataset.tombstones import TakedownRequest
from segmint.catalogs.findings import Code, Finding
from segmint.catalogs.layout import data_path
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.pipeline.corrections.takedown import takedown
from segmint.pipeline.quality.audit import integrity
from segmint.pipeline.quality.audit.integrity import audit_integrity, sampled
from segmint.pipeline.quality.audit.result import AuditReport, result_lines
from tests.support.builds import digests
from tests.support.committed_shard import CommittedShard
from tests.support.locations import location_of
from tests.support.planting import LATER, ShardEdit, commit_path, flip


def audit(dataset: Path, sample: int = 100) -> AuditReport:
    return audit_integrity(location_of(dataset), sample, now=LATER)


def test_a_whole_dataset_has_no_finding_and_is_not_changed(small_dataset: Path) -> None:
    before = digests(small_dataset)
    report = audit(small_dataset)
    assert list(report.findings) == []
    assert report.findings.total == 0
    checked = report.checked
    assert (checked.commits, checked.catalog_parts, checked.catalog_rows, checked.files) == (3, 1, 8, 12)
    assert (checked.images, checked.rejects, checked.jsons, checked.jpegs, checked.jpegs_decoded) == (6, 2, 6, 6, 6)
    named = [entry for commit in CommitLog(location_of(small_dataset)).read_all() for entry in commit.files]
    assert checked.bytes == sum(entry.size for entry in named)
    masks = sum(pq.read_metadata(path).num_rows for path in (small_dataset / "masks").iterdir())
    assert checked.masks == checked.masks_decoded == masks > 6
    assert (report.not_built, report.recent_unnamed, report.not_compared) == ((), (), ())
    assert digests(small_dataset) == before


# --- what is told and is no finding ---


def test_what_is_not_yet_built_is_told(dataset: Path) -> None:
    for entry in CommittedShard(dataset, 1).commit.files:
        (dataset / entry.path).unlink()
    commit_path(dataset, 1).unlink()
    (dataset / "shards.json").unlink()  # it is written when all shards are committed
    report = audit(dataset)
    assert report.findings.total == 0
    assert list(report.not_built) == [(1, 1)]
    assert "not yet built: 1 of 3 shards (1)" in result_lines(report)
    assert report.checked.commits == 2


def test_a_shard_that_is_corrected_during_the_audit_is_audited_in_its_newer_generation(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A takedown of an image runs after the audit has listed the files and the commits."""
    first = next(iter(open_dataset(str(dataset))))
    load = integrity.load_latest_manifest

    def corrected(location: Location) -> LatestManifest:
        takedown(location, TakedownRequest(ids=(str(first.row["image_id"]),)), "asked by its owner")
        return load(location)

    monkeypatch.setattr(integrity, "load_latest_manifest", corrected)
    report = audit(dataset)
    assert [finding.line() for finding in report.findings] == []
    assert (report.checked.commits, report.checked.images) == (3, len(open_dataset(str(dataset))))


def test_files_of_a_writer_at_work_are_told(dataset: Path) -> None:
    commit_path(dataset, 2).unlink()
    (dataset / "shards.json").unlink()
    report = audit_integrity(location_of(dataset))
    assert report.findings.total == 0
    assert len(report.recent_unnamed) == 4
    assert any("4 files that no commit names, from a running or killed writer" in line for line in result_lines(report))
    # However old: the next writer of the same bytes names them again.
    assert (audit(dataset).findings.total, audit(dataset).recent_unnamed) == (0, report.recent_unnamed)


def test_what_could_not_be_compared_is_told(dataset: Path) -> None:
    flip(dataset / CommittedShard(dataset, 1).commit.file("masks").path)
    report = audit(dataset)
    assert report.not_compared == (1,)
    assert "not compared, because they have findings: shard 1" in result_lines(report)
    assert report.checked.images == 3


def test_a_large_dataset_without_ray_is_audited_in_threads_and_a_line_says_so(
    small_dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = audit(small_dataset)
    assert "Ray" not in capsys.readouterr().err
    monkeypatch.setattr(integrity, "find_spec", lambda _: None)
    assert audit_integrity(location_of(small_dataset), now=LATER, ray_from=expected.checked.masks) == expected
    (line,) = capsys.readouterr().err.splitlines()
    assert "Ray isn't installed, so this large dataset is audited in threads" in line
    assert "pip install 'segmint[build]'" in line


# --- the sample ---


def test_only_the_sample_is_decoded(dataset: Path) -> None:
    ShardEdit(1, lambda taken: taken.edit_member(0, lambda d: d[: len(d) // 2] + d[-2:]))(dataset)
    none = audit(dataset, sample=0)
    assert none.findings.total == 0
    assert (none.checked.jpegs, none.checked.jpegs_decoded, none.checked.masks_decoded) == (6, 0, 0)
    two = audit(dataset, sample=2)
    assert two.checked.jpegs_decoded == 2
    assert two.findings.total == 0
    assert audit(dataset, sample=6).findings.counts == {Code.BAD_JPEG: 1}


@pytest.mark.parametrize(("wanted", "total"), [(0, 10), (1, 10), (3, 10), (10, 10), (100, 7), (100, 0), (7, 1000)])
def test_a_sample_is_spread_evenly_however_shards_cut_it(wanted: int, total: int) -> None:
    whole = sorted(sampled(wanted, total, 0, total))
    assert len(whole) == min(wanted, total)
    cut = []
    for start in range(0, total, 3):
        cut += sorted(start + position for position in sampled(wanted, total, start, min(start + 3, total)))
    assert cut == whole
    gaps = np.diff(whole)
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


# --- stores ---


def test_no_dataset_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a segmint dataset"):
        audit(tmp_path)


@pytest.mark.s3
def test_the_same_on_s3(small_dataset: Path, s3_bucket: str, s3_options: dict[str, dict[str, str]]) -> None:
    storage, uri = Storage(s3_options), f"s3://{s3_bucket}/some/dataset"
    for path in small_dataset.rglob("*"):
        if path.is_file():
            storage.put(f"{uri}/{path.relative_to(small_dataset)}", path.read_bytes())
    report = audit_integrity(Location(storage, uri), now=LATER)
    assert [finding.line() for finding in report.findings] == []
    assert report.checked == audit(small_dataset).checked

    one, other, third = (CommittedShard(small_dataset, shard).commit for shard in range(3))
    storage.delete(f"{uri}/{one.file('shards').path}")
    storage.put(f"{uri}/{other.file('masks').path}", b"x" * other.file("masks").size)
    storage.put(f"{uri}/{third.file('images').path}", b"x")
    storage.put(f"{uri}/shards/notes.txt", b"mine")
    storage.put(f"{uri}/{data_path('images', 0, '0' * 64)}", b"left over")
    found: list[Finding] = list(audit_integrity(Location(storage, uri), now=LATER).findings)
    assert {(finding.code, finding.shard) for finding in found} == {
        (Code.MISSING_FILE, 0),
        (Code.FILE_DIGEST, 1),
        (Code.FILE_SIZE, 2),
        (Code.STRAY_FILE, None),
        (Code.LEFTOVER_FILE, 0),
    }


def test_the_columns_that_the_page_lists_as_not_checked_are_not(dataset: Path) -> None:
    """Wrong values in all of them at once are no finding."""
    page = (Path(__file__).parents[4] / "docs" / "audit.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| `(images|masks)` \| (.*) \|$", page, re.MULTILINE)
    listed = {table: re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", names)) for table, names in lines}
    assert {len(listed["images"]), len(listed["masks"])} == {4, 6}

    def edit(taken: CommittedShard) -> None:
        image, mask = taken.rows["images"][0], taken.rows["masks"][0]
        for name in listed["images"]:
            if isinstance(image[name], dict):
                checked = {key: value for key, value in image[name].items() if key in ("written", "mask_count")}
                image[name] = dict.fromkeys(image[name], 99) | checked
            else:
                image[name] = 99
        mask.update({name: not mask[name] if name == "touches_border" else 0.123 for name in listed["masks"]})

    ShardEdit(0, edit)(dataset)
    assert [finding.line() for finding in audit(dataset).findings] == []
