"""The script in a folder of evidence: what it computes without segmint is what segmint and other libraries compute."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from segmint.catalogs.dataset.versions.digest import Snapshot, VersionLeaf
from segmint.pipeline.evidence.check import digest_of, is_ed25519_signature, key_of

SHA256 = st.binary(min_size=32, max_size=32).map(bytes.hex)


@pytest.fixture
def copy(evidence_folder: Path, tmp_path: Path) -> Path:
    """A copy of the evidence, to change."""
    return Path(shutil.copytree(evidence_folder, tmp_path / "copy"))


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the folder's script by a Python that sees no installed package."""
    command = [sys.executable, "-I", "-S", "check.py", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ})


def sum_again(folder: Path) -> None:
    """Write SHA256SUMS as somebody would who hides a change."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    sums = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names if n != "SHA256SUMS"]
    (folder / "SHA256SUMS").write_text("".join(sums))


def edit(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


@given(st.dictionaries(st.sampled_from([f"commits/{n:06}.g1.json" for n in range(40)]), SHA256))
def test_the_digest_is_the_dataset_s(leaves: dict[str, str]) -> None:
    assert digest_of(leaves) == Snapshot.of(VersionLeaf(*leaf) for leaf in leaves.items()).digest


@pytest.mark.parametrize("seed", range(8))
def test_signatures_are_those_of_the_library(seed: int) -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
    public, message = key.public_key().public_bytes_raw(), b"a line\n" * seed
    signature = key.sign(message)
    assert key_of(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)) == public
    assert is_ed25519_signature(public, message, signature)
    assert not is_ed25519_signature(public, message + b"x", signature)
    for place in (seed, 32 + seed, 63):
        changed = bytes(byte ^ (index == place) for index, byte in enumerate(signature))
        assert not is_ed25519_signature(public, message, changed)
    other = Ed25519PrivateKey.from_private_bytes(bytes([seed + 9]) * 32).public_key().public_bytes_raw()
    assert not is_ed25519_signature(other, message, signature)
    order = 2**252 + 27742317777372353535851937790883648493
    twin = signature[:32] + (int.from_bytes(signature[32:], "little") + order).to_bytes(32, "little")
    assert not is_ed25519_signature(public, message, twin), "a second signature of the same text"
    assert not is_ed25519_signature(b"\xff" * 32, message, signature)
    assert not is_ed25519_signature(public, message, signature[:-1])


def test_a_folder_with_its_dataset_and_signature_is_verified(evidence_folder: Path) -> None:
    base = evidence_folder.parent
    sums = hashlib.sha256((evidence_folder / "SHA256SUMS").read_bytes()).hexdigest()
    done = run(evidence_folder, "--key", base / "key.public.pem", "--dataset", base / "dataset", "--sums", sums)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[-1] == f"SHA256SUMS: sha256:{sums}; verified"
    assert len(lines) == 4
    assert not lines[2].endswith("(not checked: give --key)")
    done = run(evidence_folder)
    assert done.returncode == 0
    assert "(not checked: give --key)" in done.stdout
    assert "the dataset itself was not read" in done.stdout


@pytest.mark.parametrize("name", ["audit.json", "evidence.json", "leaves.txt", "manifest.json", "index.html"])
def test_a_changed_byte_is_found(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    done = run(copy)
    assert done.returncode == 1
    assert f"problem: {name}: other bytes than SHA256SUMS says" in done.stdout
    assert done.stdout.endswith("; NOT verified\n")


def test_files_that_are_missing_or_added_are_found(copy: Path) -> None:
    (copy / "more.txt").write_text("x")
    (copy / "index.html").unlink()
    out = run(copy).stdout
    assert "problem: more.txt: SHA256SUMS does not name it" in out
    assert "problem: index.html: no such file, and SHA256SUMS names it" in out
    (copy / "SHA256SUMS").unlink()
    assert run(copy).returncode == 2


@pytest.mark.parametrize(
    ("name", "old", "new", "problem"),
    [
        ("evidence.json", '"findings_total": 0', '"findings_total": 1', "findings_total is not that of audit.json"),
        ("evidence.json", '"weights": {', '"weights": {"x": 1,', "built_with.weights is not that of manifest.json"),
        ("manifest.json", '"name":', '"name" :', "manifest.json: is not the dataset.json of leaves.txt"),
        ("leaves.txt", "  commits/000001", "  commits/000009", "that of leaves.txt is"),
        ("evidence.json", '"schema_version": 1', '"schema_version": 2', "its schema_version is 2, expected 1"),
        ("evidence.json", '"dataset": {', '"dataset": [], "y": {', "the evidence cannot be read: TypeError"),
    ],
)
def test_what_contradicts_itself_is_found_though_its_sums_are_right(
    copy: Path, name: str, old: str, new: str, problem: str
) -> None:
    edit(copy, name, old, new)
    sum_again(copy)
    done = run(copy)
    assert done.returncode == 1
    assert problem in done.stdout


def test_sums_that_somebody_wrote_down_find_a_folder_that_was_made_again(copy: Path) -> None:
    sums = hashlib.sha256((copy / "SHA256SUMS").read_bytes()).hexdigest()
    edit(copy, "index.html", "</html>", "</html> ")
    sum_again(copy)
    assert run(copy).returncode == 0
    assert run(copy, "--sums", sums).returncode == 1


def test_a_key_that_did_not_sign_and_a_wrong_signature_are_found(copy: Path, evidence_folder: Path) -> None:
    public = evidence_folder.parent / "key.public.pem"
    other = copy.parent / "other.pem"
    raw = Ed25519PrivateKey.generate().public_key()
    other.write_bytes(raw.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert "did not sign the digest" in run(copy, "--key", other).stdout
    (signature,) = copy.glob("versions/*.sig")
    signature.write_bytes(bytes(64))
    sum_again(copy)
    assert "not the signature of sha256:" in run(copy, "--key", public).stdout
    entry = json.loads((copy / "evidence.json").read_text())["signatures"][0]["file"]
    edit(copy, "evidence.json", entry, "../key.sig")
    sum_again(copy)
    assert "../key.sig: no such file" in run(copy, "--key", public).stdout
    assert run(copy, "--key", signature).returncode == 2


def test_a_dataset_with_a_changed_byte_is_found(evidence_folder: Path, tmp_path: Path) -> None:
    dataset = Path(shutil.copytree(evidence_folder.parent / "dataset", tmp_path / "dataset"))
    tar = min((dataset / "shards").iterdir())
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    (dataset / "dataset.json").unlink()
    out = run(evidence_folder, "--dataset", dataset).stdout
    assert f"{tar}: other bytes" in out
    assert f"{dataset}/dataset.json: No such file" in out
