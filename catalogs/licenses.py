"""SPDX license identifiers, and the policy that accepts or rejects an image by its license before it is read."""

import difflib
import re
from dataclasses import dataclass
from datetime import date
from functools import lru_cache

from segmint.catalogs.reasons import Reason
from segmint.infra.errors import UsageError
from segmint.infra.uris import redact

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
