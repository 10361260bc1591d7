"""Requests of `segmint build PHOTOGRAPHS`: what a newcomer gets wrong, and what each mistake is answered."""

import os
from pathlib import Path

import pytest

from segmint.infra.errors import UsageError
from segmint.pipeline.building.request import BuildRequest, names_configuration, parse_request
from tests.support.builds import segmint_and_modules

CC0 = "CC0-1.0"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with photographs in `photos`."""
    folder = tmp_path / "here"
    for name in ("photos/a.jpg", "photos/deep/b.png", "other/c.jpg", "catalog.parquet", "old/dataset.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for name in ("empty", "../outside"):
        (folder / name).mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    ("photographs", "output", "license", "allow", "answer"),
    [
        ("photos", None, CC0, [], "-o is missing: name the dataset's folder, as in `segmint build photos -o dataset"),
        ("photos", "dataset", None, [], "assert it: --license CC0-1.0. If sidecar files such as photo.jpg.license"),
        ("photos", "dataset", "CC0", [], "'CC0' is not a license identifier (did you mean CC0-1.0?)"),
        ("photos", "dataset", None, ["CC BY 4"], "(did you mean CC-BY-4.0?)"),
        ("photos", "photos/dataset", CC0, [], "are inside one another"),
        ("photos/deep", "photos", CC0, [], "are inside one another"),
        ("photos", "photos/", CC0, [], "are inside one another"),
        ("photos", "../here", CC0, [], "are inside one another"),
        ("photos", "x/..", CC0, [], "expected a folder or prefix for the dataset, such as"),
        ("photos", "build.yaml", CC0, [], "expected a folder or prefix for the dataset"),
        ("s3://bucket/photos", "s3://bucket", CC0, [], "expected a folder or prefix for the dataset, such as"),
        ("s3://bucket/photos", "s3://bucket/photos/masks", CC0, [], "are inside one another"),
        ("photos", "s3://bucket/dataset", CC0, [], "such as -o {here}/dataset, or copy them"),
        ("photos", "../outside/dataset", CC0, [], "such as -o {here}/dataset"),
        ("photos/a.jpg", "dataset", CC0, [], "photos/a.jpg isn't a folder: expected a folder of photographs"),
        ("phtos", "dataset", CC0, [], "phtos doesn't exist: expected a folder of photographs, or a configuration"),
        ("empty", "dataset", CC0, [], "there are no files below {here}/empty"),
        ("catalog.parquet", "dataset", CC0, [], "`segmint init --catalog catalog.parquet`"),
        ("https://example.com/photos", "dataset", CC0, [], "builds don't download photographs. Copy them"),
        ("photos", "old", CC0, [], "already contains a dataset, but {here}/old-build.yaml doesn't exist"),
    ],
)
def test_a_wrong_request_is_answered_with_what_to_do(
    here: Path, photographs: str, output: str | None, license: str | None, allow: list[str], answer: str
) -> None:
    before = sorted(here.rglob("*"))
    with pytest.raises(UsageError) as caught:
        parse_request(photographs, output, license, allow, [])
    assert answer.format(here=here) in str(caught.value)
    assert sorted(here.rglob("*")) == before


def test_only_the_named_licenses_are_allowed(here: Path) -> None:
    request = parse_request("photos/", "dataset/", "cc0-1.0", ["CC-BY-4.0", "CC0-1.0"], [])
    assert request == BuildRequest(f"{here}/photos", f"{here}/dataset", "CC0-1.0", ("CC-BY-4.0", "CC0-1.0"))
    assert (request.config_file, request.catalogs) == (f"{here}/dataset-build.yaml", f"{here}/dataset-catalog")
    assert request.head == f"# segmint build {here}/photos -o {here}/dataset --allow CC-BY-4.0 --license CC0-1.0"
    assert parse_request("photos", "dataset", None, ["CC-BY-4.0"], []).allow == ("CC-BY-4.0",)


def test_another_command_for_the_same_dataset_is_refused(here: Path) -> None:
    first = parse_request("photos", "dataset", CC0, [], [])
    Path(first.config_file).write_text(f"{first.head}\nname: dataset\n")
    assert parse_request("photos", "dataset", CC0, [], []) == first
    for photographs, license, allow in (("other", CC0, []), ("photos", "CC-BY-4.0", []), ("photos", CC0, ["MIT"])):
        with pytest.raises(UsageError, match="was written by another command: segmint build ") as caught:
            parse_request(photographs, "dataset", license, allow, [])
        assert first.head.removeprefix("# ") in str(caught.value)


@pytest.mark.parametrize(
    ("source", "flagged", "expected"),
    [
        ("build.yaml", True, True),
        ("s3://bucket/build.YML", False, True),
        ("/dev/stdin", False, True),
        ("photos", False, False),
        ("build.txt", True, False),
        ("photos/a.jpg", False, False),
        ("catalog.parquet", False, False),
        ("s3://bucket/photos", False, False),
    ],
)
def test_a_configuration_is_told_from_photographs(here: Path, source: str, flagged: bool, expected: bool) -> None:
    assert names_configuration(source, flagged=flagged) is expected


@pytest.mark.usefixtures("processes")
def test_a_wrong_command_imports_neither_arrow_nor_the_configuration(here: Path) -> None:
    done, modules = segmint_and_modules("build", here / "photos", "-o", here / "photos/dataset", "--license", CC0)
    assert (done.returncode, os.listdir(here / "empty")) == (2, [])
    assert "are inside one another" in done.stderr
    assert modules.isdisjoint({"pyarrow", "numpy", "ray", "torch"})
