"""The page of a folder of evidence: one file, without scripts, that loads nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from segmint.catalogs.findings import SENTENCES
from segmint.pipeline.quality.audit.answer import AuditReport
from segmint.pipeline.quality.audit.answer_text import answer_lines
from segmint.pipeline.quality.report.templates import ASSETS, FILTERS
from segmint.pipeline.quality.study.privacy.score import PrivacyScore

_TEMPLATES = Path(__file__).parent / "assets"


def render_evidence(evidence: Mapping[str, Any], report: AuditReport, study: PrivacyScore | None) -> str:
    """Return the page as HTML: what `evidence.json` says, and the audit as `segmint audit` prints it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(FILTERS)
    return environment.get_template("evidence.html.j2").render(
        css=Markup((ASSETS / "report.css").read_text(encoding="utf-8")),
        evidence=evidence,
        sentences={code.value: sentence for code, sentence in SENTENCES.items()},
        lines="\n".join(answer_lines(report)),
        study=study,
    )
