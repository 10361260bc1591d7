"""What an audit will find in a dataset that is built from a catalog, and what else is worth knowing before that."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from typing import NamedTuple

from segmint.catalogs.countries import countries
from segmint.catalogs.findings import SENTENCES, Code
from segmint.catalogs.licenses import LicensePolicy
from segmint.catalogs.terms import judge_attribution, judge_terms
from segmint.infra.wording import plural

EXAMPLES = 20
"""How many rows a finding lists; it counts all of them."""

SHOWN_URIS = 3
"""How many of these rows it also names by their URIs, where it does."""


@dataclass
class Finding:
    """Rows of a catalog with the same problem: how many, and the first of them (counted from 1, without a header)."""

    count: int = 0
    rows: list[int] = field(default_factory=list)
    uris: list[str] = field(default_factory=list)  # of the first rows, where they are given

    def add(self, row: int, uri: str | None = None) -> None:
        """Count a row."""
        self.count += 1
        if len(self.rows) < EXAMPLES:
            self.rows.append(row)
        if uri is not None and len(self.uris) < SHOWN_URIS:
            self.uris.append(uri)

    def named(self) -> str:
        """Return the number of rows and the first of them, for people: `3 (rows 1, 4, 9)`."""
        rows = ", ".join(str(row) for row in self.rows)
        more = ", …" if self.count > len(self.rows) else ""
        return f"{self.count:,} ({plural(self.count, 'row')} {rows}{more})"


class Notice(StrEnum):
    """What no audit finds wrong, and somebody may want to change before a build."""

    LOCAL_PATH = "local_path"
    REDISTRIBUTION_UNKNOWN = "redistribution_unknown"
    UNKNOWN_COUNTRY = "unknown_country"
    NO_COUNTRY = "no_country"


NOTICES = {
    Notice.LOCAL_PATH: "an absolute path of this machine, which the dataset will publish; `segmint catalog scan` "
    "writes paths relative to the catalog",
    Notice.REDISTRIBUTION_UNKNOWN: "`redistributable` is not given: a build with license.require_redistributable "
    "refuses such rows",
    Notice.UNKNOWN_COUNTRY: "`country` is no code of ISO 3166-1, and counts for no region in the report",
    Notice.NO_COUNTRY: "`country` is not given, and the image counts for no region in the report; "
    "`segmint catalog locate` finds some in captions",
}
"""A sentence for each notice."""


class Terms(NamedTuple):
    """What a row says of its license. Few combinations exist, so each is judged once."""

    license: str | None
    redistributable: bool | None
    valid_until: date | None
    opt_out: bool | None
    attributed: bool  # whether an attribution is given


@dataclass
class Outlook:
    """Looks at the rows of a catalog one by one, in order.

    `policy` is that of the build, or None if it is not known: then licenses are not judged, only attributions are.
    `today` is the day of the audit.
    """

    policy: LicensePolicy | None
    today: date
    findings: dict[Code, Finding] = field(default_factory=dict)  # of the audit, of rows that the build accepts
    notices: dict[Notice, Finding] = field(default_factory=dict)
    _judged: dict[Terms, tuple[Code, ...]] = field(default_factory=dict)
    _sources: set[int] = field(default_factory=set)

    def look(
        self, row: int, uri: str, terms: Terms, country: str | None, sources: tuple[int, ...], *, accepted: bool
    ) -> None:
        """Look at a row (counted from 1); `sources` are numbers that it shares with rows of the same image file."""
        if uri.startswith("/") or uri[:5].lower() == "file:":
            self._note(Notice.LOCAL_PATH, row, uri)
        if not accepted:
            return
        if terms not in self._judged:
            self._judged[terms] = tuple(self._judge(terms))
        for code in self._judged[terms]:
            self._find(code, row, uri)
        if sources:
            if not self._sources.isdisjoint(sources):
                self._find(Code.REPEATED_SOURCE, row, uri)
            self._sources.update(sources)
        if terms.redistributable is None:
            self._note(Notice.REDISTRIBUTION_UNKNOWN, row, uri)
        if country is None:
            self._note(Notice.NO_COUNTRY, row, uri)
        elif country not in countries():
            self._note(Notice.UNKNOWN_COUNTRY, row, uri)

    def lines(self) -> Iterator[str]:
        """Yield what was found, as lines for people."""
        for code, found in self.findings.items():
            yield f"an audit will find {code}: {found.named()}: {_begun_small(SENTENCES[code])}"
        for notice, found in self.notices.items():
            yield f"note: {found.named()}: {NOTICES[notice]}"

    def _judge(self, terms: Terms) -> Iterator[Code]:
        row = {**terms._asdict(), "attribution": "given" if terms.attributed else None}
        found = judge_attribution(row) if self.policy is None else judge_terms(row, self.policy, self.today)
        yield from (each.code for each in found)

    def _find(self, code: Code, row: int, uri: str) -> None:
        self.findings.setdefault(code, Finding()).add(row, uri)

    def _note(self, notice: Notice, row: int, uri: str) -> None:
        self.notices.setdefault(notice, Finding()).add(row, uri)


def _begun_small(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:].rstrip(".")
