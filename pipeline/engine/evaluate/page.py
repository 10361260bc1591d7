"""What the pages of all evaluations have in common."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segmint.infra.version import VERSION
from segmint.infra.wording import count, listed, plural
from segmint.pipeline.engine.evaluate.answer import Subject
from segmint.pipeline.serving.documents import document_templates

_TEMPLATES = Path(__file__).parent / "assets"


def render(template: str, subject: Subject, eyebrow: str, tiles: Sequence[tuple[str, str]], **values: Any) -> str:
    """Return a page that extends `evaluation.html.j2`, as HTML; `made` may add lines on how it was measured."""
    templates = document_templates(_TEMPLATES)
    templates.filters["counted"] = _counted
    made = [*_made(subject), *values.pop("made", [])]
    return templates.get_template(template).render(
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
