"""Reports of datasets, made once; copy one to change it. Imports are deferred until a test needs them."""

from pathlib import Path

import pytest

from tests.support.parallel import made_once


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The dataset of `tests.support.reported`."""
    from tests.support.reported import write_reported

    return str(made_once(tmp_path_factory, "reported", lambda folder: write_reported(folder / "dataset")) / "dataset")


@pytest.fixture(scope="session")
def report_folder(reported: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its report, from an audit with findings and the score of a privacy study."""
    from segmint.pipeline.report.report import write_report
    from tests.support.locations import location_of
    from tests.support.reported import audit_with_findings, score_a_study

    def make(folder: Path) -> None:
        audit_with_findings(reported, folder / "audit.json")
        score_a_study(reported, folder / "study")
        audit, score = (location_of(folder / name) for name in ("audit.json", "study/score.json"))
        write_report(location_of(reported), location_of(folder / "report"), audit, study=score)

    return made_once(tmp_path_factory, "report", make) / "report"


@pytest.fixture(scope="session")
def minted_report(minted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on the small real dataset, from an audit as `QUICK` has it."""
    from segmint.pipeline.report.report import write_report
    from tests.support.locations import location_of
    from tests.support.reported import QUICK

    def make(folder: Path) -> None:
        write_report(location_of(minted), location_of(folder / "report"), options=QUICK)

    return made_once(tmp_path_factory, "minted_report", make) / "report"
