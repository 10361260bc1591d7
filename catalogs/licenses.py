"""Licenses and credits of images: the policy that accepts or rejects a license, attributions, countries, and terms.

Judgment of an accepted image's terms: its license, and the attribution that the license requires.

The audit uses this to judge the images of a dataset. Before a build, `segmint catalog check` and `plan` use it to judge
the rows of a catalog.

Countries with their region and income level, as the Segment Anything paper groups them.

`countries.csv` contains the codes of ISO 3166-1 alpha-2, and XK, which is in the World Bank's list. `region` is one of
the paper's five regions. These are the regions of the United Nations (M49), but with Asia and Oceania merged, and the
Americas split in two. `income` is the World Bank's classification for its fiscal year 2026 (July 2025 to June 2026).
`middle` stands for both lower and upper middle income. `income` is empty for countries that the World Bank doesn't
classify.
"""

import csv
import difflib
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from segmint.catalogs.findings import Code, Reason
from segmint.catalogs.layout import image_name
from segmint.infra.errors import UsageError
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location
from segmint.infra.uris import redact

Row = Mapping[str, Any]
"""Row of a table. `catalogs.parquet` has this name, too, but a wrong command is refused before pyarrow is imported."""

LONGEST = 1000
"""Maximum number of characters in a license identifier. A longer text is assumed to be a full license text."""

_LICENSE_REF = re.compile(r"LicenseRef-[A-Za-z0-9.\-]+")
_VERSION = re.compile(r"-v?\d+(\.\d+)+$")
_ALMOST = 0.95  # difflib's ratio (2 × characters in common / characters of both), which "unlicensed" doesn't reach
_TERMS = ("by", "nc", "nd", "sa")
_NOISE = frozenset(
    {"the", "a", "license", "licence", "version", "international", "unported", "generic", "universal"}
    | {"spdx", "opensource"}  # hosts of URLs
)
_URL = (
    r"(?:https?:)?(?://)?(?:www\.)?(creativecommons|spdx|opensource)\.org/(?:licenses?|publicdomain)/"
    r"([\w.+-]+?)(?:\.html|\.json|\.txt)?"
    r"(?:/(\d\.\d)(?:/([a-z]{2,3}))?(?:/(?:deed|legalcode|rdf)(?:\.[\w-]+)?)?)?/?(?:[?#].*)?"
)
_SPELLINGS = (
    (rf"^{_URL}$", r"\1 \2 \3 \4"),
    (r"^(attribution[\w-]*) license$", r"\1 2.0"),  # Flickr's names
    (r"creative[\s_-]*commons", "cc"),
    (r"cc[\s_-]*(zero|0)(?![a-z0-9.])", "cc0"),
    (r"public[\s_-]*domain[\s_-]*(dedication|waiver)", "cc0"),
    (r"(public[\s_-]*domain|cc)[\s_-]*mark", "pdm"),
    (r"attribution", "by"),
    (r"non[\s_-]*commercial", "nc"),
    (r"share[\s_-]*alike", "sa"),
    (r"no[\s_-]*deriv(ative)?s?([\s_-]*works)?", "nd"),
    (r"(?<=[\W_]\d)[-_, ](?=\d(?![^\W_]))", "."),  # a version such as 4_0
    (r"(?<![^\W_])v(?=\d)", ""),
)
"""Patterns of names and URLs as public collections write them, and the words of SPDX's identifiers instead."""

_SHOWN = 80  # characters of a longer text that a dataset stores
_REDACTED = 5000  # characters searched for credentials, enough for any that starts in those shown


@lru_cache(maxsize=1)
def spdx_identifiers() -> dict[str, str]:
    """Return the official spelling of each identifier in the SPDX license list, keyed by its lowercase form.

    The list comes from the `license-expression` package. Exceptions and deprecated licenses are left out.
    """
    from license_expression import get_license_index

    known: dict[str, str] = {}
    for entry in get_license_index():
        if entry.get("is_exception") or entry.get("is_deprecated"):
            continue
        for key in [entry.get("spdx_license_key"), *entry.get("other_spdx_license_keys", [])]:
            if key and not key.startswith("LicenseRef-"):
                known[key.lower()] = key
    return known


def canonical_identifier(text: str) -> str | None:
    """Return an SPDX identifier in its official spelling, or None if `text` is not an identifier. Case doesn't matter.

    `LicenseRef-…` is an identifier for a license that isn't in SPDX's list, such as an agreement. It is returned
    unchanged.
    """
    if len(text) > LONGEST:
        return None
    if _LICENSE_REF.fullmatch(text):
        return text
    return spdx_identifiers().get(text.lower())


@lru_cache(maxsize=1024)
def suggest_identifier(text: str) -> str | None:
    """Return the SPDX identifier that `text` probably means, or None if there is none.

    The text must contain the words of the identifier and no others, but a version may be missing. Names and URLs of
    Creative Commons are understood as public collections write them. Any other text must be almost an identifier. A
    suggestion is for people: no text is accepted because of it.
    """
    if len(text) > LONGEST:
        return None
    words = _words(text)
    counts = {words.count(term) for term in _TERMS}
    if words == ["by"] or len(counts - {0}) > 1:
        return None  # no license, or several
    unique, by_words = frozenset(words), _by_words()
    found = by_words.get(unique) or by_words.get(unique | {"cc"})
    if found is None and unique.isdisjoint({"cc", "cc0", "by"}):
        known = spdx_identifiers()
        for close in difflib.get_close_matches(text.strip().lower(), known, n=1, cutoff=_ALMOST):
            found = known[close]
    return found


@lru_cache(maxsize=1)
def _by_words() -> dict[frozenset[str], str]:
    """Return the identifiers by their words. Without a version, the words mean the newest one."""
    identifiers = sorted(spdx_identifiers().values())
    found = {}
    for identifier in identifiers:
        found[frozenset(_words(_VERSION.sub("", identifier)))] = identifier
    for identifier in identifiers:
        found[frozenset(_words(identifier))] = identifier
    return found


def _words(text: str) -> list[str]:
    """Return the words of a license's name or URL, without words that make no difference: `cc`, `by`, `4`."""
    text = text.strip().lower()
    for pattern, replacement in _SPELLINGS:
        text = re.sub(pattern, replacement, text)
    words = re.findall(r"[^\W_]+(?:\.\d+)*\+?", text)
    return [word.removesuffix(".0") for word in words if word not in _NOISE]


def fit_to_store(text: str) -> str:
    """Return a catalog's license as a dataset stores it: without credentials, and shortened if it is a full text."""
    if len(text) <= LONGEST:
        return redact(text)
    return f"{redact(text[:_REDACTED])[:_SHOWN]}… ({len(text):,} characters)"


def validate_identifier(text: str) -> str:
    """Return an identifier in SPDX's spelling. Raises `UsageError` with a suggestion if `text` is not an identifier."""
    identifier = canonical_identifier(text)
    if identifier is None:
        raise UsageError(f"{_unknown(text)}; expected an SPDX identifier such as CC-BY-4.0, or LicenseRef-…")
    return identifier


@dataclass(frozen=True)
class LicensePolicy:
    """Rules that decide whether an image may be used, based on its license.

    `policy_date` is fixed when a dataset is started, so that verdicts don't change later.
    """

    allow: frozenset[str]
    require_redistributable: bool
    policy_date: date
    respect_opt_out: bool = True

    def judge(
        self,
        license: str | None,
        redistributable: bool | None,
        valid_until: date | None,
        opt_out: bool | None = None,
    ) -> tuple[Reason, str] | None:
        """Return the reason for rejecting an image and a sentence that explains it, or None if the image may be used.

        The first reason that applies is returned:

        - The image has no license.
        - Its license isn't allowed.
        - Its license expired before `policy_date`. A license is still valid on its last day.
        - Redistribution is required, but it's denied or unknown.
        - The catalog marks the image as opted out.
        """
        if license is None or not license.strip():
            return Reason.LICENSE_MISSING, "the catalog names no license for this image"
        identifier = canonical_identifier(license.strip())
        if identifier is None:
            return Reason.LICENSE_NOT_ALLOWED, f"{_unknown(license)}; allowed: {self._allowed()}"
        if identifier not in self.allow:
            return (
                Reason.LICENSE_NOT_ALLOWED,
                f"the license {identifier} is not among those allowed: {self._allowed()}",
            )
        if valid_until is not None and valid_until < self.policy_date:
            return (
                Reason.LICENSE_EXPIRED,
                f"the license held until {valid_until.isoformat()}; "
                f"the dataset's policy date is {self.policy_date.isoformat()}",
            )
        if self.require_redistributable and redistributable is not True:
            found = "unknown" if redistributable is None else "denied"
            return Reason.NOT_REDISTRIBUTABLE, f"redistribution is required and is {found} for this image"
        if self.respect_opt_out and opt_out:
            return Reason.OPTED_OUT, "the catalog says that the rights holder has opted this image out"
        return None

    def _allowed(self) -> str:
        return ", ".join(sorted(self.allow)) or "none"


def _unknown(text: str) -> str:
    suggestion = suggest_identifier(text)
    hint = f" (did you mean {suggestion}?)" if suggestion else ""
    return f"{fit_to_store(text)!r} is not a license identifier{hint}"


COLUMNS = ("image", "id", "image_id", "attribution", "provider", "license", "license_url", "source_url")
"""Columns of an attribution file. `image` is the image's name in the tar, and `image_id` is its name in the catalog."""

ATTRIBUTION_FAMILIES = (
    "CC-BY-",
    "DL-DE-BY-",
    "etalab-",
    "GFDL-",
    "LAL-",
    "NLOD-",
    "ODC-By-",
    "OGDL-Taiwan-",
    "OGL-",
)
"""Prefixes of SPDX identifiers. Licenses with these prefixes are for works and data, and require attribution."""

_CREATIVE_COMMONS = re.compile(r"CC-(BY(?:-NC)?(?:-SA|-ND)?|SA)-(\d\.\d)(?:-([A-Z]+))?")
_PUBLIC_DOMAIN = {"CC0-1.0": "zero/1.0", "CC-PDM-1.0": "mark/1.0"}
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+!|~&])")
# Characters that start a formula, including full-width forms, and characters that spreadsheets skip before a formula.
# Source: OWASP, "CSV Injection".
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_NEXT_FORMULA = re.compile(r"([;|\t]\s*)(?=[=+\-@＝＋－＠])")
_CHANGES = "The images were re-encoded; large ones were scaled down, and regions of some were made unrecognizable."


def asks_for_attribution(license: str | None) -> bool:
    """Return whether the license with this SPDX identifier requires attribution. An unknown `LicenseRef-…` doesn't."""
    identifier = canonical_identifier((license or "").strip())
    return identifier is not None and identifier.startswith(ATTRIBUTION_FAMILIES)


def license_url(license: str | None) -> str | None:
    """Return the URL of a license's text at Creative Commons or in SPDX's list, or None for a `LicenseRef-…`."""
    identifier = canonical_identifier((license or "").strip())
    if identifier is None or identifier.startswith("LicenseRef-"):
        return None
    if identifier in _PUBLIC_DOMAIN:
        return f"https://creativecommons.org/publicdomain/{_PUBLIC_DOMAIN[identifier]}/"
    match = _CREATIVE_COMMONS.fullmatch(identifier)
    if match is None:
        return f"https://spdx.org/licenses/{identifier}.html"
    parts = [part.lower() for part in match.groups() if part is not None]
    return f"https://creativecommons.org/licenses/{'/'.join(parts)}/"


def check_ending(uri: str) -> None:
    """Raise `UsageError` if an attribution file's extension doesn't select a format."""
    if not uri.lower().endswith(tuple(_WRITERS)):
        raise UsageError(f"expected a file name that ends in {', '.join(_WRITERS)}; got {uri!r}")


def write_attributions(rows: Iterable[Row], destination: Location) -> int:
    """Write a file with the author, license, and source of each image, and return the number of images.

    `rows` are rows of `images` with the columns id, image_id, attribution, provider, license, and source_url. They can
    be a stream. The file's extension selects CSV, JSON Lines, or Markdown. In CSV, text that a spreadsheet would run as
    a formula is prefixed with a single quote. Raises `UsageError` for any other extension.
    """
    check_ending(destination.uri)
    write = _WRITERS["." + destination.uri.lower().rpartition(".")[2]]
    with ScratchFolder() as folder:
        path = Path(folder) / "attributions"
        with path.open("w", encoding="utf-8", newline="") as file:
            count = write(map(_entry, rows), file)
        destination.put_file(path)
    return count


def write_attributions_csv(rows: Iterable[Row], file: TextIO) -> int:
    """Write attributions as CSV to a text file, and return the number of rows.

    The file must be open without newline translation.
    """
    return _write_csv(map(_entry, rows), file)


def _entry(row: Row) -> dict[str, Any]:
    entry = {**row, "image": image_name(row["id"]), "license_url": license_url(row["license"])}
    return {name: entry[name] for name in COLUMNS}


def _write_csv(entries: Iterable[Row], file: TextIO) -> int:
    line = io.StringIO(newline="")
    writer = csv.writer(line)  # quotes its line terminator's characters, which are \r and \n
    count = -1
    for row in itertools.chain([COLUMNS], ([_cell(value) for value in entry.values()] for entry in entries)):
        writer.writerow(row)
        file.write(line.getvalue().removesuffix("\r\n") + "\n")
        line.seek(0)
        line.truncate()
        count += 1
    return count


def _cell(value: Any) -> Any:
    """Convert a value for a cell. If a spreadsheet would run a text as a formula, prefix it with a single quote.

    In many countries, spreadsheets separate cells by semicolons, and some ask for the separator.
    """
    if not isinstance(value, str):
        return value
    value = _NEXT_FORMULA.sub(r"\1'", value)
    return f"'{value}" if value.startswith(_FORMULA_STARTS) else value


def _write_json_lines(entries: Iterable[Row], file: TextIO) -> int:
    return sum(1 for entry in entries if file.write(json.dumps(entry, ensure_ascii=False) + "\n"))


def _write_markdown(entries: Iterable[Row], file: TextIO) -> int:
    file.write(f"# Attributions\n\n{_CHANGES}\n\n")
    return sum(1 for entry in entries if file.write(f"- {_sentence(entry)}\n"))


def _sentence(entry: Row) -> str:
    """Format the title, author, source, and license of an image in the way that Creative Commons recommends."""
    title = _link(entry["image_id"], entry["source_url"])
    author = f" by {_plain(entry['attribution'])}" if entry["attribution"] else ""
    provider = f", from {_plain(entry['provider'])}" if entry["provider"] else ""
    license = _link(entry["license"] or "no license", entry["license_url"])
    return f"`{entry['image']}`: {title}{author}{provider}, {license}"


def _link(text: str, url: str | None) -> str:
    if url is None or not re.fullmatch(r"https?://[^\s<>\\]+", url):
        return _plain(text)
    return f"[{_plain(text)}](<{url}>)"


def _plain(text: str) -> str:
    """Escape a text from a catalog for Markdown, and replace its line breaks with spaces."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


_WRITERS: dict[str, Callable[[Iterable[Row], TextIO], int]] = {
    ".csv": _write_csv,
    ".jsonl": _write_json_lines,
    ".md": _write_markdown,
}


_CODES = {
    Reason.LICENSE_MISSING: Code.LICENSE_NOT_ALLOWED,
    Reason.LICENSE_NOT_ALLOWED: Code.LICENSE_NOT_ALLOWED,
    Reason.LICENSE_EXPIRED: Code.LICENSE_EXPIRED,
    Reason.NOT_REDISTRIBUTABLE: Code.NOT_REDISTRIBUTABLE,
    Reason.OPTED_OUT: Code.OPTED_OUT,
}


@dataclass(frozen=True)
class TermsFinding:
    """Problem with the terms of an image. `since_build` is true if the license expired after the policy date."""

    code: Code
    expected: str
    found: str
    since_build: bool = False


def judge_terms(row: Row, policy: LicensePolicy, today: date) -> Iterator[TermsFinding]:
    """Judge a row by the dataset's policy as of the day `today`, and yield the problems.

    `row` contains `license`, `redistributable`, `valid_until`, and `attribution`, and may contain `opt_out`. The values
    are as in the normalized catalog.
    """
    terms = (row["license"], row["redistributable"], row["valid_until"], row.get("opt_out"))
    verdict = replace(policy, policy_date=today).judge(*terms)
    if verdict is not None:
        reason, detail = verdict
        expected = "a license that the dataset's policy allows"
        since_build = False
        if reason is Reason.LICENSE_EXPIRED:
            since_build = row["valid_until"] >= policy.policy_date
            expected = f"a license that holds on {today.isoformat()}"
            ended = "has ended since the build" if since_build else "had ended before the build"
            detail = f"{row['license']} until {row['valid_until'].isoformat()}, which {ended}"
        elif reason is Reason.OPTED_OUT:
            expected = "no image that the catalog marks as opted out"
        yield TermsFinding(_CODES[reason], expected, detail, since_build)
    yield from judge_attribution(row)


def judge_attribution(row: Row) -> Iterator[TermsFinding]:
    """Yield a finding if the row has no attribution although its license requires one."""
    if asks_for_attribution(row["license"]) and not (row["attribution"] or "").strip():
        yield TermsFinding(Code.MISSING_ATTRIBUTION, f"an attribution, as {row['license']} requires", "none")


REGIONS = ("Africa", "Asia & Oceania", "Europe", "Latin America & Caribbean", "North America")
INCOMES = ("high", "middle", "low")


class Country(NamedTuple):
    """Country or territory. `region` is one of `REGIONS` or None, and `income` is one of `INCOMES` or None."""

    code: str
    name: str
    region: str | None
    income: str | None


@cache
def countries() -> dict[str, Country]:
    """Return all countries, keyed by code and ordered by code."""
    lines = files("segmint.catalogs").joinpath("countries.csv").read_text(encoding="utf-8").splitlines()
    rows = (Country(code, name, region or None, income or None) for code, name, region, income in csv.reader(lines[1:]))
    return {row.code: row for row in rows}


_LICENSES = frozenset(
    {
        "apache-2.0", "mit", "odbl", "pddl", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
        "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0",
        "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    }
)  # fmt: skip
_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
)


def hub_licenses(names: Iterable[str | None]) -> dict[str, Any]:
    """Return the dataset card's entries for these SPDX identifiers. None stands for images without a license.

    A license that the Hub doesn't know becomes `other`, and a missing one `unknown`.
    """
    given = set(names)
    stated = {name for name in given if name}
    licenses = sorted({name.lower() for name in stated if name.lower() in _LICENSES})
    others = sorted(name for name in stated if name.lower() not in _LICENSES)
    entries: dict[str, Any] = {"license": licenses}
    if others:
        licenses.append("other")
        entries["license_name"] = ", ".join(others)
    if stated != given or not stated:
        licenses.append("unknown")
    return entries


def size_category(images: int) -> str:
    """Return the Hub's size category for this number of images."""
    for limit, name in _SIZES:
        if images < limit:
            return name
    return "n>1B"
