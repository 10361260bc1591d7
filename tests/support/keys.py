"""Pairs of keys in PEM files."""

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from segmint.infra.storage.location import Location
from tests.support.locations import location_of

Private = ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


def write_keys(
    folder: Path, name: str, key: Private | None = None, passphrase: bytes = b""
) -> tuple[Location, Location]:
    """Write a new pair of keys; return the private and the public one."""
    key = key or ed25519.Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    how = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    private, public = folder / f"{name}.pem", folder / f"{name}.public.pem"
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, how))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return location_of(private), location_of(public)
