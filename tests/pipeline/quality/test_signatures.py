"""Versions are signed and checked; OpenSSH can check the signature without segmint."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from segmint.catalogs.dataset.commits import write_shards_index
from segmint.catalogs.dataset.versions import put_version, read_version
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.pipeline.quality.signatures import (
    is_signature,
    key_id,
    read_private_key,
    read_public_key,
    sign_version,
    signature_file,
    signature_path,
    signed_bytes,
    signed_line,
)
from segmint.pipeline.quality.verify import verify_dataset
from tests.support.keys import write_keys
from tests.support.locations import location_of
from tests.support.protocol import DatasetPath, two_shards, write


@pytest.fixture
def dataset() -> Iterator[Location]:
    """A dataset of two shards with a recorded version."""
    with two_shards() as place:
        write_shards_index(place.location, "protocol")
        put_version(place.location, "build")
        yield place.location


def test_a_signature_is_made_and_found_right(dataset: Location, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, "key")
    signed = sign_version(dataset, private)
    assert signed.key_id == key_id(read_public_key(public))
    assert signed.file == f"versions/1.{signed.key_id}.sig"
    assert signed.lines()[0] == f"signed with key {signed.key_id}: {signed.file}"
    found = verify_dataset(dataset, key=public)
    assert (found.problems, found.signed_by, found.checked_key) == ((), (signed.key_id,), signed.key_id)
    unchecked = verify_dataset(dataset)
    assert (unchecked.problems, unchecked.checked_key) == ((), None)
    assert unchecked.notes == (
        f"signature files of the keys {signed.key_id} weren't compared. Pass a public key to --key",
    )
    assert sign_version(dataset, private) == signed, "signing again changes nothing"


@pytest.mark.parametrize("kind", ["shards", "catalog"])
def test_a_dataset_that_lacks_files_is_not_signed(dataset: Location, tmp_path: Path, kind: str) -> None:
    private, _ = write_keys(tmp_path, "key")
    path = f"{kind}/{(dataset / kind).list()[0].name}"
    data = (dataset / path).read()
    for damage in (lambda: (dataset / path).delete(), lambda: (dataset / path).put(data[:-1])):
        damage()
        with pytest.raises(UsageError, match=f"{path}. Run `segmint repair"):
            sign_version(dataset, private)
    assert [entry.name for entry in (dataset / "versions").list()] == ["1.json"]


def test_openssh_checks_a_signature_by_a_key_in_either_format(dataset: Location, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, "key")
    signed = sign_version(dataset, private)
    pem = serialization.load_pem_public_key(public.read())
    (tmp_path / "key.pub").write_bytes(
        pem.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    )
    (tmp_path / "allowed").write_text(f"owner {(tmp_path / 'key.pub').read_text()}")
    command = ["ssh-keygen", "-Y", "verify", "-f", str(tmp_path / "allowed"), "-I", "owner", "-n", "segmint-dataset"]
    line = f"segmint dataset sha256:{signed.version.digest} files sha256:{signed.files_sha256}\n"
    done = subprocess.run(
        [*command, "-s", f"{dataset}/{signed.file}"], input=line, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert verify_dataset(dataset, key=location_of(tmp_path / "key.pub")).problems == ()


def test_an_openssh_key_signs(dataset: Location, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    sign_version(dataset, location_of(tmp_path / "key"))
    assert verify_dataset(dataset, key=location_of(tmp_path / "key.pub")).problems == ()


def test_missing_unknown_and_wrong_signatures_are_problems(dataset: Location, tmp_path: Path) -> None:
    (private, public), (other, other_public) = write_keys(tmp_path, "key"), write_keys(tmp_path, "other")
    (problem,) = verify_dataset(dataset, key=public).problems
    assert problem.endswith(" didn't sign version 1; it is not signed")
    signed = sign_version(dataset, private)
    (problem,) = verify_dataset(dataset, key=other_public).problems
    assert problem.endswith(f"didn't sign version 1; only the keys {signed.key_id} signed it")

    signature = dataset / signed.file
    data = signature.read()
    foreign = sign_version(dataset, other)
    for wrong in (bytes([data[0] ^ 1]) + data[1:], data[:-1], b"", (dataset / foreign.file).read()):
        signature.put(wrong)
        *_, problem = verify_dataset(dataset, key=public).problems
        assert problem.startswith(f"{signed.file}: not the signature of sha256:")
    with pytest.raises(UsageError, match="is another signature, from another key"):
        sign_version(dataset, private)


def test_a_signature_is_of_one_version_alone(dataset: Location, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, "key")
    signed = sign_version(dataset, private)
    write(DatasetPath(dataset.uri), 1, variant=2, generation=2)
    with pytest.raises(UsageError, match="differs from its version 1: its digest is sha256:"):
        sign_version(dataset, private)
    write_shards_index(dataset, "protocol")
    put_version(dataset, "retry")
    assert "didn't sign version 2" in verify_dataset(dataset, key=public).problems[0]
    (dataset / f"versions/2.{signed.key_id}.sig").put((dataset / signed.file).read())
    assert "not the signature of sha256:" in verify_dataset(dataset, key=public).problems[0]
    (dataset / f"versions/2.{signed.key_id}.sig").delete()
    assert sign_version(dataset, private).file == f"versions/2.{signed.key_id}.sig"
    assert verify_dataset(dataset, key=public).problems == ()
    assert verify_dataset(dataset, "1", public).problems == ()


def test_an_encrypted_key_asks_for_its_passphrase(dataset: Location, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, "key", passphrase=b"open sesame")
    with pytest.raises(UsageError, match="is encrypted"):
        sign_version(dataset, private)
    with pytest.raises(UsageError, match="is not a private key in PEM or OpenSSH format"):
        sign_version(dataset, private, ask=lambda: "open barley")
    sign_version(dataset, private, ask=lambda: "open sesame")
    assert verify_dataset(dataset, key=public).problems == ()


def test_an_encrypted_openssh_key_needs_bcrypt(
    dataset: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "sesame", "-f", tmp_path / "key"], check=True)
    monkeypatch.setattr("cryptography.hazmat.primitives.serialization.ssh._bcrypt_supported", False)
    with pytest.raises(UsageError, match=r"can't be read here: Need bcrypt module\. Install what is missing, or"):
        sign_version(dataset, location_of(tmp_path / "key"), ask=lambda: "sesame")


def test_a_signature_by_segmint_0_3_0_is_verified_and_said_not_to_cover_the_files(
    dataset: Location, tmp_path: Path
) -> None:
    private, public = write_keys(tmp_path, "key")
    signature = dataset / _sign_digest_only(dataset, private)
    found = verify_dataset(dataset, key=public, require_pinned=True)
    assert (found.problems, found.not_checked) == ((), ())
    assert found.compared_with[0].startswith("the signature of version 1 by key ")
    (note,) = found.notes
    assert "made by segmint 0.3.0, so it covers the digest but not the list of files" in note
    with pytest.raises(UsageError, match=r"or segmint 0\.3\.0\. Remove it and sign again"):
        sign_version(dataset, private)
    signature.delete()
    sign_version(dataset, private)
    assert verify_dataset(dataset, key=public).notes == ()


def _sign_digest_only(dataset: Location, private: Location) -> str:
    """Sign the dataset's version as segmint 0.3.0 did. Returns the path of the signature."""
    version = read_version(dataset, 1)
    key = read_private_key(private)
    public = key.public_key().public_bytes_raw()
    path = signature_path(1, key_id(public))
    line = signed_line(version.digest)
    assert line == f"segmint dataset sha256:{version.digest}\n".encode()
    (dataset / path).put(signature_file(public, key.sign(signed_bytes(line))))
    return path


def test_ssh_keygen_writes_the_same_file(tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    (tmp_path / "line").write_bytes(b"a line\n")
    sign = ["ssh-keygen", "-q", "-Y", "sign", "-f", key, "-n", "segmint-dataset", tmp_path / "line"]
    subprocess.run(sign, check=True, capture_output=True)
    public = read_public_key(location_of(f"{key}.pub"))
    signature = read_private_key(location_of(key)).sign(signed_bytes(b"a line\n"))
    assert (tmp_path / "line.sig").read_bytes() == signature_file(public, signature)


def test_a_signature_is_of_one_message_by_one_key_in_one_form() -> None:
    key, other = (ed25519.Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32) for seed in (1, 2))
    public, others = (each.public_key().public_bytes_raw() for each in (key, other))
    signature = key.sign(signed_bytes(b"a line\n"))
    file = signature_file(public, signature)
    assert is_signature(file, public, b"a line\n")
    flipped = bytes([signature[0] ^ 1]) + signature[1:]
    for wrong in (
        (file, public, b"another line\n"),
        (file, others, b"a line\n"),
        (signature_file(others, signature), others, b"a line\n"),
        (signature_file(public, flipped), public, b"a line\n"),
        (signature_file(public, b""), public, b"a line\n"),
        *((bad, public, b"a line\n") for bad in (b"", signature, file[:-1], file + b"\n", b"\xff\n" * 5)),
    ):
        assert not is_signature(*wrong), wrong


def test_a_list_that_cannot_be_made_is_a_problem(dataset: Location, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, "key")
    sign_version(dataset, private)
    (dataset / "commits/000001.g1.json").delete()
    problems = verify_dataset(dataset, key=public).problems
    assert any(".sig: can't be checked, because the list of files can't be made: " in each for each in problems)


def test_other_keys_are_refused(dataset: Location, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, "key")
    rsa_private, rsa_public = write_keys(tmp_path, "rsa", rsa.generate_private_key(65537, 2048))
    junk = location_of(tmp_path / "junk.pem")
    junk.put(b"\xff not a key")
    for key, message in [
        (rsa_private, r"is a \w*RSAPrivateKey: expected an Ed25519 key. Create one: openssl genpkey"),
        (public, "is a public key. Sign with the private key"),
        (junk, "is not a private key in PEM or OpenSSH format"),
        (location_of(tmp_path / "none.pem"), "no such key"),
    ]:
        with pytest.raises(UsageError, match=message):
            sign_version(dataset, key)
    for key, message in [
        (rsa_public, "is not a public Ed25519 key in PEM or OpenSSH format. Create one: openssl genpkey"),
        (private, "is a private key. Verify with the public key"),
        (junk, "is not a public Ed25519 key in PEM or OpenSSH format"),
    ]:
        with pytest.raises(UsageError, match=message):
            verify_dataset(dataset, key=key)


def test_nothing_is_signed_where_nothing_is_recorded(dataset: Location, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, "key")
    (dataset / "versions/1.json").delete()
    with pytest.raises(UsageError, match="has no recorded version to sign"):
        sign_version(dataset, private)
    (problem,) = verify_dataset(dataset, key=public).problems
    assert problem.startswith("no intact version is recorded that key ")
