"""The notebooks that are shipped run from top to bottom, and are stored without their outputs."""

import json
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib import pyplot

from segmint.pipeline.masks.results import ImageMasks
from tests.support.cells import cells_of, run_cells

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

mpl.use("Agg")


@pytest.mark.usefixtures("weights", "embedded_once")
def test_the_quickstart_runs_and_shows_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pyplot.close("all")
    names, shown = run_cells(cells_of(ROOT / "notebooks" / "quickstart.ipynb"))
    output = capsys.readouterr()
    (result,) = [value for value in shown if isinstance(value, ImageMasks)]
    assert len(result.records) >= 6
    assert result._repr_html_().startswith("<figure")
    assert "points 64/64 (100.0%" in output.err
    titles = [axes.get_title() for number in pyplot.get_fignums() for axes in pyplot.figure(number).axes]
    assert titles == ["the surest masks", "1 mask", "1 mask"]
    cup = names["cup"]
    assert cup[60, 290]  # the click on the cup, x 290
    assert not cup[200, 220]  # the click beside it
    many = output.out.splitlines()[-3:]
    assert "masks of array (512, 512, 3)" in many[0]
    assert "missing.jpg does not exist" in many[1]
    assert "masks of array (400, 600, 3)" in many[2]
    assert list(tmp_path.iterdir()) == []
    pyplot.close("all")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_stored_small_and_without_outputs(path: Path) -> None:
    assert path.stat().st_size < 20_000
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        assert set(cell) == {"cell_type", "id", "metadata", "source"} | (
            {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        )
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
