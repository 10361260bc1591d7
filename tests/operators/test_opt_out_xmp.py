"""XMP packets: every form of a property is read, and nothing that a packet is made of does harm."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segmint.operators.opt_out import rule_for, xmp_values
from tests.support.signed_images import PLUS, VOCABULARY, packet

PROHIBITED = f"{VOCABULARY}DMI-PROHIBITED"
FOUND = [("plus:DataMining", PROHIBITED)]

FORMS = {
    "text": f"<plus:DataMining>\n {PROHIBITED}\n</plus:DataMining>",
    "resource": f'<plus:DataMining rdf:resource="{PROHIBITED}"/>',
    "list": f"<plus:DataMining><rdf:Bag><rdf:li>{PROHIBITED}</rdf:li></rdf:Bag></plus:DataMining>",
    "list of resources": f'<plus:DataMining><rdf:Seq><rdf:li rdf:resource="{PROHIBITED}"/></rdf:Seq></plus:DataMining>',
    "value": f'<plus:DataMining rdf:parseType="Resource"><rdf:value>{PROHIBITED}</rdf:value></plus:DataMining>',
    "references": "<plus:DataMining>" + "".join(f"&#{ord(each)};" for each in PROHIBITED) + "</plus:DataMining>",
    "cdata": f"<plus:DataMining><![CDATA[{PROHIBITED}]]></plus:DataMining>",
    "another prefix": f'<p:DataMining xmlns:p="{PLUS.upper().replace("HTTP", "http")}">{PROHIBITED}</p:DataMining>',
}


@pytest.mark.parametrize("form", FORMS)
def test_a_property_is_found_in_each_form(form: str) -> None:
    found = xmp_values(packet("<rdf:other>text</rdf:other>" + FORMS[form] + "<tdm:policy>https://x</tdm:policy>"))
    assert found == FOUND


def test_a_property_is_found_as_an_attribute_and_more_than_once() -> None:
    as_attribute = packet("").replace(
        b"rdf:about", f'plus:DataMining="{PROHIBITED}" tdm:reservation="1" rdf:about'.encode()
    )
    assert xmp_values(as_attribute) == [*FOUND, ("tdm:reservation", "1")]
    assert xmp_values(packet("<tdm:reservation>0</tdm:reservation>" * 2)) == [("tdm:reservation", "0")] * 2


@pytest.mark.parametrize(
    "address", ["http://www.w3.org/ns/tdmrep", "http://www.w3.org/ns/tdmrep#", "https://www.w3.org/ns/tdmrep/"]
)
def test_the_namespace_of_tdm_is_known_in_each_spelling(address: str) -> None:
    written = packet(f'<t:reservation xmlns:t="{address}">1</t:reservation>')
    assert xmp_values(written) == [("tdm:reservation", "1")]
    assert xmp_values(packet('<o:tdm-reservation xmlns:o="https://example.org/">1</o:tdm-reservation>')) == [
        ("tdm:reservation", "1")
    ]


def test_other_namespaces_say_nothing() -> None:
    assert xmp_values(packet('<o:reservation xmlns:o="https://example.org/">1</o:reservation>')) == []
    assert xmp_values(packet(f'<o:DataMining xmlns:o="https://example.org/">{PROHIBITED}</o:DataMining>')) == []


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_other_encodings_are_read(encoding: str) -> None:
    assert xmp_values(packet(FORMS["text"]).decode("utf-8").replace("\ufeff", "").encode(encoding)) == FOUND


def test_padding_around_a_packet_does_not_matter() -> None:
    assert xmp_values(b"\n" + packet(FORMS["text"]) + b" \n" * 2000 + b"\0") == FOUND


LAUGHS = '<!ENTITY a "ha">' + "".join(f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9))
HOSTILE = {
    "billion laughs": f"<!DOCTYPE x [{LAUGHS}]><x>DataMining &j;</x>".encode(),
    "external entity": b'<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]><x>DataMining &f;</x>',
    "external document type": b'<!DOCTYPE x SYSTEM "http://127.0.0.1:1/x"><x>DataMining</x>',
    "document type": f'<!DOCTYPE x><x xmlns:p="{PLUS}" p:DataMining="DMI-ALLOWED"/>'.encode(),
    "no text": packet("DataMining").replace(b"Data", b"\xff\xfeDataMining"),
    "no field": packet("DMI-PROHIBITED <odd:x/> reservation 1").replace(b"tdm", b"t"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_or_malformed_packet_says_nothing(name: str) -> None:
    assert xmp_values(HOSTILE[name]) == []


UNPARSABLE = {
    "deep": packet("<rdf:a>" * 200_000 + FORMS["text"] + "</rdf:a>" * 200_000),
    "unknown prefix": packet("<odd:x/>" + FORMS["text"]),
}


@pytest.mark.parametrize("name", UNPARSABLE)
def test_in_a_packet_that_cannot_be_parsed_the_words_are_enough(name: str) -> None:
    ((field, value),) = xmp_values(UNPARSABLE[name])
    assert rule_for(field, value).value == "DMI-PROHIBITED*"
    reserved = packet("<odd:x/><tdm:reservation>1</tdm:reservation>")
    assert xmp_values(reserved) == [("tdm:reservation", "1")]
    assert xmp_values(reserved.replace(b">1<", b">0<")) == []


@pytest.mark.parametrize("before", [b"Zo\xeb", b"salt & pepper", b"&nbsp;", b"\x01", b"\xff\xfe"], ids=str)
def test_what_is_wrong_before_a_property_hides_nothing(before: bytes) -> None:
    assert xmp_values(packet("@" + FORMS["text"]).replace(b"@", before)) == FOUND


def test_bytes_around_a_packet_and_further_packets_do_not_matter() -> None:
    whole = packet(FORMS["text"])
    assert xmp_values(b"II*\0\x08\0\0\0\xbc\x02<a" + whole + b"<\0\0" + whole) == FOUND * 2


@pytest.mark.parametrize("behind", [b"<x/>", b"rubbish", b"\0\0<?xpacket end='w'?>"])
def test_what_comes_before_the_damage_counts(behind: bytes) -> None:
    assert xmp_values(packet(FORMS["text"]) + behind) == FOUND
    assert xmp_values(packet(FORMS["text"])[:-30]) == FOUND


def test_a_long_value_is_cut() -> None:
    ((_, value),) = xmp_values(packet(f"<plus:DataMining>{'DMI-' * 1_000_000}</plus:DataMining>"))
    assert len(value) == 1000
    written = packet("").replace(b"rdf:about", b'plus:DataMining="' + b"D" * 5000 + b'" rdf:about')
    assert len(xmp_values(written)[0][1]) == 1000


_pieces = st.sampled_from(
    [
        *FORMS.values(),
        "<plus:DataMining>",
        "</plus:DataMining>",
        "<tdm:reservation>",
        "1",
        "</rdf:li>",
        "<rdf:li>",
        "&amp;",
        "<![CDATA[",
        "]]>",
        "<!--",
        "-->",
        "<?xpacket ?>",
        "\x00",
        "\ud7ff",
        '"',
        "<",
    ]
)


@settings(max_examples=200)
@given(pieces=st.lists(_pieces, max_size=8), cut=st.integers(0, 400), noise=st.binary(max_size=4))
def test_no_packet_raises(pieces: list[str], cut: int, noise: bytes) -> None:
    data = packet("".join(pieces))
    for field, value in xmp_values(data[:cut] + noise + data[cut + len(noise) :]):
        assert field in ("plus:DataMining", "tdm:reservation")
        assert 0 <= len(value) <= 1000
