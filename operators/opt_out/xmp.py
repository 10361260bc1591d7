"""Read what an XMP packet says about training, by a parser that keeps no tree.

A packet is untrusted XML: a document type, and with it every entity, is refused; nesting and texts are bounded.
"""

from xml.parsers import expat

from segmint.operators.opt_out.rules import DATA_MINING, RESERVATION

_DEEPEST = 100  # elements inside each other; RDF needs about ten
_LONGEST = 1000  # characters of a value

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_VALUES = (f"{_RDF} resource", f"{_RDF} value")
_PLUS, _TDM = (
    ("http://ns.useplus.org/", "https://ns.useplus.org/"),
    ("http://www.w3.org/ns/tdm", "https://www.w3.org/ns/tdm"),
)
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_MENTIONS = (b"DataMining", b"reservation")


class _MalformedError(Exception):
    """The packet is not XMP, or tries to be too much."""


def xmp_values(packet: bytes) -> list[tuple[str, str]]:
    """Return the fields of `rules.RULES` that a packet has, each with its value, in their order.

    A property counts wherever in the packet it is, written in any of RDF's forms: as an attribute, as an element's
    text, as a resource, or as items of a list. What follows damage says nothing; neither does a packet that tries to be
    too much.
    """
    if not packet.startswith(_UTF_16):
        packet = packet.strip(b"\0 \t\r\n")
        if not any(word in packet for word in _MENTIONS):
            return []
    found = _Found()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _refuse_document_type
    parser.StartElementHandler = found.start
    parser.EndElementHandler = found.end
    parser.CharacterDataHandler = found.text
    try:
        parser.Parse(packet, True)
    except expat.ExpatError:
        pass  # writers leave zeros or a second root behind the packet: what came before counts
    except (_MalformedError, LookupError, ValueError):  # the last two: odd encodings
        return []
    return found.values


def _refuse_document_type(*_: object) -> None:
    raise _MalformedError


class _Found:
    """The handlers of the parser, and the values that they found."""

    def __init__(self) -> None:
        self.values: list[tuple[str, str]] = []
        self._depth = 0
        self._field: str | None = None  # of the property that is open
        self._opened = 0  # the depth of its element
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
    """Return the field that a property is, by its namespace and local name.

    Writers spell both namespaces in several ways: with another case, a slash or a hash sign at the end.
    """
    namespace, _, local = name.rpartition(" ")
    if local == "DataMining" and namespace.lower().startswith(_PLUS):
        return DATA_MINING
    if local == "tdm-reservation" or (local == "reservation" and namespace.lower().startswith(_TDM)):
        return RESERVATION
    return None
