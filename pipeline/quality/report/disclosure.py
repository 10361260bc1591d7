"""Page `disclosure.md`: facts for the EU's public summary of training content and for California's AB 2013.

The sections are those of the template that the European Commission published on July 24, 2025 (annex to C(2025) 5235),
and the paragraphs of Civil Code section 3111(a).
"""

from segmint.catalogs.attributions import license_url
from segmint.catalogs.lineage import describe_rounds
from segmint.catalogs.reasons import Reason
from segmint.operators.schemas import AUTOMATIC
from segmint.pipeline.quality.audit.result import AuditReport
from segmint.pipeline.quality.report.card import markdown_templates
from segmint.pipeline.quality.report.facts import Facts
from segmint.pipeline.quality.report.page import digest_of, is_searched
from segmint.pipeline.quality.statistics.values import Statistics

_SHOWN = 50  # maximum number of labels, countries, and providers


def disclosure_markdown(audit: AuditReport, statistics: Statistics, facts: Facts) -> str:
    """Write the page as Markdown. All text from the data is escaped.

    Raises `ValueError` for data that segmint didn't write, because it doesn't record these facts.
    """
    manifest, version = facts.manifest, facts.version
    if manifest is None or version is None:
        raise ValueError("the facts come from commits, and this dataset has none")
    reasons = statistics.rejected_by_reason or {}
    public_domain = 0
    for license, images in facts.licenses:
        if "/publicdomain/" in (license_url(license) or ""):
            public_domain += images
    body = (
        markdown_templates()
        .get_template("disclosure.md.j2")
        .render(
            facts=facts,
            manifest=manifest,
            build=facts.build,
            digest=digest_of(version),
            rows=sum(part.rows for part in manifest.catalog),
            statistics=statistics,
            shown=_SHOWN,
            licenses=audit.licenses,
            public_domain=public_domain,
            reasons=sorted(reasons.items(), key=lambda item: (-item[1], item[0])),
            opted_out=reasons.get(Reason.OPTED_OUT, 0),
            refused=reasons.get(Reason.REFUSED_BY_LIST, 0),
            privacy=audit.privacy if is_searched(audit.privacy) else None,
            automatic=(statistics.sources or {}).get(AUTOMATIC, 0),
            rounds=describe_rounds(manifest.lineage),
            size_range=_size_range(facts.images),
        )
    )
    return f"{body.strip()}\n"


def _size_range(images: int) -> str:
    """Return the range that the template offers for a number of images."""
    if images < 1_000_000:
        return "less than 1 million images"
    return "1 million to 1 billion images" if images <= 1_000_000_000 else "more than 1 billion images"
