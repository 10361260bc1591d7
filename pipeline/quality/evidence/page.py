"""The page of a folder of evidence."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segmint.catalogs.findings import SENTENCES
from segmint.pipeline.quality.audit.answer import AuditReport
from segmint.pipeline.quality.audit.answer_text import answer_lines
from segmint.pipeline.quality.study.privacy.score import PrivacyScore
from segmint.pipeline.serving.documents import document_templates

_TEMPLATES = document_templates(Path(__file__).parent / "assets")


def render_evidence(evidence: Mapping[str, Any], report: AuditReport, study: PrivacyScore | None) -> str:
    """Return the page as HTML: what `evidence.json` says, and the audit as `segmint audit` prints it."""
    return _TEMPLATES.get_template("evidence.html.j2").render(
        evidence=evidence,
        sentences={code.value: sentence for code, sentence in SENTENCES.items()},
        lines="\n".join(answer_lines(report)),
        study=study,
    )
