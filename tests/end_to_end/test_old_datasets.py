"""Datasets of format 1, as segmint 0.1.0 wrote them: later versions read, build, correct, repair and grow them.

`version-1.tar.xz` holds drawn pictures with their catalog (`sources`), the whole dataset (`finished`), one without
shard 1 (`half-built`), and one after `segmint redact` and `segmint takedown` (`corrected`). Never make it again.
"""

import json
import tarfile
from pathlib import Path

import pytest

from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.catalogs.dataset.tombstones import Asked
from segmint.infra.device import Compute
from segmint.infra.errors import UsageError
from segmint.infra.storage.storage import Storage
from segmint.operators.segment.numerics import Numerics, observe_numerics
from segmint.pipeline.building.dataset.dataset import open_or_create
from segmint.pipeline.config.config import Config, load_config
from segmint.pipeline.corrections.redact import redact
from segmint.pipeline.corrections.repair import repair
from segmint.pipeline.corrections.takedown import takedown
from segmint.pipeline.quality.audit.audit import AuditOptions, audit_dataset
from tests.support.builds import digests
from tests.support.locations import location_of
from tests.support.minted import mint

ARCHIVE = Path(__file__).with_name("version-1.tar.xz")
IMAGES = {"finished": 5, "half-built": 2, "corrected": 4}
WRITTEN_BY_SHARD = ("shards/", "images/", "masks/", "rejects/", "commits/")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "version-1"


def config_of(old: Path, dataset: str) -> Path:
    path = old / f"{dataset}.yaml"
    text = (old / "sources" / "build.yaml").read_text()
    text = text.replace("catalog.jsonl", str(old / "sources" / "catalog.jsonl"))
    path.write_text(text.replace("output: dataset", f"output: {old / dataset}"))
    return path


def by_shard(dataset: Path) -> dict[str, str]:
    """SHA-256 of the files that shards consist of."""
    return {name: digest for name, digest in digests(dataset).items() if name.startswith(WRITTEN_BY_SHARD)}


def numerics_of_this_machine(begun: Numerics) -> bool:
    """Whether this machine computes the dataset's bits; where it does not, a build must refuse."""
    here = observe_numerics(
        Compute("cpu", "fp32", 1), begun.points_per_chunk, begun.crops_per_batch, begun.weights_sha256
    )
    return not begun.differences(here)


def begun_numerics(old: Path, dataset: str) -> Numerics:
    return Numerics.recorded(load_manifest(location_of(old / dataset)).numerics)


@pytest.mark.parametrize("state", IMAGES)
def test_each_is_read_and_audited_without_a_finding(old: Path, state: str) -> None:
    before = digests(old / state)
    assert len(open_dataset(str(old / state))) == IMAGES[state]
    report = audit_dataset(location_of(old / state), AuditOptions())
    assert [finding.line() for finding in report.findings] == []
    assert report.checked.images == IMAGES[state]
    assert digests(old / state) == before


def test_a_half_built_one_is_finished_to_the_same_bytes(old: Path) -> None:
    config = config_of(old, "half-built")
    if not numerics_of_this_machine(begun_numerics(old, "half-built")):
        with pytest.raises(UsageError, match="numerics"):
            mint(config)
        return
    mint(config)
    assert by_shard(old / "half-built") == by_shard(old / "finished")
    manifest = (old / "half-built" / "dataset.json").read_bytes()
    assert manifest == (old / "finished" / "dataset.json").read_bytes()


def test_corrections_write_the_same_bytes(old: Path) -> None:
    finished = location_of(old / "finished")
    redact(finished, location_of(old / "sources" / "regions.jsonl"))
    takedown(finished, Asked(ids=("drawn-4",)), "asked by its owner")
    assert by_shard(old / "finished") == by_shard(old / "corrected")
    for name in ("dataset.json", "dataset.g2.json"):
        assert (old / "finished" / name).read_bytes() == (old / "corrected" / name).read_bytes()


@pytest.mark.parametrize(("state", "kinds"), [("finished", ["masks", "rejects"]), ("corrected", ["masks"])])
def test_damaged_files_are_repaired_to_the_same_bytes(old: Path, state: str, kinds: list[str]) -> None:
    dataset = old / state
    before = by_shard(dataset)
    for kind in kinds:
        path = sorted((dataset / kind).iterdir())[1]
        path.write_bytes(path.read_bytes()[:-20])
    done = repair(location_of(dataset))
    assert (len(done.repaired), done.left) == (len(kinds), {})
    assert by_shard(dataset) == before


def test_a_corrected_one_grows(old: Path) -> None:
    dataset = old / "corrected"
    before = by_shard(dataset)
    path = config_of(old, "corrected")
    catalog = old / "sources" / "catalog.jsonl"
    row = {"uri": "nowhere-either.png", "license": "CC0-1.0", "image_id": "new"}
    catalog.write_text(catalog.read_text() + json.dumps(row) + "\n")
    config = load_config(str(path))
    assert isinstance(config, Config)
    grown = open_or_create(config, Storage(), grow=True)
    assert (grown.manifest.schema_version, grown.manifest.shards, grown.rows) == (1, 4, 8)
    if numerics_of_this_machine(grown.numerics):
        mint(path)
        after = by_shard(dataset)
        assert {name: after[name] for name in before} == before
        assert {name.partition("-")[0].partition(".")[0] for name in after.keys() - before} == {
            *(f"{kind}/sa_000003" for kind in ("shards", "images", "masks", "rejects")),
            "commits/000003",
        }
