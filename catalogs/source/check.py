"""Check of a catalog before a build: licenses, duplicates, invalid values, and expected audit findings."""

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa

from segmint.catalogs.findings import Code, Reason
from segmint.catalogs.licenses import (
    LicensePolicy,
    canonical_identifier,
    countries,
    judge_attribution,
    judge_terms,
    suggest_identifier,
)
from segmint.catalogs.source.conform import InvalidValue
from segmint.catalogs.source.normalize import marked_batches, open_database, pairs_between, stage_catalog
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location
from segmint.infra.uris import UriNotAllowedError, has_unusual_bucket, only_path, relative_to
from segmint.infra.wording import counted, plural

EXAMPLES = 20
"""Maximum number of rows that are listed per finding. All rows are counted."""

SHOWN_URIS = 3
"""Maximum number of listed rows whose URI is also shown, in findings that include URIs."""


# As in `segmint.catalogs.source.normalize`, only rows whose hash occurs twice are compared as text. The number of a
# group is the ordinal of its first row. Groups by URI use negative numbers, so that they differ from groups by SHA-256.
_GROUPS = """
WITH suspects AS (SELECT hash({column}) AS h FROM rows_of($staged) WHERE {column} IS NOT NULL
                  GROUP BY h HAVING count(*) > 1),
     candidates AS (SELECT ordinal, {column} AS value FROM rows_of($staged)
                    WHERE {column} IS NOT NULL AND hash({column}) IN (SELECT h FROM suspects)),
     grouped AS (SELECT ordinal, min(ordinal) OVER same AS first, count(*) OVER same AS rows
                 FROM candidates WINDOW same AS (PARTITION BY value))
SELECT ordinal, {number} AS number FROM grouped WHERE rows > 1
"""
_SAME = " UNION ALL ".join(
    f"({_GROUPS.format(column=column, number=number)})"
    for column, number in (("sha256", "first"), ("uri", "-first - 1"))
)


@dataclass
class CatalogFinding:
    """Catalog rows with the same problem: how many there are, and the numbers of the first ones.

    Rows are counted from 1, without a header.
    """

    count: int = 0
    rows: list[int] = field(default_factory=list)
    uris: list[str] = field(default_factory=list)  # of the first rows, in findings that include URIs

    def add(self, row: int, uri: str | None = None) -> None:
        """Count a row. While the limits allow it, also list the row and its URI."""
        self.count += 1
        if len(self.rows) < EXAMPLES:
            self.rows.append(row)
        if uri is not None and len(self.uris) < SHOWN_URIS:
            self.uris.append(uri)

    def named(self) -> str:
        """Return the number of rows and the first row numbers as text: `3 (rows 1, 4, 9)`."""
        rows = ", ".join(str(row) for row in self.rows)
        more = ", …" if self.count > len(self.rows) else ""
        return f"{self.count:,} ({plural(self.count, 'row')} {rows}{more})"


class Notice(StrEnum):
    """Property of a row that the audit doesn't report, but that a user may want to change before a build."""

    LOCAL_PATH = "local_path"
    UNUSUAL_BUCKET = "unusual_bucket"
    REDISTRIBUTION_UNKNOWN = "redistribution_unknown"
    UNKNOWN_COUNTRY = "unknown_country"
    NO_COUNTRY = "no_country"


NOTICES = {
    Notice.LOCAL_PATH: "an absolute path on this machine, which the dataset will publish; `segmint catalog scan` "
    "writes paths relative to the catalog",
    Notice.UNUSUAL_BUCKET: "Amazon S3 doesn't allow the bucket's name in new buckets: a build rejects the row as "
    "uri_not_allowed unless the store has the bucket",
    Notice.REDISTRIBUTION_UNKNOWN: "`redistributable` is not given: a build with license.require_redistributable "
    "rejects such rows",
    Notice.UNKNOWN_COUNTRY: "`country` is not an ISO 3166-1 code, so the report counts the image in no region",
    Notice.NO_COUNTRY: "`country` is not given, so the report counts the image in no region",
}
"""Description of each notice."""


class Terms(NamedTuple):
    """License terms of a row."""

    license: str | None
    redistributable: bool | None
    valid_until: date | None
    opt_out: bool | None
    attributed: bool  # whether an attribution is given


@dataclass
class UnknownLicense(CatalogFinding):
    """Rows whose license is not a known identifier, and the known identifier that is most similar."""

    suggestion: str | None = None


@dataclass
class CatalogFindings:
    """Result of `check`.

    `by_license` counts rows by license identifier in SPDX's spelling. `verdicts` contains the rows that the policy
    rejects before a build reads any image, by the first reason that applies. Without a policy, it contains only rows
    that every policy rejects. `expired` contains the rows whose license ended before `policy_date`. `refused` contains
    the rows that the catalog itself rejects, by their `refused_reason`. These rejections are deliberate, so they don't
    affect `clean`. `accepted` is the number of all other rows. For the accepted rows, `audit` contains the findings
    that an audit of the finished dataset would report, by code. `notices` contains other properties of rows.
    """

    catalog: str
    rows: int
    policy_date: date
    by_license: dict[str, int] = field(default_factory=dict)
    missing_license: CatalogFinding = field(default_factory=CatalogFinding)
    unknown_licenses: dict[str, UnknownLicense] = field(default_factory=dict)
    expired: CatalogFinding = field(default_factory=CatalogFinding)
    duplicates: CatalogFinding = field(default_factory=CatalogFinding)
    refused_uris: CatalogFinding = field(default_factory=CatalogFinding)
    bad_values: CatalogFinding = field(default_factory=CatalogFinding)
    problems: list[str] = field(default_factory=list)  # descriptions of the first bad values
    verdicts: dict[str, CatalogFinding] = field(default_factory=dict)
    refused: dict[str, CatalogFinding] = field(default_factory=dict)
    accepted: int = 0
    audit: dict[Code, CatalogFinding] = field(default_factory=dict)
    notices: dict[Notice, CatalogFinding] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """True if there are no problems. Notices, and rows that the catalog itself rejects, don't count as problems."""
        findings = (self.missing_license, self.expired, self.duplicates, self.refused_uris, self.bad_values)
        return not any(f.count for f in findings) and not (self.unknown_licenses or self.verdicts or self.audit)

    def to_dict(self) -> dict[str, Any]:
        """Convert the findings to JSON values, and add `clean`."""
        value = asdict(self)
        value["policy_date"] = self.policy_date.isoformat()
        return {"clean": self.clean, **value}

    def lines(self) -> list[str]:
        rows = counted(self.rows, "row")
        lines = [f"{self.catalog}: {rows}, {self.accepted:,} of them acceptable by their catalog entries"]
        width = max((len(name) for name in self.by_license), default=0)
        lines += [f"  {name:<{width}} {count:>12,}" for name, count in self.by_license.items()]
        for title, finding in (
            ("no license", self.missing_license),
            (f"expired before {self.policy_date}", self.expired),
            ("duplicate image_id", self.duplicates),
            ("uri not allowed in a catalog", self.refused_uris),
            ("invalid value", self.bad_values),
            *((f"rejected: {reason}", found) for reason, found in self.verdicts.items()),
            *((f"rejected by the catalog: {reason}", found) for reason, found in self.refused.items()),
        ):
            if finding.count:
                lines.append(f"{title}: {finding.named()}")
        for text, unknown in self.unknown_licenses.items():
            hint = f"; did you mean {unknown.suggestion}?" if unknown.suggestion else ""
            lines.append(f"{text!r} is not a license identifier{hint}: {unknown.named()}")
        lines += [f"  {problem}" for problem in self.problems]
        lines += self.outlook_lines()
        return [*lines, *(f"note: {found.named()}: {NOTICES[notice]}" for notice, found in self.notices.items())]

    def outlook_lines(self) -> Iterator[str]:
        """Yield a line of text for each finding in `audit`."""
        for code, found in self.audit.items():
            sentence = code.sentence.rstrip(".")
            yield f"an audit will find {code}: {found.named()}: {sentence[0].lower()}{sentence[1:]}"

    def unusable_lines(self) -> list[str]:
        """Format the rows that a build would reject as lines of text, by reason and with examples.

        The result is empty if a build wouldn't reject any row.
        """
        refused = self.rows - self.accepted
        if not refused:
            return []
        return [
            f"a build would reject {refused:,} of {counted(self.rows, 'row')}:",
            *(
                f"  {reason}: {finding.named()}, such as {', '.join(finding.uris)}"
                for reason, finding in (*self.verdicts.items(), *self.refused.items())
            ),
        ]


def check(
    catalog: Location,
    policy: LicensePolicy | None = None,
    today: date | None = None,
    temporary: Path | None = None,
    most_rows: int | None = None,
    *,
    ignored: Collection[str] = (),
) -> CatalogFindings:
    """Read a whole catalog, or its first `most_rows` rows, and return its problems. This doesn't read images.

    An invalid value becomes a finding, and the check continues. If the file is not a catalog, this raises `UsageError`.
    `today` is the day of the audit; the default is today in UTC. Without a policy, `today` is also the day on which
    licenses must still be valid. `ignored` has the same meaning as in `stage_catalog`.
    """
    now = today or datetime.now(UTC).date()
    policy_date = policy.policy_date if policy else now
    findings = CatalogFindings(str(catalog), 0, policy_date)
    bad_rows: set[int] = set()

    def remember(problem: InvalidValue) -> None:
        if most_rows is not None and problem.row > most_rows:
            return
        if problem.row not in bad_rows:
            bad_rows.add(problem.row)
            findings.bad_values.add(problem.row)
        if len(findings.problems) < EXAMPLES:
            findings.problems.append(str(problem))

    judge = CatalogJudge(findings, policy, now)
    with ScratchFolder(dir=temporary) as name:
        staged, findings.rows = stage_catalog(catalog, Path(name), remember, most_rows, ignored=ignored)
        with SameFiles(staged, Path(name)) as same:
            for batch in marked_batches(staged, Path(name)):
                judge.look_at_all(batch, same)
    findings.bad_values.rows.sort()
    findings.by_license = dict(sorted(findings.by_license.items(), key=lambda item: (-item[1], item[0])))
    findings.verdicts = dict(sorted(findings.verdicts.items()))
    findings.refused = dict(sorted(findings.refused.items()))
    refused = (*findings.verdicts.values(), *findings.refused.values())
    findings.accepted = findings.rows - sum(finding.count for finding in refused)
    return findings


class SameFiles(AbstractContextManager["SameFiles"]):
    """Context manager that finds the rows of a staged catalog that refer to the same file, in row order."""

    def __init__(self, staged: Path, folder: Path) -> None:
        """Group the rows of `staged`, a file from `stage_catalog`. DuckDB spills into a new folder in `folder`."""
        apart = folder / "same"  # another database may spill into `folder`
        apart.mkdir()
        self._database: duckdb.DuckDBPyConnection = open_database(apart)
        query = f"CREATE TEMP TABLE same AS SELECT * FROM ({_SAME}) ORDER BY ordinal"
        self._database.execute(query, {"staged": only_path(staged)})

    def between(self, start: int, stop: int) -> dict[int, tuple[int, ...]]:
        """Return the group numbers of all rows whose ordinal is at least `start` and below `stop`, by ordinal."""
        found: dict[int, tuple[int, ...]] = {}
        ordinals, numbers = pairs_between(self._database, "same", start, stop)
        for ordinal, number in zip(ordinals.tolist(), numbers.tolist(), strict=True):
            found[ordinal] = (*found.get(ordinal, ()), number)
        return found

    def __exit__(self, *_: object) -> None:
        self._database.close()


@dataclass
class CatalogJudge:
    """Judge that sorts the rows of a catalog into findings, and judges each combination of license terms only once.

    `policy` is the license policy of the build. If it is None, an audit's findings are only predicted for attributions,
    because it isn't known which licenses the policy allows. `today` is the day of the audit.
    """

    findings: CatalogFindings
    policy: LicensePolicy | None
    today: date
    _judged: dict[Terms, tuple[Reason | None, tuple[Code, ...]]] = field(default_factory=dict)
    _identifiers: dict[str, str | None] = field(default_factory=dict)
    _sources: set[int] = field(default_factory=set)

    def look_at_all(self, batch: pa.RecordBatch, same: SameFiles) -> None:
        """Add a batch of staged rows whose duplicates are marked. Batches must be in order."""
        names = (
            "ordinal",
            "uri",
            "license",
            "redistributable",
            "valid_until",
            "opt_out",
            "attribution",
            "duplicate_of",
            "country",
            "refused_reason",
        )
        columns = [batch.column(name).to_pylist() for name in names]
        ordinals = columns[0]
        sources = same.between(ordinals[0], ordinals[-1] + 1) if ordinals else {}
        for ordinal, uri, license, redistributable, until, opt_out, attribution, first, country, refused in zip(
            *columns, strict=True
        ):
            terms = Terms(license, redistributable, until, opt_out, bool((attribution or "").strip()))
            self.look(ordinal + 1, uri, terms, country, sources.get(ordinal, ()), first is not None, refused)

    def look(
        self,
        row: int,
        uri: str,
        terms: Terms,
        country: str | None,
        sources: tuple[int, ...] = (),
        duplicate: bool = False,
        refused: str | None = None,
    ) -> None:
        """Add a row, counted from 1. `refused` is the reason for which the catalog itself rejects it.

        `sources` contains group numbers. Two rows share a number only if they refer to the same image file.
        """
        if terms not in self._judged:
            self._judged[terms] = self._verdict(terms), tuple(self._codes(terms))
        verdict, codes = self._judged[terms]
        if uri.startswith("/") or uri[:5].lower() == "file:":
            self._note(Notice.LOCAL_PATH, row, uri)
        if not self._accepts(row, uri, terms, duplicate, refused, verdict):
            return
        for code in codes:
            self._find(code, row, uri)
        if sources:
            if not self._sources.isdisjoint(sources):
                self._find(Code.REPEATED_SOURCE, row, uri)
            self._sources.update(sources)
        if has_unusual_bucket(uri):
            self._note(Notice.UNUSUAL_BUCKET, row, uri)
        if terms.redistributable is None:
            self._note(Notice.REDISTRIBUTION_UNKNOWN, row, uri)
        if country is None:
            self._note(Notice.NO_COUNTRY, row, uri)
        elif country not in countries():
            self._note(Notice.UNKNOWN_COUNTRY, row, uri)

    def _find(self, code: Code, row: int, uri: str) -> None:
        self.findings.audit.setdefault(code, CatalogFinding()).add(row, uri)

    def _note(self, notice: Notice, row: int, uri: str) -> None:
        self.findings.notices.setdefault(notice, CatalogFinding()).add(row, uri)

    def _accepts(
        self, row: int, uri: str, terms: Terms, duplicate: bool, refused: str | None, verdict: Reason | None
    ) -> bool:
        """Count a row, and return whether a build would accept it, as far as its catalog entry shows."""
        findings = self.findings
        if terms.license is None:
            findings.missing_license.add(row)
        else:
            self._count(terms.license, row)
        if terms.valid_until is not None and terms.valid_until < findings.policy_date:
            findings.expired.add(row)
        if duplicate:
            findings.duplicates.add(row)
        refused_uri = not _allowed(findings.catalog, uri)
        if refused_uri:
            findings.refused_uris.add(row)
        if refused is not None:
            findings.refused.setdefault(refused, CatalogFinding()).add(row, uri)
            return False
        reason = Reason.DUPLICATE_ID if duplicate else verdict
        if reason is None and refused_uri:
            reason = Reason.URI_NOT_ALLOWED
        if reason is not None:
            findings.verdicts.setdefault(str(reason), CatalogFinding()).add(row, uri)
        return reason is None

    def _count(self, license: str, row: int) -> None:
        if license not in self._identifiers:
            self._identifiers[license] = canonical_identifier(license)
        identifier = self._identifiers[license]
        if identifier is not None:
            self.findings.by_license[identifier] = self.findings.by_license.get(identifier, 0) + 1
            return
        unknown = self.findings.unknown_licenses
        if license not in unknown:
            unknown[license] = UnknownLicense(suggestion=suggest_identifier(license))
        unknown[license].add(row)

    def _verdict(self, terms: Terms) -> Reason | None:
        if self.policy is not None:
            verdict = self.policy.judge(terms.license, terms.redistributable, terms.valid_until, terms.opt_out)
            return verdict[0] if verdict else None
        if terms.license is None:
            return Reason.LICENSE_MISSING
        return None if canonical_identifier(terms.license) is not None else Reason.LICENSE_NOT_ALLOWED

    def _codes(self, terms: Terms) -> Iterator[Code]:
        """Yield the codes of the findings that an audit reports for these terms."""
        row = {**terms._asdict(), "attribution": "given" if terms.attributed else None}
        found = judge_attribution(row) if self.policy is None else judge_terms(row, self.policy, self.today)
        yield from (each.code for each in found)


def _allowed(catalog: str, uri: str) -> bool:
    try:
        relative_to(catalog, uri)
    except UriNotAllowedError:
        return False
    return True
