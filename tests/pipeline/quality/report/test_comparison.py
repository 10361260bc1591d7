"""Another dataset beside the one that is reported: page, JSON and the command's line."""

import json
from pathlib import Path

import pytest

from segmint.infra.errors import UsageError
from segmint.pipeline.quality.report.comparison import THIS
from segmint.pipeline.quality.report.report import Report, write_report
from tests.support.html import parse_page
from tests.support.locations import location_of
from tests.support.reported import audit_with_findings


@pytest.fixture(scope="module")
def written(small_dataset: Path, reported: str, tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("beside")
    audit_with_findings(reported, folder / "audit.json")
    audited = location_of(folder / "audit.json")
    return write_report(location_of(reported), location_of(folder / "out"), audited, other=location_of(small_dataset))


def test_page_json_and_line_have_the_figures_of_both(written: Report, small_dataset: Path, built_report: Path) -> None:
    file = json.loads(Path(written.output, "beside.json").read_text())
    assert file == written.to_dict()["beside"]
    theirs = json.loads((built_report / "statistics.json").read_text())
    for key in ("images", "masks", "masks_per_image", "relative_size", "concavity", "centers"):
        assert file["theirs"][key] == theirs[key]
    assert (file["ours"]["images"], file["theirs"]["dataset"]) == (6, small_dataset.name)
    page = parse_page(Path(written.output, "index.html").read_text())
    assert "Compared with small" in page.text
    assert f"Masks {file['ours']['masks']} {file['theirs']['masks']}" in page.text
    assert "Mask centers of small" in page.text
    assert {element.attributes.get("id") for element in page.all("section")} >= {"masks", "beside"}
    assert written.lines()[-2].startswith(f"{THIS}: 1.67 masks per image")


def test_a_report_is_not_written_into_the_other_dataset(reported: str, dataset: Path, tmp_path: Path) -> None:
    audit_with_findings(reported, tmp_path / "audit.json")
    audited = location_of(tmp_path / "audit.json")
    with pytest.raises(UsageError, match="inside the dataset"):
        write_report(location_of(reported), location_of(dataset / "pages"), audited, other=location_of(dataset))
    with pytest.raises(UsageError, match="is not a dataset"):
        write_report(location_of(reported), location_of(tmp_path / "r"), audited, other=location_of(tmp_path / "no"))
    assert not (tmp_path / "r").exists()
