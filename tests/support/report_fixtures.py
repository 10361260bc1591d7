"""Reports of datasets, made once; who changes one takes a copy. What they need is loaded when a test asks for them."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The dataset of `tests.support.reported`."""
    from tests.support.reported import write_reported

    return write_reported(tmp_path_factory.mktemp("reported") / "dataset")


@pytest.fixture(scope="session")
def report_folder(reported: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its report, from an audit with findings."""
    from segmint.infra.storage.storage import Storage
    from segmint.pipeline.report.report import write_report
    from tests.support.reported import audit_with_findings

    folder = tmp_path_factory.mktemp("report")
    audit_with_findings(reported, folder / "audit.json")
    write_report(reported, Storage(), str(folder / "report"), str(folder / "audit.json"))
    return folder / "report"


@pytest.fixture(scope="session")
def minted_report(minted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on the small real dataset, from an audit as `QUICK` has it."""
    from segmint.infra.storage.storage import Storage
    from segmint.pipeline.report.report import write_report
    from tests.support.reported import QUICK

    folder = tmp_path_factory.mktemp("minted_report") / "report"
    write_report(str(minted), Storage(), str(folder), options=QUICK)
    return folder
