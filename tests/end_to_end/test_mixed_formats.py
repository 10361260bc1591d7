"""A dataset of format 1 whose manifest has risen to format 2: shards that are changed get the newer columns, the others
keep their bytes, and every command takes both."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.catalogs.dataset.tombstones import Asked
from segmint.catalogs.findings import Code
from segmint.catalogs.layout import DamagedDatasetError
from segmint.infra.storage.storage import Storage
from segmint.pipeline.building.dataset.dataset import open_or_create
from segmint.pipeline.config.config import Config, load_config
from segmint.pipeline.corrections.redact import redact
from segmint.pipeline.corrections.repair import repair
from segmint.pipeline.corrections.takedown import takedown
from segmint.pipeline.export.export import ExportOptions, export_dataset
from segmint.pipeline.export.formats import Format
from segmint.pipeline.quality.audit.audit import AuditOptions, audit_dataset
from segmint.pipeline.quality.statistics.open_tables import open_tables
from segmint.pipeline.quality.versions.diff import diff_datasets
from tests.support.builds import digests
from tests.support.formats import format_of, raise_format, unpack_format_1
from tests.support.locations import location_of

TABLES = ("images", "masks")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    folder = unpack_format_1(tmp_path)
    raise_format(folder / "finished")
    return folder


def formats(dataset: Path) -> dict[int, int]:
    """The format of each shard's tables."""
    found = {}
    for commit in CommitLog(location_of(dataset)).read_all():
        (found[commit.shard],) = {format_of(dataset / commit.file(kind).path) for kind in TABLES}
    return found


def lines(dataset: Path) -> list[str]:
    return [finding.line() for finding in audit_dataset(location_of(dataset), AuditOptions()).findings]


def redacted(old: Path) -> Path:
    """The dataset with its first shard changed."""
    redact(location_of(old / "finished"), location_of(old / "sources" / "regions.jsonl"))
    return old / "finished"


def test_rising_alone_changes_no_shard(old: Path) -> None:
    assert formats(old / "finished") == {0: 1, 1: 1, 2: 1}
    assert lines(old / "finished") == []


def test_a_changed_shard_has_the_newer_columns_and_the_others_keep_their_bytes(old: Path) -> None:
    before = digests(old / "finished")
    dataset = redacted(old)
    assert formats(dataset) == {0: 2, 1: 1, 2: 1}
    after = digests(dataset)
    assert {name for name, digest in before.items() if after.get(name) != digest} == {
        name for name in before if ("/sa_000000-" in name and not name.startswith("rejects/")) or "000000.g1" in name
    } | {"shards.json"}
    assert lines(dataset) == []
    takedown(location_of(dataset), Asked(ids=("drawn-4",)), "asked by its owner")
    assert formats(dataset) == {0: 2, 1: 2, 2: 1}
    assert lines(dataset) == []
    # The tar is that of a dataset of format 1 after the same corrections.
    for folder in ("shards", "rejects"):
        assert {p.name for p in (dataset / folder).iterdir()} == {
            p.name for p in (old / "corrected" / folder).iterdir()
        }
    (masks,) = (dataset / "masks").glob("sa_000000-*")
    assert set(pq.read_table(masks).column("source").to_pylist()) == {None}, "format 1 did not say it"


@pytest.mark.parametrize("first", [0, 1])
def test_readers_take_both(old: Path, tmp_path: Path, first: int) -> None:
    """Whichever of the two formats DuckDB meets first."""
    dataset = old / "finished"
    if first == 0:
        redacted(old)
    else:
        takedown(location_of(dataset), Asked(ids=("drawn-4",)), "asked by its owner")
    assert formats(dataset)[first] == 2
    images = 5 if first == 0 else 4
    samples = list(open_dataset(str(dataset)))
    assert [sample.row["next_mask"] for sample in samples] == [None] * images
    with open_tables(location_of(dataset)) as tables:
        (row,) = tables.query(
            "SELECT count(*) AS images, sum(funnel.written)::BIGINT AS written, sum(funnel.holes_filled) AS holes, "
            "count(next_mask) AS numbered FROM images"
        ).to_pylist()
        masks = tables.query("SELECT source, prompts, origin FROM masks").to_pylist()
        for shard in tables.query("SELECT DISTINCT shard FROM images").column("shard").to_pylist():
            alone = tables.query_shard(shard, "masks", "FROM masks ORDER BY annotation_id")
            assert alone.equals(tables.query("FROM masks WHERE shard = ? ORDER BY annotation_id", [shard]))
    assert row == {"images": images, "written": len(masks), "holes": None, "numbered": 0}
    assert masks == [{"source": None, "prompts": None, "origin": None}] * len(masks)
    export_dataset(location_of(dataset), ExportOptions(Format.COCO, with_images=False), location_of(tmp_path / "out"))
    exported = json.loads((tmp_path / "out" / "instances.json").read_text())
    assert len(exported["annotations"]) == len(masks)
    compared = diff_datasets(location_of(old / "finished"), location_of(old / "corrected"))
    assert compared.changed["masks"].count == 0


def test_a_table_that_cannot_be_read_is_named(old: Path) -> None:
    dataset = redacted(old)
    (path,) = (dataset / "masks").glob("sa_000002-*")
    path.write_bytes(b"no Parquet")
    with pytest.raises(DamagedDatasetError, match="sa_000002"), open_tables(location_of(dataset)):
        pass


def test_damaged_tables_of_both_formats_come_back(old: Path) -> None:
    dataset = redacted(old)
    before = digests(dataset)
    for shard in (0, 1):
        (path,) = (dataset / "masks").glob(f"sa_00000{shard}-*")
        path.write_bytes(path.read_bytes()[:-20])
    done = repair(location_of(dataset))
    assert (len(done.repaired), done.left) == (2, {})
    assert digests(dataset) == before


def test_a_lost_commit_is_made_again_in_its_format(old: Path) -> None:
    dataset = redacted(old)
    before = digests(dataset)
    for name in ("000000.g2.json", "000001.g1.json"):
        (dataset / "commits" / name).write_bytes(b"{}")
    assert repair(location_of(dataset)).left == {}
    assert digests(dataset) == before


def test_a_build_goes_on_in_the_manifest_s_format(old: Path) -> None:
    dataset = old / "half-built"
    raise_format(dataset)
    path = old / "half-built.yaml"
    text = (old / "sources" / "build.yaml").read_text()
    text = text.replace("catalog.jsonl", str(old / "sources" / "catalog.jsonl"))
    path.write_text(text.replace("output: dataset", f"output: {dataset}"))
    config = load_config(str(path))
    assert isinstance(config, Config)
    opened = open_or_create(config, Storage())
    assert opened.shard_task(config, opened.span(1)).schema_version == 2
    (dataset / "dataset.g2.json").unlink()
    opened = open_or_create(config, Storage())
    assert opened.shard_task(config, opened.span(1)).schema_version == 1


def test_tables_of_a_format_that_no_manifest_names_are_a_finding(old: Path) -> None:
    dataset = redacted(old)
    (dataset / "dataset.g2.json").unlink()
    report = audit_dataset(location_of(dataset), AuditOptions())
    bad = {
        finding.file.partition("-")[0]: finding.found for finding in report.findings if finding.code is Code.BAD_TABLE
    }
    assert bad == {"images/sa_000000": "format 2", "masks/sa_000000": "format 2"}
