"""`segmint catalog curate`: a catalog with planted copies, opt-outs and unfit pictures ends as planted."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.exceptions
from PIL import Image, ImageFilter

from segmint.catalogs.findings import Reason
from segmint.catalogs.source.files import NormalizedRows
from segmint.catalogs.source.normalize import normalize
from segmint.catalogs.source.sampling import WholeCatalog
from segmint.infra import stopping
from segmint.infra.errors import UnfinishedError, UsageError
from segmint.infra.ray_session import Cluster
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.operators.curate import CurateTask, InspectionConfig, part_name
from segmint.operators.prepare.ingest import IngestConfig
from segmint.pipeline.building import curate
from segmint.pipeline.building.curate import run_curate, write_curated
from segmint.pipeline.building.decide import CurationDecision, ImageFeatures, read_features
from segmint.pipeline.config.config import Config, ResourcesConfig, load_config
from segmint.pipeline.quality.audit.integrity import audit_integrity
from tests.support.builds import write_catalog, write_config
from tests.support.locations import location_of
from tests.support.signed_images import data_mining
from tests.support.small_dataset import build_dataset

LIMITS = {"fitness": {"min_sharpness": 20, "min_entropy": 2}}


def plant(folder: Path, photos: Path) -> Path:
    """A catalog of copies, opt-outs, unfit and unreadable pictures; `expect` says what is to come of each row."""
    folder.mkdir()
    dog, truck = (Image.open(photos / name).convert("RGB") for name in ("dog.jpg", "truck.jpg"))
    dog.resize((dog.width // 2, dog.height // 2)).save(folder / "half.jpg", quality=60)
    shutil.copy(photos / "dog.jpg", folder / "dog.jpg")
    shutil.copy(photos / "dog.jpg", folder / "bytes.jpg")
    truck.save(folder / "truck.jpg", quality=90)
    truck.resize((truck.width * 5 // 4, truck.height * 5 // 4)).save(folder / "large.jpg", quality=80)
    dog.resize((640, 480)).filter(ImageFilter.GaussianBlur(20)).save(folder / "blurred.jpg")
    Image.new("RGB", (640, 480), (120, 120, 120)).save(folder / "gray.png")
    groceries = Image.open(photos / "groceries.jpg").convert("RGB")
    groceries.save(folder / "reserved.jpg", xmp=data_mining("DMI-PROHIBITED-AIMLTRAINING"))
    groceries.resize((900, 1200)).save(folder / "bare.jpg", quality=70)
    shutil.copy(photos / "solvay_1927.jpg", folder / "solvay.jpg")
    (folder / "junk.jpg").write_bytes(b"no picture")
    credits = {"license": "CC-BY-4.0", "attribution": "Bo"}
    rows: list[dict[str, Any]] = [
        {"uri": "half.jpg", "expect": "duplicate_image"},
        {"uri": "dog.jpg", "attribution": "Ann", "shoot": {"day": 3}},
        {"uri": "bytes.jpg", **credits, "expect": "duplicate_image"},
        {"uri": "truck.jpg", "image_id": "truck"},
        {"uri": "blurred.jpg", "expect": "unfit"},
        {"uri": "gray.png", "expect": "unfit"},
        {"uri": "junk.jpg"},
        {"uri": "nowhere.jpg"},
        {"uri": "dog.jpg", "refused_reason": "unfit", "refused_detail": "by hand", "expect": "unfit"},
        {"uri": "half.jpg", "image_id": "truck"},
        {"uri": "large.jpg", "license": "MIT", "expect": "duplicate_image"},
        {"uri": "reserved.jpg", "expect": "opted_out"},
        {"uri": "bare.jpg", "expect": "opted_out"},
        {"uri": "solvay.jpg", "opt_out": True, "expect": "opted_out"},
    ]
    return write_catalog(folder / "catalog.jsonl", [{"license": "CC0-1.0", **row} for row in rows])


def configured(folder: Path, **curate: Any) -> Config:
    path = folder / "build.yaml"
    return load_config(
        str(write_config(path, folder / "curated.parquet", folder / "dataset", curate=curate, images_per_shard=20))
    )


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("curate", "decide"):
        monkeypatch.setattr(f"segmint.pipeline.building.{name}.PART_ROWS", 7)


def test_a_planted_catalog_ends_as_planted(
    tmp_path: Path, photos: Path, local_ray: Cluster, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "photos"
    catalog, output = plant(folder, photos), folder / "curated.parquet"
    config = configured(folder, **LIMITS)
    figure = tmp_path / "measures.png"
    drawn = run_curate(config, str(catalog), str(output), distributions=str(figure))
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert (drawn.rows, drawn.unread) == (14, {"not_an_image": 1, "not_found": 1})
    assert not output.exists()

    parts = sorted(folder.glob("curated.parquet.curate/*/*.parquet"))
    assert [part.name for part in parts] == ["000000000000.parquet", "000000000007.parquet"]
    shutil.copytree(parts[0].parent, tmp_path / "parts")
    monkeypatch.setattr("segmint.pipeline.building.curate.ray_session", None)  # no image is read again
    found = run_curate(config, str(catalog), str(output))
    whole = output.read_bytes()
    assert found.refused == {"duplicate_image": 3, "opted_out": 3, "unfit": 2}
    assert not (folder / "curated.parquet.curate").exists()

    rows = pq.read_table(output).to_pylist()
    columns = "uri license image_id attribution opt_out refused_reason refused_detail expect shoot"
    assert list(rows[0]) == columns.split()
    assert [row["refused_reason"] for row in rows] == [row["expect"] for row in rows]
    assert [row["uri"] for row in rows[:4]] == ["half.jpg", "dog.jpg", "bytes.jpg", "truck.jpg"]
    assert rows[0]["refused_detail"] == "it looks like row 2, which is kept"
    assert rows[2]["refused_detail"] == "it has the bytes of row 2, which is kept"
    assert rows[4]["refused_detail"].startswith("sharpness ")
    assert rows[10]["refused_detail"] == "it looks like row 4, which is kept", "its license is not allowed"
    forbidden = "the image's metadata forbids training with it: plus:DataMining is DMI-PROHIBITED-AIMLTRAINING"
    assert rows[11]["refused_detail"] == forbidden
    assert rows[12]["refused_detail"] == "it looks like row 12, which is opted out"
    assert rows[13]["refused_detail"] == "the catalog says that the rights holder has opted this image out"
    assert rows[8]["refused_detail"] == "by hand"
    assert rows[1]["attribution"] == "Ann; Bo"
    assert rows[1]["shoot"] == '{"day": 3}'

    assert not run_curate(config, str(catalog), str(output)).written
    with pytest.raises(UsageError, match=r"curated\.parquet already exists, and this catalog"):
        run_curate(configured(folder, duplicates={"enabled": False}), str(catalog), str(output))
    text = catalog.read_text()
    catalog.write_text(text.replace('"day": 3', '"day": 4'))
    with pytest.raises(UsageError, match=r"curated\.parquet already exists, and this catalog"):
        run_curate(config, str(catalog), str(output))
    output.unlink()
    shutil.copytree(tmp_path / "parts", parts[0].parent)
    assert run_curate(config, str(catalog), str(output)).written, "a column that is only copied is in no feature"
    assert pq.read_table(output)["shoot"][1].as_py() == '{"day": 4}'
    catalog.write_text(text)
    output.unlink()
    shutil.copytree(tmp_path / "parts", parts[0].parent)
    run_curate(config, str(catalog), str(output))
    assert output.read_bytes() == whole

    # Another run for this output ends, and removes the parts, before they are read.
    output.unlink()
    shutil.copytree(tmp_path / "parts", parts[0].parent)

    def beaten(parts_folder: Location, *arguments: Any) -> ImageFeatures:
        with monkeypatch.context() as other:
            other.setattr("segmint.pipeline.building.curate.read_features", read_features)
            run_curate(config, str(catalog), str(output))
        return read_features(parts_folder, *arguments)

    monkeypatch.setattr("segmint.pipeline.building.curate.read_features", beaten)
    assert not run_curate(config, str(catalog), str(output)).written
    assert output.read_bytes() == whole
    output.unlink()
    shutil.copytree(tmp_path / "parts", parts[0].parent)
    with pytest.raises(UnfinishedError, match=r"curated\.parquet\.curate was removed by another run, which"):
        run_curate(config, str(catalog), str(output), distributions=str(figure))
    assert output.read_bytes() == whole

    output.unlink()
    shutil.copytree(tmp_path / "parts", parts[0].parent)

    def meanwhile(*arguments: Any) -> ImageFeatures:
        catalog.write_text(catalog.read_text().replace("Ann", "Eve"))
        return read_features(*arguments)

    monkeypatch.setattr("segmint.pipeline.building.curate.read_features", meanwhile)
    with pytest.raises(UsageError, match=r"catalog\.jsonl was changed while its images were inspected"):
        run_curate(config, str(catalog), str(output))
    assert not output.exists()


def test_a_build_commits_what_the_catalog_refuses(tmp_path: Path) -> None:
    refused = {"license": "CC0-1.0", "refused_reason": "duplicate_image", "refused_detail": "it looks like row 9"}
    catalog = write_catalog(tmp_path / "c.jsonl", [{"uri": f"{name}.jpg", **refused} for name in "ab"])
    dataset = Path(build_dataset(write_config(tmp_path / "b.yaml", catalog, tmp_path / "dataset")))
    (rejects,) = dataset.glob("rejects/*.parquet")
    rows = pq.read_table(rejects).to_pylist()
    assert {(row["stage"], row["reason"], row["detail"]) for row in rows} == {
        ("curate", "duplicate_image", "it looks like row 9")
    }
    assert audit_integrity(location_of(dataset)).findings.counts == {}


def test_what_does_not_fit_is_said_before_anything_is_read(tmp_path: Path) -> None:
    catalog = write_catalog(tmp_path / "c.jsonl", [{"uri": "a.jpg", "license": "CC0-1.0"}])
    config = configured(tmp_path)
    for output, said in (
        ("c2.csv", "expected a name that ends in .parquet"),
        (
            "other/c2.parquet",
            r"row 1, column uri: found 'a.jpg', which would be another file in .*; write ",
        ),
    ):
        with pytest.raises(UsageError, match=said):
            run_curate(config, str(catalog), str(tmp_path / output))
    (tmp_path / "rows").mkdir()
    pq.write_table(pa.table({"uri": ["a.jpg"], "license": ["CC0-1.0"]}), tmp_path / "rows" / "a.parquet")
    for output, said in (("rows/c2.parquet", "would become a part of the catalog"), ("c2.parquet", "found 'a.jpg'")):
        with pytest.raises(UsageError, match=said):
            run_curate(config, f"{tmp_path}/rows/", str(tmp_path / output))
    with pytest.raises(UsageError, match=r"nowhere.jsonl' does not exist: expected Parquet"):
        run_curate(config, str(tmp_path / "nowhere.jsonl"), str(tmp_path / "c2.parquet"))
    scorer = {"name": "text", "file": str(catalog), "sha256": "0" * 64, "max": 1}
    with pytest.raises(UsageError, match=r"curate\.scorers, text: .* has SHA-256 .*: expected 0000"):
        run_curate(configured(tmp_path, scorers=[scorer]), str(catalog), str(tmp_path / "c2.parquet"))


def test_prompts_pass_through_and_an_unrelated_column_is_refused(tmp_path: Path) -> None:
    prompts = {"width": 64, "height": 48, "prompts": [{"box": [1, 2, 3, 4], "label": "cat"}]}
    rows = [{"uri": "a.jpg", "license": "MIT", "prompts": prompts}, {"uri": "b.jpg", "license": "MIT"}]
    catalog = WholeCatalog(location_of(write_catalog(tmp_path / "c.jsonl", rows)))
    write_curated(catalog, tmp_path / "o.parquet", CurationDecision({1: (Reason.UNFIT, "dark")}, {}), "digest")
    first, second = pq.read_table(tmp_path / "o.parquet").to_pylist()
    (found,) = first["prompts"]["prompts"]
    assert (found["box"], found["label"], first["refused_reason"]) == ([1, 2, 3, 4], "cat", None)
    assert (second["prompts"], second["refused_reason"]) == (None, "unfit")

    rows[1]["prompts"] = "a cat on a mat"
    other = write_catalog(tmp_path / "d.jsonl", rows)
    with pytest.raises(UsageError, match=r"row 2, column prompts: .*; expected JSON of an object with width, height"):
        run_curate(configured(tmp_path), str(other), str(tmp_path / "p.parquet"))
    assert not (tmp_path / "p.parquet").exists()


def test_columns_that_would_fill_the_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segmint.pipeline.building.curate.MOST_WAITING", 1000)
    catalog = write_catalog(tmp_path / "c.jsonl", [{"uri": "a.jpg", "license": "MIT", "pixels": "x" * 999}])
    with pytest.raises(UsageError, match=r"c\.jsonl: 65,536 rows up to row 1 .*: remove large columns"):
        write_curated(WholeCatalog(location_of(catalog)), tmp_path / "o.parquet", CurationDecision({}, {}), "digest")


@pytest.mark.long
def test_a_part_that_a_round_did_not_try_keeps_its_second_try(
    tmp_path: Path, local_ray: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (4000, 3000)).save(tmp_path / "large.png")
    catalog = write_catalog(tmp_path / "c.jsonl", [{"uri": "large.png", "license": "MIT"}])
    rows = location_of(normalize(location_of(catalog), tmp_path / "c.parquet").path)
    parts = location_of(tmp_path / "parts")
    config = InspectionConfig(IngestConfig(), mirror=False, opt_outs=False, scorers=())
    task = CurateTask(config, Storage(), str(catalog), parts, memory_limit=16 << 20)
    original, rounds = curate.inspect_window, []

    def failing_once(task: CurateTask, *arguments: Any) -> None:
        rounds.append(task.again)
        if len(rounds) == 1:
            raise ray.exceptions.RayError("a node is lost")
        original(task, *arguments)

    monkeypatch.setattr(curate, "inspect_window", failing_once)
    looked = curate.inspect_images(task, rows, 1, ResourcesConfig(), retry_wait_s=0)
    assert rounds == [frozenset(), frozenset(), frozenset({0})]
    assert (looked.parts, looked.suspects) == (1, {0})
    assert [entry.name for entry in parts.list()] == [part_name(0, suspect=True)]


class CountedRows(NormalizedRows):
    """Rows of a catalog, with the number of those that were kept after reading."""

    kept = 0

    def read(self, start: int, stop: int) -> pa.Table:
        return self._count(super().read(start, stop))

    def take(self, *arguments: Any) -> pa.Table:
        return self._count(super().take(*arguments))

    def _count(self, rows: pa.Table) -> pa.Table:
        self.kept += rows.num_rows
        return rows


def test_parts_that_are_far_apart_are_read_without_the_rows_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that resumes may miss the first and the last part of a hundred million rows."""
    monkeypatch.setattr(curate, "PART_ROWS", 4)
    rows = [{"uri": f"{ordinal}.png", "license": "MIT"} for ordinal in range(302)]
    catalog = normalize(location_of(write_catalog(tmp_path / "c.jsonl", rows)), tmp_path / "c.parquet")
    with CountedRows(location_of(catalog.path)) as source:
        tables = [table["ordinal"].to_pylist() for table in curate.part_tables(source, [0, 100, 104, 300])]
        assert tables == [[0, 1, 2, 3], [100, 101, 102, 103], [104, 105, 106, 107], [300, 301]]
        assert source.kept == 14


def test_an_interrupt_that_comes_out_as_an_error_of_ray_ends_the_run(
    tmp_path: Path, local_ray: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"uri": "absent.png", "license": "MIT"}]
    catalog = normalize(location_of(write_catalog(tmp_path / "c.jsonl", rows)), tmp_path / "c.parquet")
    config = InspectionConfig(IngestConfig(), mirror=False, opt_outs=False, scorers=())
    task = CurateTask(config, Storage(), str(tmp_path / "c.jsonl"), location_of(tmp_path / "parts"))

    def interrupted(*_: Any) -> None:
        monkeypatch.setattr(stopping.State, "requested", True)
        raise ray.exceptions.RayError("the driver was interrupted")

    monkeypatch.setattr(stopping.State, "raised", False)
    monkeypatch.setattr(curate, "inspect_window", interrupted)
    with pytest.raises(KeyboardInterrupt):
        curate.inspect_images(task, location_of(catalog.path), 1, ResourcesConfig(), retry_wait_s=0)
