"""SA-1B's layout: the JSON of the tars beside the JPEGs, and a list of the images that have masks."""

import json
import tarfile
from pathlib import Path

import pytest

from segmint.catalogs.dataset.commits import CommitLog
from segmint.pipeline.export.export import ExportOptions, export_dataset
from segmint.pipeline.export.formats import Format
from tests.support.committed import of_people, write_dataset
from tests.support.locations import location_of


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Images 1 and 2, of which the second one has no masks."""

    def row(ordinal: int, refused: bool) -> dict:
        made = of_people(ordinal, refused)
        if not refused and ordinal == 1:
            made["masks"] = []
        return made

    write_dataset(location_of(tmp_path / "dataset"), shards=1, make_row=row)
    return tmp_path / "dataset"


def test_the_files_are_those_of_the_tar(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_dataset(location_of(dataset), ExportOptions(Format.SA_1B), location_of(out))
    (commit,) = CommitLog(location_of(dataset)).read_all()
    with tarfile.open(dataset / commit.file("shards").path) as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}
    assert {path.name: path.read_bytes() for path in (out / "images").iterdir()} == members
    assert (out / "file_list.txt").read_text() == "sa_1\n"
    index = json.loads((out / "index.json").read_text("utf-8"))
    assert [(image["json"], image["masks"]) for image in index["images"]] == [
        ("images/sa_1.json", 2),
        ("images/sa_2.json", 0),
    ]
