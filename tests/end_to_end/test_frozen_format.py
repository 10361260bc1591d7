"""Datasets of the frozen format, as its first version wrote them: later versions read, correct, and continue them.

`version-4.tar.xz` contains photographs with their catalog (`sources`), and the states of a dataset: without its second
shard (`half-built`), `finished`, after a redaction and a takedown (`corrected`), with labels of a model (`labeled`),
with submissions and ratings (`annotated`), and after their merge (`merged`). Bytes are compared if this machine
computes the datasets' bits. `tests/support/format_archive.py` made the archive.
"""

import json
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.catalogs.dataset.versions import name_now
from segmint.catalogs.layout import ADDED_COLUMNS
from segmint.infra.errors import UsageError
from segmint.infra.storage.storage import Storage
from segmint.operators.segment.numerics import MixedNumericsError, Numerics, observe_numerics
from segmint.pipeline.building.dataset import open_or_create
from segmint.pipeline.config.config import load_config
from segmint.pipeline.corrections.apply.columns import label
from segmint.pipeline.corrections.merge import merge_submissions
from segmint.pipeline.quality.audit.audit import AuditOptions, audit_dataset
from segmint.pipeline.quality.statistics.masks import open_tables
from tests.support.builds import ROOT, digests
from tests.support.format_archive import (
    NOW,
    STATES,
    add_rows,
    config_of,
    correct,
    row_of,
    size_labels,
    unpack,
)
from tests.support.format_description import columns_of, frozen_path, misfits
from tests.support.locations import location_of
from tests.support.small_dataset import build_dataset

pytestmark = pytest.mark.usefixtures("weights", "embedded_once")

IMAGES = {"half-built": [1, 2], "corrected": [1, 2, 5]}
"""The images of states that lack some of them."""

LABELS = {"labeled": {"large", "small"}, "merged": {None, "cup"}}
MUST_HAVE = ("image", "annotations")
LONG = pytest.mark.long


def images_of(state: str) -> list[int]:
    return IMAGES.get(state, [1, 2, 4, 5])


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive, unpacked; not to be changed."""
    return unpack(tmp_path_factory.mktemp("format"))


@pytest.fixture
def folder(unpacked: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return shutil.copytree(unpacked, tmp_path / "copy")


@pytest.fixture(scope="module")
def same_bits(unpacked: Path) -> bool:
    """Whether this machine computes the datasets' bits."""
    begun = Numerics.recorded(load_manifest(location_of(unpacked / "finished")).numerics)
    here = observe_numerics(
        begun.compute,
        begun.points_per_chunk,
        begun.crops_per_batch,
        begun.weights_sha256,
        begun.encoder,
        begun.kernels,
    )
    return not begun.differences(here)


def findings(dataset: Path) -> list[str]:
    report = audit_dataset(location_of(dataset), AuditOptions(sample=9, privacy_sample=0, now=NOW))
    assert report.unfinished == ()
    return [finding.line() for finding in report.findings]


def ids(dataset: Path) -> list[int]:
    return [sample.id for sample in open_dataset(str(dataset))]


def data_files(dataset: Path, *, same_bits: bool) -> dict[str, str]:
    """SHA-256 of a dataset's files by path; without hashes if this machine computes other bits."""
    found = digests(dataset)
    return found if same_bits else {re.sub(r"-[0-9a-f]{12}\b", "", path): "" for path in found}


@pytest.mark.parametrize("state", STATES)
def test_the_files_are_those_of_the_frozen_format(unpacked: Path, state: str) -> None:
    """Otherwise somebody has changed the description together with the code."""
    frozen = json.loads(frozen_path().read_text("utf-8"))
    names = re.compile("|".join(frozen["names"]), re.ASCII)
    for path in sorted(each for each in (unpacked / state).rglob("*") if each.is_file()):
        name = path.relative_to(unpacked / state).as_posix()
        assert names.fullmatch(name), name
        if path.suffix == ".parquet":
            table = name.partition("/")[0]
            columns = dict(frozen["columns"][table])
            found = columns_of(pq.read_schema(path))
            if table == "catalog":
                columns = {
                    each: columns[each]
                    for each in columns
                    if each in found or each.partition(".")[0] not in frozen["optional columns of the catalog"]
                }
            assert list(found.items()) == list(columns.items()), name
        elif path.suffix == ".json":
            data = path.read_text("utf-8")
            kind = kind_of(name)
            if kind is None:
                patterns = (each for start, each in frozen["forms"].items() if name.startswith(start))
                assert re.fullmatch(next(patterns), data), name
            else:
                assert list(misfits(json.loads(data), frozen["json"][kind])) == [], name
                if kind == "dataset.json":
                    manifest = json.loads(data)
                    assert sorted(paths(manifest["config"])) == frozen["config"]
                    assert manifest["numerics"].keys() <= frozen["numerics"].keys()
        elif path.suffix == ".tar":
            with tarfile.open(path) as archive:
                for member in archive:
                    stream = archive.extractfile(member)
                    assert stream is not None
                    if member.name.endswith(".json"):
                        document = json.loads(stream.read())
                        example = json.loads(frozen["json in tars"])
                        assert list(document) == [each for each in example if each in document or each in MUST_HAVE]
                        assert all(list(each) == list(example["annotations"][0]) for each in document["annotations"])


def kind_of(name: str) -> str | None:
    """The name of a JSON file's description, or None if only the form of its text is frozen."""
    if name.startswith("dataset."):
        return "dataset.json"
    if name.endswith(".return.json"):
        return "annotations, returns"
    folder = name.partition("/")[0] if not name.startswith("annotations/ratings/") else "annotations/ratings"
    return None if folder in ("id.json", "summaries", "reservations") else folder


def paths(tree: dict[str, Any], above: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from paths(value, f"{above}{key}.")
        else:
            yield above + key


@pytest.mark.parametrize("state", STATES)
def test_each_is_read_and_audited_without_a_finding(unpacked: Path, state: str) -> None:
    dataset, before = unpacked / state, digests(unpacked / state)
    samples = list(open_dataset(str(dataset)))
    assert [sample.id for sample in samples] == images_of(state)
    assert {sample.row["license"] for sample in samples} == {"CC0-1.0"}
    for sample in samples:
        assert sample.image.shape == (sample.row["height"], sample.row["width"], 3)
        assert [int(mask.mask.sum()) for mask in sample.masks] == [mask.area for mask in sample.masks]
    assert {mask.label for sample in samples for mask in sample.masks} == LABELS.get(state, {None})
    assert name_now(location_of(dataset)).number is not None
    assert findings(dataset) == []
    assert digests(dataset) == before


def test_the_photographers_are_credited(unpacked: Path) -> None:
    notice = (ROOT / "NOTICE").read_text("utf-8")
    for sample in open_dataset(str(unpacked / "finished")):
        assert sample.row["attribution"] in notice


def test_a_redaction_and_a_takedown_write_the_same_bytes(folder: Path, same_bits: bool) -> None:
    correct(folder, "finished")
    corrected = data_files(folder / "corrected", same_bits=same_bits)
    assert data_files(folder / "finished", same_bits=same_bits) == corrected
    assert findings(folder / "finished") == []


@pytest.mark.parametrize(
    "state",
    [
        "corrected",
        "merged",
        *(pytest.param(state, marks=LONG) for state in STATES if state not in ("finished", "corrected", "merged")),
    ],
)
def test_each_is_corrected(folder: Path, state: str) -> None:
    before = digests(folder / state)
    correct(folder, state)
    assert findings(folder / state) == []
    assert ids(folder / state) == [image for image in images_of(state) if image != 4]
    if state == "corrected":
        assert digests(folder / state) == before
    if state in LABELS:
        found = {mask.label for sample in open_dataset(str(folder / state)) for mask in sample.masks}
        assert found == LABELS[state]


def test_labels_have_the_same_bytes_and_can_be_removed(folder: Path, same_bits: bool) -> None:
    finished, labeled = folder / "finished", folder / "labeled"
    before = data_files(finished, same_bits=same_bits)
    label(location_of(finished), size_labels(), now=NOW)
    assert data_files(finished, same_bits=same_bits) == data_files(labeled, same_bits=same_bits)
    label(location_of(labeled), None)
    after = data_files(labeled, same_bits=same_bits)
    kept = {path: digest for path, digest in before.items() if not path.startswith("commits/")}
    assert {path: digest for path, digest in after.items() if not path.startswith("commits/")} == kept
    assert {mask.label for sample in open_dataset(str(labeled)) for mask in sample.masks} == {None}


@pytest.mark.parametrize(
    "state", ["merged", *(pytest.param(state, marks=LONG) for state in ("half-built", "corrected"))]
)
def test_each_is_labeled(folder: Path, state: str) -> None:
    """People's labels stay."""
    label(location_of(folder / state), size_labels())
    found = {mask.label for sample in open_dataset(str(folder / state)) for mask in sample.masks}
    assert found == {"large", "small"} | (LABELS.get(state, set()) - {None})
    assert findings(folder / state) == []


def test_submissions_are_merged_to_the_same_bytes(folder: Path, same_bits: bool) -> None:
    done = merge_submissions(location_of(folder / "annotated"))
    assert (done.listed.images, done.listed.skipped_images) == (2, {"returned to the annotator": 1})
    merged = data_files(folder / "merged", same_bits=same_bits)
    assert data_files(folder / "annotated", same_bits=same_bits) == merged
    assert merge_submissions(location_of(folder / "merged")).changed_shards == ()


def grow(folder: Path, state: str) -> Path:
    """Add a photograph to a dataset's catalog, and to that of `corrected` the taken-down one under other names."""
    add_rows(folder, row_of("eyes"))
    if state == "corrected":
        shutil.copy(folder / "sources" / "camera.jpg", folder / "sources" / "again.jpg")
        add_rows(folder, row_of("again"))
    config = config_of(folder, state)
    assert open_or_create(load_config(str(config)), Storage(), grow=True).manifest.shards == 3
    return config


def test_a_half_built_one_grows_and_is_finished_to_the_same_bytes(folder: Path, same_bits: bool) -> None:
    config, dataset = grow(folder, "half-built"), folder / "half-built"
    if not same_bits:
        with pytest.raises(MixedNumericsError, match="bit for bit"):
            build_dataset(config)
        return
    build_dataset(config)
    finished, after = digests(folder / "finished"), digests(dataset)
    del finished["shards.json"]
    assert {path: after.get(path) for path in finished} == finished
    assert {re.sub(r"-[0-9a-f]{12}\b", "", path) for path in after.keys() - finished.keys()} == {
        "dataset.g2.json",
        "catalog/part-1.parquet",
        "shards.json",
        "shards/sa_000002.tar",
        *(f"{kind}/sa_000002.parquet" for kind in ("images", "masks", "rejects")),
        "commits/000002.g1.json",
    }
    assert ids(dataset) == [1, 2, 4, 5, 7]
    assert findings(dataset) == []


@pytest.mark.parametrize(
    "state",
    ["corrected", *(pytest.param(state, marks=LONG) for state in ("finished", "labeled", "annotated", "merged"))],
)
def test_each_grows_and_keeps_its_bytes(folder: Path, same_bits: bool, state: str) -> None:
    dataset = folder / state
    before = digests(dataset)
    config = grow(folder, state)
    if not same_bits:
        with pytest.raises(MixedNumericsError, match="bit for bit"):
            build_dataset(config)
        return
    build_dataset(config)
    after = digests(dataset)
    del before["shards.json"]
    assert {path: after.get(path) for path in before} == before
    # The photograph that was taken down doesn't come back.
    assert ids(dataset) == [*images_of(state), 7]
    assert findings(dataset) == []
    (last,) = [commit for commit in CommitLog(location_of(dataset)).read_all() if commit.shard == 2]
    assert last.counts.get("rejected:taken_down", 0) == (state == "corrected")


def test_the_format_before_is_read_and_corrected_but_not_built(tmp_path: Path) -> None:
    folder = unpack(tmp_path, "version-3")
    for state in STATES:
        samples = list(open_dataset(str(folder / state)))
        assert [sample.id for sample in samples] == images_of(state)
        added = {sample.row[name] for sample in samples for name in ADDED_COLUMNS}
        assert added == {None}
        opened = open_dataset(str(folder / state))
        assert {opened[0].row[name] for name in ADDED_COLUMNS} == {None}
        assert findings(folder / state) == []
        with open_tables(location_of(folder / state)) as tables:
            assert tables.query("SELECT redacted_share, left_alone FROM images").column(0).null_count == len(samples)
            assert tables.query_shard(0, "images", "SELECT redacted_share FROM images").num_rows == 2
    correct(folder, "finished")
    kept = {
        re.sub(r"-[0-9a-f]{12}\b", "", path): columns_of(pq.read_schema(folder / "finished" / path))
        for path in digests(folder / "finished")
        if path.startswith("images/")
    }
    assert kept
    frozen = json.loads(frozen_path(3).read_text("utf-8"))["columns"]["images"]
    assert all(columns == frozen for columns in kept.values())
    with pytest.raises(UsageError, match=r"schema_version 3, which segmint .* reads and corrects, but doesn't build"):
        build_dataset(config_of(folder, "half-built"))
