"""The Python examples of the README and of pages run as they are printed, but for grids of fewer points."""

import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image

from segmint.catalogs.dataset.versions import name_now, put_version
from tests.support.cells import examples_of, run_cells
from tests.support.committed import write_dataset
from tests.support.locations import location_of

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGE = DOCS / "python.md"

ON_A_DATASET = {"dataset": 5, "reading": 2, "report": 1, "versions": 2}
"""Number of examples at the start of each page that read `demo/dataset`."""

mpl.use("Agg")


@pytest.fixture
def folder(tmp_path: Path, coffee: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the photographs and datasets that the examples name."""
    for name in ("photos", "demo/photos"):
        (tmp_path / name).mkdir(parents=True)
    cup = Image.fromarray(coffee)
    cup.save(tmp_path / "photo.jpg")
    cup.save(tmp_path / "demo/photos/coffee.png")
    cup.resize((150, 100)).save(tmp_path / "photos/small.jpg")
    (tmp_path / "photos/broken.jpg").write_bytes(b"\xff\xd8\xff")
    for name in ("dataset", "demo/dataset"):
        write_dataset(location_of(tmp_path / name), shards=1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def faster(examples: list[str]) -> list[str]:
    """The same with a sixth of the points."""
    assert any("points_per_side=8" in example for example in examples)
    return [example.replace("points_per_side=8", "points_per_side=3") for example in examples]


@pytest.mark.usefixtures("weights", "embedded_once")
def test_the_examples_of_the_page_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples = faster(examples_of(PAGE))
    names, _ = run_cells(examples)
    output = capsys.readouterr().out
    assert "ImageMasks(" in output
    errors = [line for line in output.splitlines() if line.startswith("image is an array")]
    assert errors
    assert errors[0] in PAGE.read_text(encoding="utf-8").splitlines()
    assert "broken.jpg: " in output
    assert len(examples[0].splitlines()) <= 25  # the first script
    for name in ("everything.png", "largest.png", "clicked.png", "three.png"):
        assert Image.open(folder / name).width > 50
    assert json.loads((folder / "photo.json").read_text())["image"]["file_name"] == "photo.jpg"
    assert "TorchDataset('demo/dataset', 1 of 1 shards) 2 Sample(id=1" in output
    assert names["pixels"][60, 290]
    assert names["three"].shape == (3, 400, 600)
    assert len(names["batch"]) == 2
    pyplot.close("all")


@pytest.mark.usefixtures("weights", "embedded_once")
def test_the_example_of_the_readme_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names, _ = run_cells(faster(examples_of(ROOT / "README.md")))
    assert names["pixels"][60, 290]
    assert "(60, 80, 3)" in capsys.readouterr().out


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("page", ON_A_DATASET)
def test_the_examples_on_a_dataset_run(
    page: str, dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = dataset.parent / "demo"
    demo.mkdir()
    dataset.rename(demo / "dataset")
    monkeypatch.chdir(demo.parent)
    put_version(location_of(demo / "dataset"), "build")
    examples = examples_of(DOCS / f"{page}.md")[: ON_A_DATASET[page]]
    assert len(examples) == ON_A_DATASET[page]
    run_cells(examples)
    output = capsys.readouterr().out
    assert output
    if page == "reading":
        assert [line for line in output.splitlines() if line.startswith("epoch")] == ["epoch 0", "epoch 1"]
    if page == "versions":
        assert output.strip() == name_now(location_of(demo / "dataset")).digest


def test_the_page_says_which_examples_run() -> None:
    text = " ".join((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split())
    assert all(f"(docs/{page}.md)" in text.partition("Tests run")[2].partition(". ")[0] for page in ON_A_DATASET)
