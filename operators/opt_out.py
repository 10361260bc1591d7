"""Opt-outs from training, in an image's metadata and in lists of refused images.

From top to bottom:

1. Metadata: where an image file contains XMP and C2PA.
2. Rules: which values of the metadata are opt-outs, by the table `RULES`, which is also in docs/opt-outs.md. It covers
   four vocabularies: PLUS (`plus:DataMining`, in the IPTC Photo Metadata Standard since 2023.1), the TDM Reservation
   Protocol of a W3C community group, C2PA 1.x, and CAWG 1.1.
3. Readers of the values in XMP and in C2PA.
4. Refusal lists: SHA-256 sums, URLs, and domains of images that a build must not use.

A refusal list is a text file with one entry per line: a SHA-256 sum, as `sha256sum` prints it, with or without a file
name; a URL with its scheme; or a domain, which includes its subdomains. Blank lines and lines that start with # don't
count.
"""

import hashlib
import io
import json
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import cache
from itertools import islice, pairwise
from typing import Any, Literal
from urllib.parse import unquote, urlsplit
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin

from segmint.catalogs.findings import Reason, RejectedError
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.uris import ALONE
from segmint.operators.redactions import uuids, xmp_items

MOST_XMP = 16 << 20
"""Maximum number of bytes of XMP to read per image. Further packets are ignored."""

MOST_PARTS = 100_000
"""Maximum number of segments or chunks to read. For comparison, an image of 250 MB has 30,000."""

_XMP_HEADER = b"http://ns.adobe.com/xap/1.0/\0"
_EXTENSION_HEADER = b"http://ns.adobe.com/xmp/extension/\0"  # followed by a name, the total length, and an offset
_PNG_PROFILE = b"Raw profile type "  # ImageMagick's keyword for XMP, EXIF, or IPTC
_TIFF_PACKETS, _TIFF_C2PA = (700, 34377), 52545  # XMP, and Photoshop's resources, which also contain XMP
_GIF_XMP, _GIF_XMP_END, _GIF_C2PA = b"\x21\xff\x0bXMP DataXMP", b"\x01\xff\xfe", b"\x21\xff\x0bC2PA_GIF"

_C2PA_BOX = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
_XMP_BOX = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")

_PNG_TEXTS, _PNG_PIXELS = (b"iTXt", b"zTXt", b"tEXt"), (b"IDAT", b"fdAT")
_WEBP_PIXELS = (b"VP8 ", b"VP8L", b"ALPH", b"ANMF")

_ENCODED = b"DataMining PROHIBITED"
"""Stands for XMP in an encoding that can't be decoded. Because in doubt, images count as opted out."""

_NO_FILL = re.compile(rb"[^\xff]")

_WORDS = (b"DataMining", b"reservation")
_MENTIONS = (*_WORDS, *(b"\0".join(bytes([each]) for each in word) for word in _WORDS))  # the last two are in UTF-16

Part = tuple[Literal["xmp", "c2pa"], bytes]

DATA_MINING = "plus:DataMining"

RESERVATION = "tdm:reservation"

_USES = ("ai_training", "ai_generative_training", "data_mining", "ai_inference")

TRAINING_MINING = tuple(f"{prefix}.{use}" for prefix in ("c2pa", "cawg") for use in _USES)
"""Entries that C2PA and CAWG define for their assertions `c2pa.training-mining` and `cawg.training-mining`."""

_PROHIBITED = "DMI-PROHIBITED"

DEEPEST = 100  # maximum depth of nested elements; RDF needs about ten

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

_SETTINGS = {
    "core": {"allowed_network_hosts": [], "decode_identity_assertions": False},
    "verify": {
        "verify_after_reading": False,
        "verify_trust": False,
        "remote_manifest_fetch": False,
        "ocsp_fetch": False,
    },
}

_C2PA_LABELS = ("c2pa.training-mining", "cawg.training-mining")

_JSON_LD = re.compile(r"stds\.|.*\.metadata(?:\.v\d+)?(?:__\d+)?$")  # C2PA's own, CAWG's, and those of other owners

_NAMESPACES = {"plus": _PLUS[0], "tdm": _TDM[0]}

DETAIL = "a refusal list names its bytes, its URL, or its domain"
"""Detail of each refused row. It doesn't say which list or entry, because lists may be confidential."""

_SHA256 = re.compile(r"\\?([0-9a-fA-F]{64})(?:\s.*)?", re.ASCII)  # after \, sha256sum escapes the file's name

_DOMAIN = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?\.)+[a-z0-9-]*[a-z0-9]", re.ASCII)

_SHOWN = 80  # maximum length of a line in an error


@dataclass(frozen=True)
class Metadata:
    """Metadata of an image that may contain an opt-out.

    `packets` contains parts of the file that mention a field of opt-outs. Each packet is either XMP or a larger part
    that contains XMP, such as EXIF. `c2pa` is the image's MIME type if the image contains a C2PA manifest, and None
    otherwise.
    """

    packets: tuple[bytes, ...] = ()
    c2pa: str | None = None


def find_metadata(data: bytes) -> Metadata:
    """Return the metadata of a JPEG, PNG, WebP, TIFF, GIF, HEIC, or AVIF, up to the first damage in its container.

    The packets themselves may be damaged. BMP supports neither XMP nor C2PA.
    """
    if data[4:8] == b"ftyp":
        return _collect("image/avif" if data[8:12] in (b"avif", b"avis") else "image/heic", _in_boxes(data))
    for prefixes, mime, parts in _CONTAINERS:
        if data.startswith(prefixes):
            return _collect(mime, parts(data))
    return Metadata()


def _collect(mime: str, parts: Iterator[Part]) -> Metadata:
    packets: list[bytes] = []
    room = MOST_XMP
    c2pa = None
    for kind, content in parts:
        if kind == "c2pa":
            c2pa = mime
        elif len(content) <= room and any(word in content for word in _MENTIONS):
            packets.append(content)
            room -= len(content)
    return Metadata(tuple(packets), c2pa)


def _in_jpeg(data: bytes) -> Iterator[Part]:
    """Read the segments before the scan (ITU-T T.81, B.1.1). APP11 contains C2PA, and all others may contain XMP.

    XMP is in a separate APP1, in EXIF's tag 700 (APP1), or in Photoshop's resources (APP13).
    """
    extensions: dict[bytes, dict[int, bytes]] = {}  # keyed by name, then by offset
    for marker, content in islice(_jpeg_segments(data), MOST_PARTS):
        if marker == 0xEB and content.startswith(b"JP"):
            yield "c2pa", b""
        elif marker == 0xE1 and content.startswith(_XMP_HEADER):
            yield "xmp", content[len(_XMP_HEADER) :]
        elif marker == 0xE1 and content.startswith(_EXTENSION_HEADER):
            piece = content[len(_EXTENSION_HEADER) :]
            if len(piece) > 40:
                extensions.setdefault(piece[:32], {}).setdefault(int.from_bytes(piece[36:40]), piece[40:])
        elif marker >= 0xE0:
            yield "xmp", content
    for pieces in extensions.values():  # a packet of over 64 KB spans several segments
        yield "xmp", b"".join(piece for _, piece in sorted(pieces.items()))


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in (0xD9, 0xDA):  # the end, or the first scan
            return
        if marker == 0xFF:  # fill bytes
            behind = _NO_FILL.search(data, position)
            position = behind.start() - 1 if behind else len(data)
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a length
            position += 2
            continue
        length = int.from_bytes(data[position + 2 : position + 4])
        yield marker, data[position + 4 : position + 2 + length]
        position += 2 + max(length, 2)


def _in_png(data: bytes) -> Iterator[Part]:
    """Read all chunks (PNG specification, section 5) but pixels, because XMP has been in chunks of several names."""
    room = MOST_XMP  # bytes left for inflated texts
    for kind, start, stop in islice(png_chunks(data), MOST_PARTS):
        if kind == b"caBX":
            yield "c2pa", b""
        elif kind not in _PNG_PIXELS:
            packet = _png_packet(kind, data[start:stop], room)
            room -= len(packet) if kind in (b"iTXt", b"zTXt") else 0
            yield "xmp", packet


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the kind of each chunk of a PNG, and where its content starts and stops."""
    position = 8
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        yield kind, position + 8, position + 8 + length
        position += 12 + length


def _png_packet(kind: bytes, content: bytes, room: int) -> bytes:
    if kind not in _PNG_TEXTS:
        return content
    keyword, _, text = content.partition(b"\0")
    is_packed = kind == b"zTXt" or (kind == b"iTXt" and text[:1] == b"\1")
    if kind == b"iTXt":
        text = b"\0".join(text[2:].split(b"\0", 2)[2:])  # after the language and the translated keyword
    try:
        if is_packed:
            text = zlib.decompressobj().decompress(text[kind == b"zTXt" :], room) if room > 0 else b""
        return bytes.fromhex(b"".join(text.split()[2:]).decode()) if keyword.startswith(_PNG_PROFILE) else text
    except (zlib.error, ValueError):
        return b""


def _in_webp(data: bytes) -> Iterator[Part]:
    """Read all RIFF chunks but pixels, because some software misspells the name of XMP."""
    for kind, start, stop in islice(webp_chunks(data), MOST_PARTS):
        if kind == b"C2PA":
            yield "c2pa", b""
        elif kind not in _WEBP_PIXELS:
            yield "xmp", data[start:stop]


def webp_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the kind of each chunk of a WebP, and where its content starts and stops."""
    position = 12
    while position + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        yield kind, position + 8, position + 8 + length
        position += 8 + length + length % 2


def _in_tiff(data: bytes) -> Iterator[Part]:
    """Read the tags of the first page."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 8 if data[2] != 43 and data[3] != 43 else 16])
        stream = io.BytesIO(data)
        stream.seek(tags.next)
        tags.load(stream)
        packets, has_c2pa = [tags.get(tag) for tag in _TIFF_PACKETS], _TIFF_C2PA in tags
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - Pillow raises anything for a damaged TIFF, which says nothing
        return
    if has_c2pa:
        yield "c2pa", b""
    for packet in packets:
        if isinstance(packet, bytes | str):
            yield "xmp", packet if isinstance(packet, bytes) else packet.encode("latin-1")  # as Pillow decodes text


def _in_gif(data: bytes) -> Iterator[Part]:
    """Find the application extensions. A packet is stored verbatim, and the trailer after it makes readers skip it."""
    if _GIF_C2PA in data:
        yield "c2pa", b""
    for part in data.split(_GIF_XMP, MOST_PARTS)[1:]:
        yield "xmp", part.partition(_GIF_XMP_END)[0]


def _in_boxes(data: bytes) -> Iterator[Part]:
    """Read the items of HEIC and AVIF, and the boxes of XMP (XMP, part 3) and C2PA (C2PA specification, A.5)."""
    for kind, content in uuids(data):
        if kind == _C2PA_BOX:
            yield "c2pa", b""
        elif kind == _XMP_BOX:
            yield "xmp", content
    for packet in xmp_items(data, MOST_XMP):
        yield "xmp", _ENCODED if packet is None else packet


_CONTAINERS: tuple[tuple[bytes | tuple[bytes, ...], str, Callable[[bytes], Iterator[Part]]], ...] = (
    (b"\xff\xd8\xff", "image/jpeg", _in_jpeg),
    (b"\x89PNG\r\n\x1a\n", "image/png", _in_png),
    (b"RIFF", "image/webp", _in_webp),
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "image/tiff", _in_tiff),
    ((b"GIF87a", b"GIF89a"), "image/gif", _in_gif),
)


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

    A value is a term, possibly at the end of a URI or behind a prefix (`http://ns.useplus.org/ldf/vocab/DMI-ALLOWED`,
    `plus:DMI-ALLOWED`). For PLUS, it may also be the label of a prohibition that tools show to users ("Prohibited for
    AI/ML training"), or any text that contains the term of a prohibition.
    """
    value = value.strip().rstrip("/#")
    prohibition = re.search(f"{_PROHIBITED}.*", value, re.IGNORECASE | re.DOTALL)
    if field == DATA_MINING and prohibition is not None:
        value = prohibition[0]
    elif field == DATA_MINING and value.lower().startswith("prohibited"):
        value = _PROHIBITED
    else:
        value = re.split("[/#:]", value)[-1]
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
        if self._depth > DEEPEST:
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
            if name.startswith(_C2PA_LABELS):
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


@dataclass(frozen=True, eq=False)
class RefusalLists:
    """Entries of all refusal lists, as sorted hashes of 32 bytes, (E,) S32."""

    entries: NDArray[np.bytes_]

    def refuses(self, urls: Iterable[str | None], sha256: str | None) -> bool:
        """Return whether the lists name one of an image's URLs, one of their domains, or the SHA-256 of its bytes."""
        if not len(self.entries):
            return False
        keys = [key for url in urls if url is not None for key in _keys_of_url(url)]
        if sha256 is not None:
            keys.append(bytes.fromhex(sha256))
        wanted = np.array(keys, "S32")
        places = np.minimum(np.searchsorted(self.entries, wanted), len(self.entries) - 1)
        return bool((self.entries[places] == wanted).any())


NO_LISTS = RefusalLists(np.empty(0, "S32"))
"""Lists of a build without `license.refuse`."""


def read_refusal_lists(files: Iterable[Location]) -> RefusalLists:
    """Read refusal lists.

    Raises `UsageError` if a file doesn't exist, isn't UTF-8 text, or contains no entry, or if a line is something else.
    """
    keys = [key for file in files for key in _read(file)]
    return RefusalLists(np.unique(np.array(keys, "S32"))) if keys else NO_LISTS


def _read(file: Location) -> list[bytes]:
    try:
        text = file.read().decode("utf-8-sig")
    except NotFoundError as error:
        raise UsageError(f"license.refuse: {file} doesn't exist") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"license.refuse: {file} isn't UTF-8 text") from error
    keys = []
    for number, line in enumerate(text.split("\n"), 1):
        entry = line.strip()
        if entry and not entry.startswith("#"):
            key = _key_of_entry(entry)
            if key is None:
                raise UsageError(
                    f"license.refuse: line {number} of {file} is {entry[:_SHOWN]!r}: expected a SHA-256 sum of 64 "
                    "hexadecimal digits, a URL such as https://example.com/a.jpg, or a domain such as example.com"
                )
            keys.append(key)
    if not keys:
        raise UsageError(f"license.refuse: {file} contains no entry")
    return keys


def _key_of_entry(entry: str) -> bytes | None:
    """Return the hash under which an entry is stored, or None if the entry isn't valid."""
    if (match := _SHA256.fullmatch(entry)) is not None:
        return bytes.fromhex(match[1])
    if "://" in entry:
        url = _plain_url(entry)
        return None if url is None else _key("url", url[1])
    host = _plain_host(entry)
    return _key("domain", host) if host is not None and _DOMAIN.fullmatch(host) else None


def _keys_of_url(text: str) -> Iterator[bytes]:
    """Yield the hashes that would refuse a URL: its own, and those of its domain and the domains that contain it."""
    text = text.strip().lstrip("/")
    url = _plain_url(text if re.match(ALONE, text) else f"http://{text}")  # pages may be without a scheme
    if url is None:
        return
    host, plain = url
    yield _key("url", plain)
    while host:
        yield _key("domain", host)
        host = host.partition(".")[2]


def _plain_url(text: str) -> tuple[str, str] | None:
    """Return a URL's host and the form in which two URLs of the same object are equal. None if it isn't a URL.

    The form has no fragment, user, default port, or percent escapes, a host in lower case, and `http` for `https`.
    """
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError:
        return None
    host = _plain_host(parts.hostname or "")
    if not parts.scheme or not host:
        return None
    scheme = "http" if parts.scheme == "https" else parts.scheme
    where = host if port in (None, 80, 443) else f"{host}:{port}"
    query = f"?{unquote(parts.query)}" if parts.query else ""
    return host, f"{scheme}://{where}{unquote(parts.path or '/')}{query}"


def _plain_host(text: str) -> str | None:
    """Return a host in lower case, without a final dot, and in ASCII. None if it can't be a host."""
    host = text.strip().rstrip(".").lower()
    try:
        return host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        return None


def _key(kind: str, text: str) -> bytes:
    return hashlib.sha256(f"{kind} {text}".encode()).digest()
