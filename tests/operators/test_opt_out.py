"""Opt-outs in whole images of each container, written by real libraries."""

import io
import socket
import struct
import threading
import zlib
from collections.abc import Iterator

import c2pa
import pytest
from PIL import Image

from segmint.operators.opt_out import OptOut, c2pa_values, find_metadata, opt_out
from tests.operators.test_opt_out_containers import chunk, in_png
from tests.support.bad_images import encode, heic, photograph
from tests.support.signed_images import MIME, data_mining, image, packet, signed, training

KINDS = list(MIME)


@pytest.mark.parametrize("kind", [*KINDS, "BMP"])
def test_an_image_without_metadata_says_nothing(kind: str) -> None:
    assert opt_out(image(kind)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_xmp_is_found_in_each_container(kind: str) -> None:
    assert opt_out(image(kind, data_mining("DMI-PROHIBITED-AIMLTRAINING"))) == OptOut(
        "plus:DataMining", "DMI-PROHIBITED-AIMLTRAINING"
    )
    assert opt_out(image(kind, packet("<tdm:reservation>1</tdm:reservation>"))) == OptOut("tdm:reservation", "1")
    for properties in ("<tdm:reservation>0</tdm:reservation>", "<plus:OtherConstraints>ask me</plus:OtherConstraints>"):
        assert opt_out(image(kind, packet(properties))) is None
    assert opt_out(image(kind, data_mining("DMI-ALLOWED"))) is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_xmp_is_found_in_exif(kind: str) -> None:
    for tag in (700, 37510):  # its own tag, and the user's comment
        exif = Image.Exif()
        exif[tag] = data_mining("DMI-PROHIBITED")
        stream = io.BytesIO()
        photograph().resize((96, 72)).save(stream, kind, exif=exif)
        assert opt_out(stream.getvalue()) == OptOut("plus:DataMining", "DMI-PROHIBITED")


def test_xmp_is_found_in_photoshops_resources() -> None:
    xmp = data_mining("DMI-PROHIBITED")
    resources = b"8BIM\x04\x24\0\0" + struct.pack(">I", len(xmp)) + xmp + bytes(len(xmp) % 2)
    data = image("JPEG")
    segment = b"Photoshop 3.0\0" + resources
    jpeg = data[:2] + struct.pack(">HH", 0xFFED, len(segment) + 2) + segment + data[2:]
    profile = in_png(
        chunk(b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(b"\niptc\n9\n" + resources.hex().encode()))
    )
    tiff = encode(photograph().resize((96, 72)), "TIFF", tiffinfo={34377: resources})
    for file in (jpeg, profile, tiff):
        assert opt_out(file) == OptOut("plus:DataMining", "DMI-PROHIBITED")


def test_xmp_is_found_in_a_heic() -> None:
    assert opt_out(heic("opted_out")) == OptOut("plus:DataMining", "DMI-PROHIBITED-AIMLTRAINING")
    assert opt_out(heic("photograph")) is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_manifest_is_found_in_each_container_whoever_signed_it(kind: str) -> None:
    for label, use in (("c2pa", "notAllowed"), ("cawg", "constrained")):
        found = opt_out(signed(image(kind), kind, training(label, use)))
        assert found == OptOut(f"{label}.ai_training", use)
    assert opt_out(signed(image(kind), kind, training("cawg", "allowed"))) is None


def test_xmp_and_a_manifest_in_one_image_are_both_read() -> None:
    allowed = image("JPEG", data_mining("DMI-ALLOWED"))
    assert opt_out(signed(allowed, "JPEG", training("c2pa", "notAllowed", "data_mining"))) == OptOut(
        "c2pa.data_mining", "notAllowed"
    )
    forbidden = image("JPEG", data_mining("DMI-PROHIBITED"))
    assert opt_out(signed(forbidden, "JPEG", training("cawg", "allowed"))) == OptOut(
        "plus:DataMining", "DMI-PROHIBITED"
    )


def test_a_manifest_of_an_image_that_was_changed_since_counts() -> None:
    data = bytearray(signed(image("PNG"), "PNG", training("cawg", "notAllowed")))
    data[-30] ^= 255  # a pixel, so that its hash is another
    assert opt_out(bytes(data)) is not None


def test_a_damaged_manifest_says_nothing() -> None:
    data = signed(image("JPEG"), "JPEG", training("cawg", "notAllowed"))
    start = data.index(b"jumb")
    for at in (start + 4, start + 100, data.index(b"notAllowed") - 6):
        damaged = data[:at] + b"\xff" * 8 + data[at + 8 :]
        assert find_metadata(damaged).c2pa == "image/jpeg"
        opt_out(damaged)  # whatever it says: no exception
    assert opt_out(data[: start + 200]) is None


@pytest.fixture
def web() -> Iterator[tuple[str, list[bytes]]]:
    """An address on this machine, and what was asked there."""
    asked: list[bytes] = []

    def answer() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                asked.append(connection.recv(1000))
                connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/manifest.c2pa", asked
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_remote_manifest_is_never_fetched(web: tuple[str, list[bytes]]) -> None:
    address, asked = web
    assertions = training("cawg", "notAllowed")
    remote = signed(image("JPEG"), "JPEG", assertions, remote=address, embed=False)
    both = signed(image("JPEG"), "JPEG", training("cawg", "allowed"), remote=address)
    assert opt_out(remote) is None
    assert opt_out(both) is None
    assert c2pa_values(remote, "image/jpeg") == [], "it has no manifest to find; the library is asked all the same"
    assert asked == []
    with pytest.raises(c2pa.C2paError, match="Remote"), c2pa.Context.from_dict({}) as context:
        c2pa.Reader("image/jpeg", io.BytesIO(remote), context=context)
    assert asked, "the library fetches it by default"
