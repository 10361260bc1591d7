"""Selections of a real dataset's images: the commands that accept them, and what a takedown leaves of them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from segmint.catalogs.dataset.outputs import FILES_LIST, OUTPUTS
from segmint.catalogs.dataset.subsets import choose_images, open_selected
from segmint.catalogs.dataset.tombstones import TakedownRequest
from segmint.infra.errors import UsageError
from segmint.pipeline.commands.cli import app
from segmint.pipeline.corrections.takedown import takedown
from segmint.pipeline.export.export import select_images
from tests.support.locations import location_of


def run(*arguments: object):
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_a_takedown_removes_images_from_a_pinned_selection(dataset: Path, tmp_path: Path) -> None:
    place, file = location_of(dataset), tmp_path / "subset.json"
    select_images(place, "id IN (2, 4, 5)", location_of(file))
    whole = open_selected(place, str(file))
    assert [sample.id for sample in whole] == [2, 4, 5]
    done = takedown(place, TakedownRequest(ids=("sa_4",)), "asked by the author")
    assert any("subset.json" in line for line in done.outputs)
    left = choose_images(place, str(file))
    assert (left.ids.tolist(), left.removed) == ([2, 5], 1)
    assert "1 selected image taken down since" in left.line
    assert [sample.id for sample in open_selected(place, str(file))] == [2, 5]
    assert [sample.id for sample in open_selected(place, "id IN (2, 4, 5)")] == [2, 5]
    takedown(place, TakedownRequest(ids=("sa_2", "sa_5")), "asked by the author")
    with pytest.raises(UsageError, match="all of its images were taken down"):
        choose_images(place, str(file))


def test_a_selection_and_an_export_of_it(dataset: Path, tmp_path: Path) -> None:
    file, output = tmp_path / "subset.json", tmp_path / "coco"
    condition = "(provider IS NULL OR provider <> 'Jane Doe') AND id <> 2 AND id < 6"
    done = run("select", dataset, condition, "-o", file)
    assert (done.exit_code, done.stderr.splitlines()[1:]) == (0, [])
    assert done.stdout.startswith(f"3 of 6 images → {file}\nselection: sha256:")
    again = run("select", dataset, condition, "-o", file)
    assert again.stdout == done.stdout
    exported = run("export", dataset, "--format", "coco", "--no-images", "--select", file, "-o", output)
    assert exported.exit_code == 0, exported.stderr
    images = json.loads((output / "instances.json").read_text())["images"]
    sha256 = json.loads(file.read_bytes())["sha256"]
    assert f"(selection {sha256[:12]})" in exported.stdout
    assert json.loads((output / FILES_LIST).read_text().splitlines()[0])["command"].endswith(f"--select {sha256[:12]}")
    notes = "".join(note.read_text() for note in (dataset / OUTPUTS).iterdir())
    assert "subset.json" in notes
    assert "Jane Doe" not in notes
    drawn = run("export", dataset, "--format", "coco", "--select", file, "--sample", 2, "-o", tmp_path / "two")
    two = json.loads((tmp_path / "two" / "instances.json").read_text())["images"]
    assert drawn.exit_code == 0
    assert {image["id"] for image in two} < {image["id"] for image in images}
    assert [image["id"] for image in images] == list(choose_images(location_of(dataset), str(file)).ids)
    refused = run("export", dataset, "--format", "coco", "--select", "nowhere = 1", "-o", tmp_path / "other")
    assert refused.exit_code == 2
    assert not (tmp_path / "other").exists()
