"""Images with metadata about training, written by real libraries: XMP by Pillow, C2PA by its own library."""

import datetime
import functools
import io
import json
from typing import Any

import c2pa
import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image
from PIL.PngImagePlugin import PngInfo

PLUS = "http://ns.useplus.org/ldf/xmp/1.0/"
TDM = "http://www.w3.org/ns/tdmrep/"
VOCABULARY = "http://ns.useplus.org/ldf/vocab/"

MIME = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "TIFF": "image/tiff",
    "GIF": "image/gif",
    "AVIF": "image/avif",
}


def packet(properties: str) -> bytes:
    """An XMP packet with these properties, which may use the prefixes `plus`, `tdm` and `rdf`."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\n'
        f'<rdf:Description rdf:about="" xmlns:plus="{PLUS}" xmlns:tdm="{TDM}">{properties}</rdf:Description>\n'
        '</rdf:RDF></x:xmpmeta>\n<?xpacket end="w"?>'
    ).encode()


def data_mining(term: str) -> bytes:
    """An XMP packet that says this term of PLUS."""
    return packet(f"<plus:DataMining>{VOCABULARY}{term}</plus:DataMining>")


@functools.cache
def image(kind: str, xmp: bytes | None = None, *, zipped: bool = False) -> bytes:
    """An image of 96 by 80 pixels in a container, with an XMP packet; a PNG's may be compressed."""
    pixels = np.random.default_rng(1).integers(0, 255, (80, 96, 3), np.uint8)
    stream = io.BytesIO()
    options: dict[str, Any] = {}
    if xmp is not None and kind == "PNG":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp, zip=zipped)
    elif xmp is not None and kind == "TIFF":
        options["tiffinfo"] = {700: xmp}
    elif xmp is not None and kind in ("JPEG", "WEBP", "AVIF"):
        options["xmp"] = xmp
    Image.fromarray(pixels).save(stream, kind, **options)
    data = stream.getvalue()
    if xmp is not None and kind == "GIF":  # which Pillow does not write: XMP specification, part 3, 1.1.2
        trailer = b"\x01" + bytes(range(0xFF, -1, -1)) + b"\0"
        data = data[:-1] + b"\x21\xff\x0bXMP DataXMP" + xmp + trailer + data[-1:]
    return data


def signed(
    data: bytes,
    kind: str,
    assertions: dict[str, Any],
    *,
    parent: bool = False,
    remote: str | None = None,
    embed: bool = True,
) -> bytes:
    """The image with a C2PA manifest that a self-made certificate signs.

    With `parent` the image as it is, with its own manifest, is an ingredient; `remote` is where another copy of the new
    manifest is.
    """
    manifest = {
        "claim_generator_info": [{"name": "test", "version": "1"}],
        "format": MIME[kind],
        "assertions": [{"label": label, "data": content} for label, content in assertions.items()],
    }
    settings = {"builder": {"thumbnail": {"enabled": False}}, "verify": {"verify_after_sign": False}}
    with c2pa.Context.from_dict(settings) as context, c2pa.Builder(json.dumps(manifest), context) as builder:
        if parent:
            builder.add_ingredient({"title": "before", "relationship": "parentOf"}, MIME[kind], io.BytesIO(data))
        if remote is not None:
            builder.set_remote_url(remote)
        if not embed:
            builder.set_no_embed()
        result = io.BytesIO()
        builder.sign(
            c2pa.Signer.from_info(c2pa.C2paSignerInfo("es256", *_credentials(), None)),
            MIME[kind],
            io.BytesIO(data),
            result,
        )
    return result.getvalue()


def training(label: str, use: str, entry: str = "ai_training") -> dict[str, Any]:
    """A training-mining assertion of `c2pa` or `cawg` with one entry."""
    return {f"{label}.training-mining": {"entries": {f"{label}.{entry}": {"use": use}}}}


@functools.cache
def _credentials() -> tuple[bytes, bytes]:
    """A chain of certificates that nobody trusts, and the key that signs."""
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = _certificate("root", root_key.public_key(), root_key, is_root=True)
    leaf = _certificate("leaf", key.public_key(), root_key, is_root=False)
    chain = b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in (leaf, root))
    plain = serialization.NoEncryption()
    return chain, key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)


def _certificate(
    name: str, public: ec.EllipticCurvePublicKey, root_key: ec.EllipticCurvePrivateKey, *, is_root: bool
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    subject, issuer = (
        x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test"), x509.NameAttribute(NameOID.COMMON_NAME, who)])
        for who in (name, "root")
    )
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    builder = (
        x509.CertificateBuilder(issuer, subject, public, x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.BasicConstraints(is_root, None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(digital_signature=not is_root, key_cert_sign=is_root, crl_sign=False, **usage), critical=True
        )
    )
    if not is_root:
        purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(purpose, critical=False)
    return builder.sign(root_key, hashes.SHA256())
