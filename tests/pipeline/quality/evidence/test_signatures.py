"""Versions are signed and checked; OpenSSH can check the signature without segmint."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from segmint.catalogs.dataset.shards_index import write_shards_index
from segmint.catalogs.dataset.versions.record import put_version
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.pipeline.quality.evidence import check
from segmint.pipeline.quality.evidence.check import key_id
from segmint.pipeline.quality.evidence.signatures import read_public_key, sign_version
from segmint.pipeline.quality.versions.verify import verify_dataset
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
    line = f"segmint dataset sha256:{signed.version.digest}\n"
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
    with pytest.raises(UsageError, match="is another signature, not made with this key"):
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


def test_a_signature_that_no_tool_can_check_is_no_problem(
    dataset: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = write_keys(tmp_path, "key")
    sign_version(dataset, private)
    monkeypatch.setattr(check, "check_signature", lambda *_: (None, "no tool"))
    found = verify_dataset(dataset, key=public)
    assert (found.problems, found.not_checked[0].partition(": ")[2]) == ((), "no tool")


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
