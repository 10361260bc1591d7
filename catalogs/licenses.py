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
_VERSION = re.compile(r"-v?\d+(\.\d+)*")
_SIMILAR = 0.6  # difflib's ratio: 2 × characters in common / characters of both
_ALMOST = 0.8  # as `_SIMILAR`, for texts with other letters
_TERMS = "by nc nd sa"  # in the order of SPDX's identifiers
_NOISE = frozenset({"the", "a", "license", "licence", "version", "international", "unported", "generic", "universal"})
_CC0 = frozenset({"cc", "cc0", "zero", "0", "1", "1.0", "public", "domain", "dedication", "waiver"})
_MARK = frozenset({"cc", "pdm", "public", "domain", "mark", "1", "1.0"})
_PUBLIC_DOMAIN = frozenset({"cc0", "zero", "pdm", "mark"})
_FLICKR = re.compile(r"attribution(-\w+)* license")  # Flickr's names, which mean version 2.0
_ABBREVIATIONS = tuple(
    (re.compile(pattern), short)
    for pattern, short in (
        (r"creative[\s_-]*commons", "cc"),
        (r"cc[\s_-]*(zero|0)(?![a-z0-9.])", "cc0"),
        (r"attribution", "by"),
        (r"non[\s_-]*commercial", "nc"),
        (r"share[\s_-]*alike", "sa"),
        (r"no[\s_-]*deriv(ative)?s?([\s_-]*works)?", "nd"),
    )
)
_IS_URL = re.compile(r"(https?:)?//|www\.|\w+\.org/")
_HOST = r"(?:https?:)?(?://)?(?:www\.)?"
_CC_URL = re.compile(
    _HOST + r"creativecommons\.org/(?:licenses|publicdomain)/([a-z-]+)/(\d\.\d)(?:/([a-z]{2,3}))?"
    r"(?:/(?:deed|legalcode|rdf)(?:\.[\w-]+)?)?/?(?:[?#].*)?"
)
_LISTED_URL = re.compile(_HOST + r"(?:spdx|opensource)\.org/licenses?/([\w.+-]+?)(?:\.html|\.json|\.txt)?/?")
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

    Names and URLs of Creative Commons are understood as public collections write them. Any other text must be almost
    an identifier. A suggestion is for people: no text is accepted because of it.
    """
    if len(text) > LONGEST:
        return None
    known = spdx_identifiers()
    plain = text.strip().lower()
    if _IS_URL.match(plain):
        return known.get(_of_url(plain).lower())
    words = _words(plain)
    if "by" in words or _PUBLIC_DOMAIN.intersection(words):
        return _of_creative_commons(plain, words)
    wanted = "-".join(word for word in re.split(r"[\s_]+", plain) if word.strip(",") not in _NOISE).replace(",-", "-")
    if wanted in known:
        return known[wanted]
    longest = max(map(len, known))
    if len(wanted) > longest and 2 * longest < _SIMILAR * (longest + len(wanted)):
        return None  # too long to be similar to any identifier, which difflib would only find out slowly
    if family := _newest(wanted):
        return family
    close = difflib.get_close_matches(wanted, known, n=1, cutoff=_SIMILAR)
    if not close or wanted == "unlicensed":  # the opposite of "Unlicense"
        return None
    is_extended = wanted.startswith(close[0]) and not any(map(str.isalpha, wanted[len(close[0]) :]))
    is_typo = len(wanted) > 3 and difflib.SequenceMatcher(None, wanted, close[0]).ratio() >= _ALMOST
    return known[close[0]] if is_extended or is_typo else None


def _newest(family: str) -> str | None:
    """Return the newest version of a family, because "CC-BY" means CC-BY-4.0 more often than CC-BY-1.0."""
    known = spdx_identifiers()
    versions = sorted(key for key in known if key.startswith(family) and _VERSION.fullmatch(key, len(family)))
    return known[versions[-1]] if versions else None


def _words(text: str) -> list[str]:
    """Return the words of a license's name, with Creative Commons' abbreviations: `cc`, `by`, `nc`, `nd`, `sa`."""
    for pattern, short in _ABBREVIATIONS:
        text = pattern.sub(short, text)
    text = re.sub(r"(?<=[\W_]\d)[-_, ](?=\d(?![^\W_]))", ".", text)  # a version as some collections write it: 4_0
    return re.findall(r"[^\W_]+(?:\.\d+)*", text)


def _of_url(url: str) -> str:
    """Return the text that is an identifier if the URL is a license's."""
    if found := _LISTED_URL.fullmatch(url):
        return found[1]
    if not (found := _CC_URL.fullmatch(url)):
        return ""
    kind, version, port = found.groups()
    terms = sorted(kind.split("-"), key=_TERMS.find)
    name = {"zero": "cc0", "mark": "cc-pdm"}.get(kind, f"cc-{'-'.join(terms)}")
    return f"{name}-{version}" + (f"-{port}" if port else "")


def _of_creative_commons(text: str, words: list[str]) -> str | None:
    """Return the identifier of a license of Creative Commons by the words of its name."""
    known = spdx_identifiers()
    others = [word for word in words if word not in _NOISE]
    names = set(others)
    if names <= _CC0 and ("cc0" in names or names >= {"cc", "zero"}):
        return known.get("cc0-1.0")
    if names <= _MARK and ("pdm" in names or names >= {"public", "domain", "mark"}):
        return known.get("cc-pdm-1.0")
    terms = [word for word in others if word in _TERMS.split()]
    versions = {word.removeprefix("v") for word in others if word.removeprefix("v")[:1].isdigit()}
    port = [word for word in others if word != "cc" and word not in terms and not word.removeprefix("v")[:1].isdigit()]
    unique = list(dict.fromkeys(terms))
    if text == "attribution" or "by" not in unique or terms not in (unique, unique * 2) or len(versions) > 1:
        return None  # of another license, or of several
    if port and port != others[-1:]:
        return None
    name = "-".join(["cc", *sorted(unique, key=_TERMS.find)])
    if not versions and not port:
        return known.get(f"{name}-2.0") if _FLICKR.fullmatch(text) else _newest(name)
    version = "".join(versions)
    version += "" if "." in version else ".0"
    return known.get("-".join([name, version, *port]))


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
