"""`segmint report` as a user meets it: exit codes, lines, JSON, files."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from segmint.pipeline.commands.cli import app
from segmint.pipeline.quality.report import report
from segmint.pipeline.quality.report.report import Report, write_report
from tests.support.reported import audit_with_findings


def run(*arguments: object):
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_it_says_what_to_open_and_gives_programs_the_same(
    reported: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit_with_findings(reported, tmp_path / "audit.json")
    written_once: list[Report] = []

    def write(*arguments: Any) -> Report:
        if not written_once:
            written_once.append(write_report(*arguments))
        return written_once[0]

    monkeypatch.setattr(report, "write_report", write)
    done = run(reported, "-o", tmp_path / "out", "--audit", tmp_path / "audit.json")
    assert done.exit_code == 0, done.output
    note, told, written, digest = done.stdout.splitlines()
    assert note.startswith(f"note: {tmp_path}/audit.json doesn't name the version that it checked")
    assert digest.startswith("dataset digest: sha256:")
    counts, own, _, pictures = told.split("; ")
    assert counts == "6 images, 10 masks, 103 findings (101 in integrity, 1 in licenses, 1 in privacy)"
    assert own.startswith("only the build's own face detectors searched")
    assert pictures == "pictures of 5 images"
    assert written.endswith(f"open {tmp_path}/out/index.html")
    assert (tmp_path / "out" / "index.html").is_file()

    done = run(reported, "-o", tmp_path / "out", "--audit", tmp_path / "audit.json", "--json")
    answer = json.loads(done.stdout)
    assert answer["findings_total"] == 103
    assert set(answer["files"]) == {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()
    }


def test_it_is_not_written_elsewhere_into_the_dataset(reported: str, tmp_path: Path) -> None:
    audit_with_findings(reported, tmp_path / "audit.json")
    done = run(reported, "-o", f"{reported}/pages", "--audit", tmp_path / "audit.json")
    assert done.exit_code == 2
    assert f"-o: {reported}/pages is inside the dataset" in done.output
    assert not Path(reported, "pages").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{folder}/nowhere"], "nowhere"),
        (["{folder}", "--sample", "-1"], "greater than or equal to 0|not in the range x>=0"),
        (["{folder}", "--config", "{folder}/absent.yaml"], "absent.yaml"),
        ([], "DATASET"),
    ],
)
def test_wrong_usage_is_exit_code_2(tmp_path: Path, arguments: list[str], told: str) -> None:
    done = run(*(argument.format(folder=tmp_path) for argument in arguments))
    assert done.exit_code == 2
    assert re.search(told, done.output)
