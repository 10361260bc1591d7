"""Dataset card: a `README.md` with front matter for the Hugging Face Hub and the sections of a datasheet."""

import re
from typing import Any

import jinja2
from markupsafe import Markup

from segmint.catalogs.hub import hub_licenses, size_category
from segmint.catalogs.lineage import describe_rounds
from segmint.infra.wording import counted, without_turning, yaml_text
from segmint.operators.prepare.measured_recall import describe_recall
from segmint.pipeline.quality.audit.result import AuditReport
from segmint.pipeline.quality.report.charts import Charts
from segmint.pipeline.quality.report.facts import Facts
from segmint.pipeline.quality.report.page import ASSETS, digest_of, is_searched, remarks_of
from segmint.pipeline.quality.statistics.values import Statistics
from segmint.pipeline.serving.documents import FILTERS

_SPECIAL = re.compile(r"[\\`*_\[\]|~$#!]")


def card_markdown(audit: AuditReport, statistics: Statistics, facts: Facts, charts: Charts) -> str:
    """Write the card as Markdown. All text from the data is escaped."""
    manifest = facts.manifest
    body = (
        markdown_templates()
        .get_template("card.md.j2")
        .render(
            facts=facts,
            manifest=manifest,
            digest=digest_of(facts.version) if facts.version is not None else None,
            rows=sum(part.rows for part in manifest.catalog) if manifest is not None else 0,
            statistics=statistics,
            credits=[credit for credit in facts.credits if credit.attribution or credit.provider],
            build=facts.build,
            rounds=describe_rounds(manifest.lineage) if manifest is not None else [],
            privacy=audit.privacy if is_searched(audit.privacy) else None,
            bundled=(bundled := [detector.name for detector in facts.detectors if detector.name and detector.bundled]),
            recall=describe_recall(bundled),
            funnel=charts.funnel.rows if charts.funnel else (),
            gaps=_gaps(audit, statistics, facts),
        )
    )
    return f"---\n{front_matter(facts)}---\n\n{body.strip()}\n"


def markdown_templates() -> jinja2.Environment:
    """Load the Markdown templates. They escape all text, so text from the data can't be read as Markdown or HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        finalize=escaped,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=False,
    )
    environment.filters.update(FILTERS)
    return environment


def front_matter(facts: Facts) -> str:
    """Return the front matter for the Hub, as YAML."""
    by_segmenter = facts.build is not None and facts.build.segmenter is not None
    made_by = [] if by_segmenter else ["segment-anything"]
    value: dict[str, Any] = {
        "pretty_name": facts.name,
        **hub_licenses(license for license, _ in facts.licenses if license),
        "size_categories": [size_category(facts.images)],
        "task_categories": ["image-segmentation", "mask-generation"],
        "annotations_creators": ["machine-generated", *(["other"] if facts.people else [])],
        "tags": [*made_by, "sa-1b", *([] if facts.labeled else ["class-agnostic"]), "webdataset"],
    }
    return yaml_text(value)


def escaped(value: Any) -> Any:
    """Escape text for Markdown and put it on one line. Return other values unchanged."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    line = " ".join(without_turning(value).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\g<0>", line)


def _gaps(audit: AuditReport, statistics: Statistics, facts: Facts) -> list[str]:
    gaps = []
    reasons = statistics.rejected_by_reason or {}
    if facts.rejected is None:
        gaps.append("It is unknown whether any images were rejected when the dataset was made.")
    elif facts.rejected:
        ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
        parts = ", ".join(f"{reason}: {count:,}" for reason, count in ordered)
        gaps.append(f"{counted(facts.rejected, 'catalog row')} rejected and not in the dataset: {parts}.")
    else:
        gaps.append("No catalog rows were rejected.")
    if facts.manifest is not None and len(facts.commits) < facts.manifest.shards:
        missing = facts.manifest.shards - len(facts.commits)
        gaps.append(f"{counted(missing, 'shard')} of {facts.manifest.shards:,} are not built yet.")
    gaps += remarks_of(statistics)
    if audit.findings.total:
        gaps.append(f"The audit reported {counted(audit.findings.total, 'finding')}; see index.html.")
    else:
        gaps.append("The audit reported no findings.")
    gaps += [facts.reused] if facts.reused else []
    if audit.licenses is None:
        gaps.append("The licenses were not audited.")
    if not is_searched(audit.privacy):
        gaps.append("No detector searched the released images again.")
    return gaps
