"""Detection of opt-outs from training in an image's metadata, according to the table `RULES`.

docs/opt-outs.md contains the same table. The rules cover four vocabularies: PLUS (`plus:DataMining`, in the IPTC Photo
Metadata Standard since 2023.1), the TDM Reservation Protocol of a W3C community group, C2PA 1.x, and CAWG 1.1.
"""

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import cache
from itertools import islice, pairwise
from typing import Any
from xml.parsers import expat

from segmint.catalogs.reasons import Reason, RejectedError
from segmint.infra.errors import SegmintError
from segmint.operators.opt_out.containers import find_metadata

DATA_MINING = "plus:DataMining"
RESERVATION = "tdm:reservation"

_USES = ("ai_training", "ai_generative_training", "data_mining", "ai_inference")

TRAINING_MINING = tuple(f"{prefix}.{use}" for prefix in ("c2pa", "cawg") for use in _USES)
"""Entries that C2PA and CAWG define for their assertions `c2pa.training-mining` and `cawg.training-mining`."""

_PROHIBITED = "DMI-PROHIBITED"


class OptOutVerdict(StrEnum):
    """Meaning of a field's value."""

    ALLOWED = "allowed"
    OPTED_OUT = "opted out"
    NOTHING = "says nothing"


@dataclass(frozen=True)
class OptOutRule:
    """Verdict on a value of certain fields. A trailing asterisk matches all values that begin with the prefix."""

    fields: tuple[str, ...]
    value: str
    verdict: OptOutVerdict


RULES = (
    OptOutRule((DATA_MINING,), "DMI-UNSPECIFIED", OptOutVerdict.NOTHING),
    OptOutRule((DATA_MINING,), "DMI-ALLOWED", OptOutVerdict.ALLOWED),
    OptOutRule((DATA_MINING,), "DMI-PROHIBITED-AIMLTRAINING", OptOutVerdict.OPTED_OUT),
    OptOutRule((DATA_MINING,), "DMI-PROHIBITED-GENAIMLTRAINING", OptOutVerdict.OPTED_OUT),
    OptOutRule((DATA_MINING,), "DMI-PROHIBITED-EXCEPTSEARCHENGINEINDEXING", OptOutVerdict.OPTED_OUT),
    OptOutRule((DATA_MINING,), "DMI-PROHIBITED", OptOutVerdict.OPTED_OUT),
    OptOutRule((DATA_MINING,), "DMI-PROHIBITED-SEECONSTRAINT", OptOutVerdict.OPTED_OUT),
    OptOutRule((DATA_MINING,), "DMI-PROHIBITED-SEEEMBEDDEDRIGHTSEXPR", OptOutVerdict.OPTED_OUT),
    OptOutRule((DATA_MINING,), "DMI-PROHIBITED-SEELINKEDRIGHTSEXPR", OptOutVerdict.OPTED_OUT),
    OptOutRule((DATA_MINING,), "DMI-PROHIBITED*", OptOutVerdict.OPTED_OUT),
    OptOutRule((RESERVATION,), "0", OptOutVerdict.ALLOWED),
    OptOutRule((RESERVATION,), "1", OptOutVerdict.OPTED_OUT),
    OptOutRule(TRAINING_MINING, "allowed", OptOutVerdict.ALLOWED),
    OptOutRule(TRAINING_MINING, "notAllowed", OptOutVerdict.OPTED_OUT),
    OptOutRule(TRAINING_MINING, "constrained", OptOutVerdict.OPTED_OUT),
)
"""Rules in order. The first rule that matches a field and its value decides. Values without a match are ignored."""


@dataclass(frozen=True)
class OptOut:
    """A metadata field that forbids training with its image, and the field's value. Both are spelled as in `RULES`."""

    field: str
    value: str

    @property
    def detail(self) -> str:
        """Sentence that is stored with the verdict. It contains only words of the vocabularies, no other metadata."""
        return f"the image's metadata forbids training with it: {self.field} is {self.value}"


def rule_for(field: str, value: str) -> OptOutRule | None:
    """Return the rule that decides on a field's value, or None if no rule applies. Case doesn't matter.

    A PLUS value is a URI that ends in the term (`http://ns.useplus.org/ldf/vocab/DMI-ALLOWED`), the bare term, or the
    label of a prohibition that tools show to users ("Prohibited for AI/ML training").
    """
    value = value.strip()
    if field == DATA_MINING:
        is_label = value.lower().startswith("prohibited")
        value = _PROHIBITED if is_label else value.rstrip("/").rpartition("/")[2]
    fitting = (rule for rule in RULES if field in rule.fields and fnmatchcase(value.lower(), rule.value.lower()))
    return next(fitting, None)


def opt_out(data: bytes) -> OptOut | None:
    """Return the first metadata field of an image that forbids training, or None. XMP is searched before C2PA.

    A single field that forbids training is enough, regardless of the other fields. No pixels are decoded.

    The bytes are untrusted and the C2PA library is native code, so call this function only in a child process. Raises
    `C2paMissingError` if the image has a manifest and the library can't be loaded.
    """
    for field, value in _values(data):
        rule = rule_for(field, value)
        if rule is not None and rule.verdict is OptOutVerdict.OPTED_OUT:
            return OptOut(field, rule.value)
    return None


def refuse_opted_out(data: bytes) -> None:
    """Raise `RejectedError` (`opted_out`) if `opt_out` finds a field that forbids training."""
    found = opt_out(data)
    if found is not None:
        raise RejectedError(Reason.OPTED_OUT, found.detail)


def _values(data: bytes) -> Iterator[tuple[str, str]]:
    metadata = find_metadata(data)
    for packet in metadata.packets:
        yield from xmp_values(packet)
    if metadata.c2pa is not None:
        yield from c2pa_values(data, metadata.c2pa)


_DEEPEST = 100  # maximum depth of nested elements; RDF needs about ten
_LONGEST = 1000  # maximum number of characters in a value

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_VALUES = (f"{_RDF} resource", f"{_RDF} value")
_PLUS, _TDM = (
    ("http://ns.useplus.org/", "https://ns.useplus.org/"),
    ("http://www.w3.org/ns/tdm", "https://www.w3.org/ns/tdm"),
)
_ROOT = re.compile(r"<(?:[\w.-]+:)?xmpmeta[\s>]")
_MOST_ROOTS = 100
_FORBIDDEN = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")  # characters that XML can't contain
_AMPERSAND = re.compile(r"&(?!(?:amp|lt|gt|quot|apos|#\d+|#x[0-9a-fA-F]+);)")  # doesn't begin a reference
_RESERVED = re.compile(r"\breservation\W{1,9}1\b")
_JUNK_BEHIND = expat.errors.codes[expat.errors.XML_ERROR_JUNK_AFTER_DOC_ELEMENT]


class _MalformedError(Exception):
    """Raised when a packet isn't XMP or exceeds the limits."""


def xmp_values(packet: bytes) -> list[tuple[str, str]]:
    """Return each field of `RULES` that occurs in an XMP packet, with its value, in the packet's order.

    This function finds a property anywhere in the packet and in each of RDF's forms: an attribute, an element's text, a
    resource, or items of a list. It ignores invalid characters and bytes around the XML. If a packet can't be parsed or
    exceeds the limits, and its text contains the words of an opt-out, the result includes an opt-out.
    """
    for word in ("DataMining", "reservation"):
        if (at := packet.find(word.encode("utf-16-le"))) >= 0:  # big-endian text begins one byte earlier
            packet = packet[at % 2 :].decode("utf-16-le", "replace").encode()
            break
    text = _AMPERSAND.sub("&amp;", _FORBIDDEN.sub(" ", packet.decode("utf-8-sig", "replace"))).strip()
    starts = [root.start() for root in islice(_ROOT.finditer(text), _MOST_ROOTS)] or [0]
    values: list[tuple[str, str]] = []
    is_damaged = False
    for start, end in pairwise([*starts, len(text)]):
        found, is_whole = _parse(text[start:end])
        values += found
        is_damaged |= not is_whole
    if is_damaged and not any((rule := rule_for(*each)) and rule.verdict is OptOutVerdict.OPTED_OUT for each in values):
        if "DataMining" in text and "prohibited" in text.lower():
            values.append((DATA_MINING, f"{_PROHIBITED}-UNREADABLE"))
        elif "tdm" in text.lower() and _RESERVED.search(text):
            values.append((RESERVATION, "1"))
    return values


def _parse(text: str) -> tuple[list[tuple[str, str]], bool]:
    """Return the fields in an XML document, up to any damage, and whether the document is intact."""
    found = _XmpValues()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _refuse_document_type
    parser.StartElementHandler = found.start
    parser.EndElementHandler = found.end
    parser.CharacterDataHandler = found.text
    try:
        parser.Parse(text, True)
    except expat.ExpatError as error:
        return found.values, error.code == _JUNK_BEHIND  # writers leave zeros after the packet
    except (_MalformedError, ValueError):
        return [], False
    return found.values, True


def _refuse_document_type(*_: object) -> None:
    raise _MalformedError


class _XmpValues:
    """Handlers for the XML parser, which collect values."""

    def __init__(self) -> None:
        self.values: list[tuple[str, str]] = []
        self._depth = 0
        self._field: str | None = None  # field of the property that is being parsed
        self._opened = 0  # depth of that property's element
        self._text: list[str] = []
        self._room = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _MalformedError
        if self._field is None:
            self._field, self._opened = _field(name), self._depth
        self._text, self._room = [], _LONGEST
        for key, value in attributes.items():
            field = self._field if key in _VALUES else _field(key)
            if field is not None:
                self.values.append((field, value[:_LONGEST]))

    def text(self, text: str) -> None:
        if self._field is not None and self._room > 0:
            self._text.append(text[: self._room])
            self._room -= len(text)

    def end(self, name: str) -> None:
        value = "".join(self._text).strip()
        if self._field is not None and value:
            self.values.append((self._field, value))
        self._text = []
        if self._depth == self._opened:
            self._field = None
        self._depth -= 1


def _field(name: str) -> str | None:
    """Return the field that a property with this namespace and local name belongs to, or None.

    Software spells both namespaces in several ways: for example, in a different case, or with a trailing slash or hash
    sign.
    """
    namespace, _, local = name.rpartition(" ")
    if local == "DataMining" and namespace.lower().startswith(_PLUS):
        return DATA_MINING
    if local == "tdm-reservation" or (local == "reservation" and namespace.lower().startswith(_TDM)):
        return RESERVATION
    return None


_SETTINGS = {
    "core": {"allowed_network_hosts": [], "decode_identity_assertions": False},
    "verify": {
        "verify_after_reading": False,
        "verify_trust": False,
        "remote_manifest_fetch": False,
        "ocsp_fetch": False,
    },
}

_TRAINING_MINING = ("c2pa.training-mining", "cawg.training-mining")
_JSON_LD = re.compile(r"stds\.|.*\.metadata(?:\.v\d+)?(?:__\d+)?$")  # C2PA's own, CAWG's, and those of other owners
_NAMESPACES = {"plus": _PLUS[0], "tdm": _TDM[0]}


class C2paMissingError(SegmintError):
    """Raised when an image has a manifest but the library that reads it can't be loaded. This isn't a verdict."""


def c2pa_values(data: bytes, mime: str) -> list[tuple[str, str]]:
    """Return the entries of an image's training-mining assertions, each with its `use`, and its metadata fields.

    The active manifest comes first, followed by the manifests of the image's ingredients. If the active manifest can't
    be read, and the image's bytes contain the words of an opt-out, the result includes an opt-out. Raises
    `C2paMissingError`.
    """
    library, context = load_library()
    try:
        with library.Reader(mime, io.BytesIO(data), context=context) as reader:
            store = json.loads(reader.json())
    except (library.C2paError, ValueError, RecursionError):
        store = {}
    if _mapping(store).get("active_manifest") in _mapping(_mapping(store).get("manifests")):
        return list(_uses(store))
    named = [name for name in TRAINING_MINING if name.encode() in data] if b"notAllowed" in data else []
    prohibits = b"DataMining" in data and b"PROHIBITED" in data
    return [*((name, "notAllowed") for name in named), *[(DATA_MINING, f"{_PROHIBITED}-UNREADABLE")] * prohibits]


@cache
def load_library() -> tuple[Any, Any]:
    """Load the C2PA library. Return it and the context with the settings for reading."""
    try:
        import c2pa

        return c2pa, c2pa.Context.from_dict(_SETTINGS)
    except Exception as error:
        raise C2paMissingError(
            "an image has a C2PA manifest, but c2pa-python, which reads it, can't be loaded here "
            f"({type(error).__name__}: {error}). Run `pip install 'segmint[build]' -c constraints.txt`"
        ) from error


def _uses(store: Any) -> Iterator[tuple[str, str]]:
    manifests = _mapping(_mapping(store).get("manifests"))
    active = _mapping(store).get("active_manifest")
    for label in sorted(manifests, key=lambda label: (label != active, label)):
        assertions = _mapping(manifests[label]).get("assertions")
        for assertion in assertions if isinstance(assertions, list) else []:
            name, content = str(_mapping(assertion).get("label")), _mapping(_mapping(assertion).get("data"))
            # Labels may have a suffix: a number for another assertion of the same kind, or a version for a newer kind.
            if name.startswith(_TRAINING_MINING):
                yield from _entries(content)
            if _JSON_LD.match(name):
                yield from _properties(content, _NAMESPACES | _mapping(content.get("@context")))


def _entries(content: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the entries of an assertion. They are in a map `entries`, or at the top level in CAWG's first version."""
    for name, entry in {**content, **_mapping(content.get("entries"))}.items():
        use = _mapping(entry).get("use")
        if isinstance(use, str):
            yield name, use


def _properties(node: Any, context: dict[str, Any], field: str | None = None) -> Iterator[tuple[str, str]]:
    """Yield the XMP fields at any depth of a JSON-LD document. `context` maps prefixes to namespaces."""
    if isinstance(node, list):
        node = dict(enumerate(node))
    for key, value in _mapping(node).items():
        local = re.split("[:/#]", str(key))[-1]
        prefix = str(key).removesuffix(local)
        yield from _properties(value, context, field or _field(f"{context.get(prefix.rstrip(':'), prefix)} {local}"))
    if field is not None and not isinstance(node, dict):
        yield field, str(node)[:_LONGEST]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
