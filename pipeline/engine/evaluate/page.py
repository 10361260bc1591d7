"""What the pages of all evaluations have in common: one file, without scripts, that loads nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from segmint.infra.version import VERSION
from segmint.infra.wording import count, listed, plural
from segmint.pipeline.engine.evaluate.answer import Subject
from segmint.pipeline.quality.report.templates import ASSETS as REPORT_ASSETS
from segmint.pipeline.quality.report.templates import FILTERS

ASSETS = Path(__file__).parent / "assets"


def render(template: str, subject: Subject, eyebrow: str, tiles: Sequence[tuple[str, str]], **values: Any) -> str:
    """Return a page that extends `evaluation.html.j2`, as HTML; `made` may add lines on how it was measured."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(FILTERS)
    environment.filters["counted"] = _counted
    made = [*_made(subject), *values.pop("made", [])]
    return environment.get_template(template).render(
        css=Markup((REPORT_ASSETS / "report.css").read_text(encoding="utf-8")),
        own_css=Markup((ASSETS / "evaluation.css").read_text(encoding="utf-8")),
        version=VERSION,
        title=" and ".join(subject.names),
        eyebrow=eyebrow,
        tiles=tiles,
        subject=subject,
        made=made,
        **values,
    )


def _counted(value: int, noun: str, several: str | None = None) -> str:
    return f"{value:,} {plural(value, noun) if several is None or value == 1 else several}"


def _made(subject: Subject) -> list[tuple[str, str]]:
    lines = [(f"Weights {each.label}", f"SHA-256 {each.sha256}") for each in subject.weights]
    for truth in subject.truths:
        lines.append((f"Truth: {truth.kind}", f"{truth.name}, {_facts(truth.facts)}; {count(truth.images)} images"))
    return [*lines, ("Computed on", subject.computed_on)]


def _facts(facts: Mapping[str, Any]) -> str:
    return (
        listed(f"{name.replace('_', ' ')} {value}" for name, value in facts.items() if value not in (None, [], ""))
        or "no more known"
    )
