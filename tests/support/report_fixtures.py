"""Reports of datasets, made once; copy one to change it. Imports are deferred until a test needs them."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.parallel import made_once

if TYPE_CHECKING:
    from segmint.pipeline.quality.report.facts import Facts
    from segmint.pipeline.quality.statistics.values import Statistics


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The dataset of `tests.support.reported`."""
    from tests.support.reported import write_reported

    return str(made_once(tmp_path_factory, "reported", lambda folder: write_reported(folder / "dataset")) / "dataset")


@pytest.fixture(scope="session")
def reported_facts(reported: str) -> "tuple[Statistics, Facts]":
    """Its statistics and facts."""
    from segmint.pipeline.quality.report.facts import gather_facts
    from segmint.pipeline.quality.statistics.masks import open_tables
    from segmint.pipeline.quality.statistics.statistics import compute_statistics
    from tests.support.locations import location_of

    with open_tables(location_of(reported)) as tables:
        return compute_statistics(tables, 10), gather_facts(tables)


@pytest.fixture(scope="session")
def report_folder(reported: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its report, from an audit with findings and the score of a privacy study."""
    from segmint.pipeline.quality.report.report import write_report
    from tests.support.locations import location_of
    from tests.support.reported import audit_with_findings, score_a_study

    def make(folder: Path) -> None:
        audit_with_findings(reported, folder / "audit.json")
        score_a_study(reported, folder / "study")
        audit, score = (location_of(folder / name) for name in ("audit.json", "study/score.json"))
        write_report(location_of(reported), location_of(folder / "report"), audit, study=score)

    return made_once(tmp_path_factory, "report", make) / "report"


@pytest.fixture(scope="session")
def built_report(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on the small real dataset, from an audit as `QUICK` has it."""
    from segmint.pipeline.quality.report.report import write_report
    from tests.support.locations import location_of
    from tests.support.reported import QUICK

    def make(folder: Path) -> None:
        write_report(location_of(small_dataset), location_of(folder / "report"), options=QUICK)

    return made_once(tmp_path_factory, "built_report", make) / "report"


@pytest.fixture(scope="session")
def evidence_folder(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evidence of a signed copy of the small real dataset, which is next to it as `dataset`, with `key.public.pem`."""
    import shutil

    from segmint.catalogs.dataset.outputs import OUTPUTS
    from segmint.catalogs.dataset.versions import put_version
    from segmint.pipeline.quality.audit.audit import audit_dataset
    from segmint.pipeline.quality.evidence import write_evidence
    from segmint.pipeline.quality.signatures import sign_version
    from segmint.pipeline.quality.statistics.ratings import read_score
    from tests.support.keys import write_keys
    from tests.support.locations import location_of
    from tests.support.reported import QUICK, score_a_study

    def make(folder: Path) -> None:
        shutil.copytree(small_dataset, folder / "dataset", ignore=shutil.ignore_patterns(OUTPUTS))
        dataset = location_of(folder / "dataset")
        put_version(dataset, "build")
        private, _ = write_keys(folder, "key")
        sign_version(dataset, private)
        score_a_study(dataset.uri, folder / "study")
        report = audit_dataset(dataset, QUICK)
        study = read_score(location_of(folder / "study/score.json"))
        write_evidence(dataset, report, QUICK, location_of(folder / "evidence"), study)

    return made_once(tmp_path_factory, "evidence", make) / "evidence"
