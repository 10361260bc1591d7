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
from segmint.pipeline.quality.evidence.check import (
    check_files,
    digest_of,
    is_ed25519_signature,
    key_id,
    key_of,
    lines_about,
)

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


def key_id_of(base: Path) -> str:
    return key_id(key_of((base / "key.public.pem").read_bytes()))


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
    assert [line.split(":")[0].split(",")[0] for line in lines[:-1]] == [
        *("dataset small", f"signed by key {key_id_of(base)}", "the dataset has all files of this digest"),
        *("the audit says", "study.json says"),
    ]


def test_what_nothing_vouches_for_is_not_said_to_be_verified(evidence_folder: Path) -> None:
    done = run(evidence_folder)
    assert done.returncode == 0
    assert f"unchecked signatures by the keys {key_id_of(evidence_folder.parent)}: pass --key" in done.stdout
    assert "the dataset was not read: pass --dataset" in done.stdout
    assert done.stdout.endswith("; nothing vouches for it: not verified\n")
    done = run(evidence_folder, "--key", evidence_folder.parent / "key.public.pem")
    assert done.returncode == 0
    assert (
        "not covered by a signature: version number, verdict, and the rest of audit.json and evidence.json"
        in done.stdout
    )
    assert done.stdout.endswith("; the digest is verified, the audit is not\n")


@pytest.mark.parametrize("name", ["audit.json", "evidence.json", "leaves.txt", "manifest.json", "index.html"])
def test_a_changed_byte_is_found(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    done = run(copy)
    assert done.returncode == 1
    assert f"problem: {name}: its bytes differ from SHA256SUMS" in done.stdout
    assert done.stdout.endswith("; NOT verified\n")


def test_files_that_are_missing_or_added_are_found(copy: Path) -> None:
    (copy / "more.txt").write_text("x")
    (copy / "index.html").unlink()
    out = run(copy).stdout
    assert "problem: more.txt: not listed in SHA256SUMS" in out
    assert "problem: index.html: missing, but listed in SHA256SUMS" in out
    (copy / "SHA256SUMS").unlink()
    done = run(copy)
    assert (done.returncode, done.stdout.splitlines()[0]) == (1, "problem: SHA256SUMS: no such file")
    assert run(copy, copy / "nothing").returncode == 2


def test_links_and_folders_are_refused_and_not_followed(copy: Path) -> None:
    (copy / "more").symlink_to("/etc")
    (copy / "page.html").symlink_to("index.html")
    (copy / "empty").mkdir()
    os.mkfifo(copy / "pipe")
    done = run(copy)
    assert done.returncode == 1
    found = [
        line.split(":")[1].strip() for line in done.stdout.splitlines() if "a link, folder or special file" in line
    ]
    assert found == ["empty", "more", "page.html", "pipe"]


@pytest.mark.parametrize(
    "name", ["evidence.json", "audit.json", "manifest.json", "study.json", "leaves.txt", "SHA256SUMS"]
)
def test_a_malformed_file_is_a_problem_and_no_traceback(evidence_folder: Path, name: str) -> None:
    paths = [path for path in evidence_folder.rglob("*") if path.is_file()]
    files = {path.relative_to(evidence_folder).as_posix(): path.read_bytes() for path in paths}

    def problems(data: bytes | None) -> list[str]:
        changed = {path: value for path, value in {**files, name: data}.items() if value is not None}
        if name != "SHA256SUMS":
            sums = [f"{hashlib.sha256(changed[n]).hexdigest()}  {n}\n" for n in sorted(changed) if n != "SHA256SUMS"]
            changed["SHA256SUMS"] = "".join(sums).encode()
        done = check_files(changed, changed.__getitem__, None, None)
        assert lines_about(done, False, None)
        return done.problems

    assert not problems(files[name])
    for data in (None, b"", b"{}", b"[]", b"null", b"\xff", b"[" * 100_000, files[name][: len(files[name]) // 2]):
        assert problems(data), data
    if not name.endswith(".json"):
        return
    value = json.loads(files[name])
    text = files[name].decode().strip()
    assert any("duplicate key" in each for each in problems(f"{text[:-1]}, {text[1:]}".encode()))
    assert any("not JSON" in each for each in problems(f'{text[:-1]}, "x": NaN}}'.encode()))
    used = ("name", "config_sha256", "version") if name == "study.json" else tuple(value)
    unseen = {"findings", "files_of_writers", "licenses", "duplicates", "statistics"} if name == "audit.json" else set()
    for key in set(used) - unseen:
        assert problems(json.dumps({each: value[each] for each in value if each != key}).encode()), key
        for other in (True, 1.5, "\ud800", [1], {"a": 1}):
            found = problems(json.dumps({**value, key: other}).encode())
            assert found or type(other) is type(value[key]), (key, other)


@pytest.mark.parametrize(
    ("name", "old", "new", "problem"),
    [
        ("evidence.json", '"findings_total": 0', '"findings_total": 1', "findings_total differs from audit.json"),
        ("evidence.json", '"weights": {', '"weights": {"x": 1,', "built_with differs from manifest.json"),
        ("evidence.json", '"name": "small"', '"name": "large"', "dataset differs from audit.json, leaves.txt and"),
        ("evidence.json", '"shards": 3', '"shards": 9', "dataset differs from audit.json, leaves.txt and"),
        ("evidence.json", '"version": 1', '"version": true', "dataset differs from audit.json, leaves.txt and"),
        ("audit.json", '"number": 1', '"number": "1, certified"', "version.number is '1, certified'"),
        ("audit.json", '"scope": "all"', '"scope": "integrity"', "kind and scope differs from a whole audit"),
        ("evidence.json", '"schema_version": 1', '"schema_version": true', "schema_version is a bool, expected a int"),
        ("evidence.json", '"sample": 4', '"sample": 6', "options.sample differs from audit.json"),
        ("evidence.json", '"study": "study.json"', '"study": null', "study differs from the folder"),
        ("evidence.json", '"when":', '"checked_by": "us", "when":', "checked_by: not a key of evidence"),
        ("study.json", '"name": "small"', '"name": "large"', "study.json: name differs from manifest.json"),
        ("study.json", '"digest": "', '"digest": "0', "study.json: version.digest differs from leaves.txt"),
        ("manifest.json", '"name":', '"name" :', "manifest.json: differs from dataset.json in leaves.txt"),
        ("leaves.txt", "  commits/000001", "  commits/000009", "dataset differs from audit.json, leaves.txt and"),
        ("evidence.json", '"schema_version": 1', '"schema_version": 2', "its schema_version is 2, expected 1"),
        ("evidence.json", '"dataset": {', '"dataset": [], "y": {', "dataset is a list, expected a dict"),
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


def test_what_the_folder_says_cannot_write_a_line_of_the_answer(copy: Path) -> None:
    for name in ("evidence.json", "audit.json"):
        edit(copy, name, '"verdict": "', '"verdict": "fine\\n\\u001b[2K; verified\\n')
    sum_again(copy)
    done = run(copy)
    assert done.returncode == 0
    assert r": fine\n\x1b[2K; verified\n" in done.stdout
    assert len(done.stdout.splitlines()) == len(run(copy).stdout.splitlines())


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
    assert "signatures differs from their keys and the version" in run(copy, "--key", public).stdout
    assert run(copy, "--key", signature).returncode == 2


def test_a_dataset_with_a_changed_byte_is_found(evidence_folder: Path, tmp_path: Path) -> None:
    dataset = Path(shutil.copytree(evidence_folder.parent / "dataset", tmp_path / "dataset"))
    tar = min((dataset / "shards").iterdir())
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    (dataset / "dataset.json").unlink()
    out = run(evidence_folder, "--dataset", dataset).stdout
    assert f"{tar}: its bytes differ: expected SHA-256 " in out
    assert f"{dataset}/dataset.json: No such file" in out


def test_a_dataset_that_has_grown_since_is_said_to_have_and_damaged_commits_are_no_traceback(
    evidence_folder: Path, tmp_path: Path
) -> None:
    dataset = Path(shutil.copytree(evidence_folder.parent / "dataset", tmp_path / "dataset"))
    shutil.copy(dataset / "dataset.json", dataset / "dataset.g2.json")
    commit = min((dataset / "commits").glob("*.json"))
    shutil.copy(commit, dataset / "commits" / "000003.g1.json")
    (dataset / "commits" / ".tmp-1").write_text("x")
    done = run(evidence_folder, "--dataset", dataset)
    assert (done.returncode, done.stderr) == (0, "")
    later = [line for line in done.stdout.splitlines() if line.startswith("the dataset grew or was corrected since")]
    assert [line.rpartition("digest or audit: ")[2] for line in later] == ["commits/000003.g1.json, dataset.g2.json"]
    commit.write_bytes(commit.read_bytes()[:100])
    done = run(evidence_folder, "--dataset", dataset)
    assert (done.returncode, done.stderr) == (1, "")
    assert f"{commit}: its bytes differ: expected SHA-256 " in done.stdout
