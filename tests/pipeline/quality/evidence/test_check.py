"""The script in a folder of evidence: what it computes without segmint is what segmint and other libraries compute."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key
from hypothesis import given
from hypothesis import strategies as st

from segmint.catalogs.dataset.versions.digest import Snapshot, VersionLeaf
from segmint.pipeline.quality.evidence.check import (
    check_files,
    check_signature,
    digest_of,
    files_in,
    key_id,
    key_of,
    lines_about,
    signature_file,
    signed_bytes,
    wrong_in_dataset,
)

SHA256 = st.binary(min_size=32, max_size=32).map(bytes.hex)


@pytest.fixture
def copy(evidence_folder: Path, tmp_path: Path) -> Path:
    """A copy of the evidence, to change."""
    return Path(shutil.copytree(evidence_folder, tmp_path / "copy"))


def run(
    folder: Path, *arguments: object, flags: str = "-IS", path: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the folder's script by a Python that sees no installed package, so that signatures need ssh-keygen."""
    command = [sys.executable, flags, "check.py", *map(str, arguments)]
    env = {**os.environ, "PATH": os.environ["PATH"] if path is None else path}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=env)


def sum_again(folder: Path) -> None:
    """Write SHA256SUMS as somebody would who hides a change."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if not name.startswith("SHA256SUMS")]
    sums = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    (folder / "SHA256SUMS").write_text("".join(sums))


def key_id_of(base: Path) -> str:
    return key_id(key_of((base / "key.public.pem").read_bytes()))


def erase_findings(folder: Path) -> None:
    """Change what the audit found, as somebody would who makes the folder again."""
    for name in ("evidence.json", "audit.json"):
        value = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**value, "verdict": "no findings at all"}))
    sum_again(folder)


def edit(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


@given(st.dictionaries(st.sampled_from([f"commits/{n:06}.g1.json" for n in range(40)]), SHA256))
def test_the_digest_is_the_dataset_s(leaves: dict[str, str]) -> None:
    assert digest_of(leaves) == Snapshot.of(VersionLeaf(*leaf) for leaf in leaves.items()).digest


SIGNED = ("segmint-dataset", b"a line\n")


def _both(key: bytes, namespace: str, message: bytes, file: bytes, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Check a signature with the library and with OpenSSH, which must agree."""
    by_library = check_signature(key, namespace, message, file)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "cryptography.exceptions", None)
        by_openssh = check_signature(key, namespace, message, file)
    assert by_openssh[0] is by_library[0] is not None
    assert by_library[0] is False or (by_library[1], by_openssh[1]) == ("cryptography", "ssh-keygen")
    return by_library[0]


def test_both_tools_agree_on_signatures(monkeypatch: pytest.MonkeyPatch) -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    public, (namespace, message) = key.public_key().public_bytes_raw(), SIGNED
    for form in (
        (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        (Encoding.OpenSSH, PublicFormat.OpenSSH),
    ):
        assert key_of(key.public_key().public_bytes(*form)) == public
    signature = key.sign(signed_bytes(*SIGNED))
    file = signature_file(public, namespace, signature)
    assert _both(public, namespace, message, file, monkeypatch)
    flipped = bytes([signature[0] ^ 1]) + signature[1:]
    other = Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32).public_key().public_bytes_raw()
    for wrong in (
        (public, namespace, message + b"x", file),
        (public, "another", message, file),
        (other, namespace, message, file),
        (other, namespace, message, signature_file(other, namespace, signature)),
        *((public, namespace, message, signature_file(public, namespace, bad)) for bad in (flipped, b"")),
        *((public, namespace, message, bad) for bad in (b"", signature, file[:-1], file + b"\n", b"\xff\n" * 5)),
    ):
        assert not _both(*wrong, monkeypatch), wrong


def test_ssh_keygen_writes_the_same_file_and_checks_it(tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    key = load_ssh_private_key((tmp_path / "key").read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    (tmp_path / "line").write_bytes(SIGNED[1])
    subprocess.run(
        ["ssh-keygen", "-q", "-Y", "sign", "-f", tmp_path / "key", "-n", SIGNED[0], tmp_path / "line"],
        check=True,
        capture_output=True,
    )
    public = key_of((tmp_path / "key.pub").read_bytes())
    assert (tmp_path / "line.sig").read_bytes() == signature_file(public, SIGNED[0], key.sign(signed_bytes(*SIGNED)))


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
    assert lines[1].endswith("; checked with ssh-keygen")
    done = run(evidence_folder, "--key", base / "key.public.pem", "--sums", sums, flags="-I")
    assert "; checked with cryptography\n" in done.stdout


def test_a_signature_that_no_tool_can_check_is_not_checked(evidence_folder: Path) -> None:
    base = evidence_folder.parent
    sums = hashlib.sha256((evidence_folder / "SHA256SUMS").read_bytes()).hexdigest()
    done = run(evidence_folder, "--key", base / "key.public.pem", "--sums", sums, path="/nowhere")
    assert (done.returncode, done.stderr) == (3, "")
    identity = key_id_of(base)
    assert f"not checked: versions/1.{identity}.sig, by key {identity}: neither the cryptography package" in done.stdout
    assert done.stdout.endswith("; not verified\n")


def test_a_signature_of_the_sums_vouches_for_every_file(copy: Path) -> None:
    key = copy.parent / "auditor"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    sign = ["ssh-keygen", "-q", "-Y", "sign", "-f", key, "-n", "segmint-evidence", copy / "SHA256SUMS"]
    subprocess.run(sign, check=True, capture_output=True)
    done = run(copy, "--key", f"{key}.pub")
    assert (done.returncode, done.stdout.splitlines()[-1].rpartition("; ")[2]) == (0, "verified")
    assert ": SHA256SUMS, and with it every file; checked with ssh-keygen" in done.stdout
    assert run(copy).returncode == 3, "without the key, nothing vouches for the folder"
    erase_findings(copy)
    done = run(copy, "--key", f"{key}.pub")
    assert (done.returncode, done.stdout.count("problem: SHA256SUMS.sig: not the signature of SHA256SUMS")) == (1, 1)
    (copy / "SHA256SUMS.sig").write_bytes(b"an original")
    done = run(copy)
    assert (done.returncode, "problem: SHA256SUMS.sig: not a signature" in done.stdout) == (1, True)


@pytest.mark.parametrize(("key_type", "hash_name"), [("rsa", "sha512"), ("ed25519", "sha256")])
def test_other_signatures_are_not_called_wrong(copy: Path, key_type: str, hash_name: str) -> None:
    key, bits = copy.parent / "auditor", ["-b", "2048"] * (key_type == "rsa")
    subprocess.run(["ssh-keygen", "-q", "-t", key_type, *bits, "-N", "", "-f", key], check=True)
    sign = ["ssh-keygen", "-q", "-Y", "sign", "-O", f"hashalg={hash_name}", "-f", key, "-n", "segmint-evidence"]
    subprocess.run([*sign, copy / "SHA256SUMS"], check=True, capture_output=True)
    said = f"not checked: SHA256SUMS.sig: a signature of type ssh-{key_type} with {hash_name}, expected ssh-ed25519"
    keys = [["--key", f"{key}.pub"]] if key_type == "ed25519" else []
    for more in ([], *keys):
        done = run(copy, *more)
        assert (done.returncode, said in done.stdout, "problem" in done.stdout) == (3, True, False), done.stdout


def test_what_this_user_cannot_read_or_run_is_not_checked(evidence_folder: Path, tmp_path: Path) -> None:
    def read(name: str) -> bytes:
        if name == "audit.json":
            raise PermissionError(errno.EACCES, "Permission denied", name)
        return (evidence_folder / name).read_bytes()

    done = check_files(files_in(evidence_folder)[0], read, None, None)
    assert (done.problems, done.not_checked) == (
        [],
        ["can't read the evidence: [Errno 13] Permission denied: 'audit.json'"],
    )
    assert lines_about(done, None)[-1].endswith("; not verified")
    unread: list[str] = []
    assert list(wrong_in_dataset("commits/1.json", "0", read_fails, unread)) == []
    assert unread == ["file of the dataset: commits/1.json: [Errno 5] broken: 'commits/1.json'"]
    sums = hashlib.sha256((evidence_folder / "SHA256SUMS").read_bytes()).hexdigest()
    dataset = shutil.copytree(evidence_folder.parent / "dataset", tmp_path / "dataset")
    (dataset / "dataset.json").unlink()
    (dataset / "dataset.json").symlink_to("dataset.json")
    for more in ([], ["--key", evidence_folder.parent / "key.public.pem"]):
        ran = run(evidence_folder, "--dataset", dataset, "--sums", sums, *more)
        assert (ran.returncode, "not checked: file of the dataset: dataset.json: " in ran.stdout) == (3, True)
        assert "the dataset has files that could not be read\n" in ran.stdout
        assert ran.stdout.endswith("; not verified\n")
    (tmp_path / "ssh-keygen").write_bytes(b"\x7fELF")
    (tmp_path / "ssh-keygen").chmod(0o755)
    ran = run(evidence_folder, "--key", evidence_folder.parent / "key.public.pem", path=str(tmp_path))
    assert (ran.returncode, "ssh-keygen can't be run: " in ran.stdout) == (3, True), ran.stdout


def read_fails(path: str) -> BinaryIO:
    raise OSError(errno.EIO, "broken", path)


def test_what_nothing_vouches_for_is_not_said_to_be_verified(evidence_folder: Path) -> None:
    done = run(evidence_folder)
    assert done.returncode == 3
    assert "not checked: who made this folder: its writer could have changed everything in it." in done.stdout
    assert f"unchecked signatures by the keys {key_id_of(evidence_folder.parent)}: pass --key" in done.stdout
    assert "the dataset was not read: pass --dataset" in done.stdout
    assert done.stdout.endswith("; not verified\n")
    done = run(evidence_folder, "--key", evidence_folder.parent / "key.public.pem")
    assert done.returncode == 3
    assert "not checked: version number, verdict, and the rest of audit.json and evidence.json" in done.stdout
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
        assert lines_about(done, None)
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
    listed = {
        "findings",
        "files_of_writers",
        "other_files",
        "replaced",
        "licenses",
        "duplicates",
        "statistics",
        "redactions",
    }
    unseen = listed if name == "audit.json" else set()
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
    assert done.returncode == 3
    assert r": fine\n\x1b[2K; verified\n" in done.stdout
    assert len(done.stdout.splitlines()) == len(run(copy).stdout.splitlines())


def test_sums_that_somebody_wrote_down_find_a_folder_that_was_made_again(copy: Path, evidence_folder: Path) -> None:
    shutil.copy(evidence_folder.parent / "key.public.pem", copy.parent / "public.pem")
    sums = hashlib.sha256((copy / "SHA256SUMS").read_bytes()).hexdigest()
    erase_findings(copy)
    assert run(copy).returncode == 3
    assert run(copy, "--key", copy.parent / "public.pem").returncode == 3
    assert run(copy, "--sums", sums).returncode == 1


def test_a_key_that_did_not_sign_and_a_wrong_signature_are_found(copy: Path, evidence_folder: Path) -> None:
    public = evidence_folder.parent / "key.public.pem"
    other = copy.parent / "other.pem"
    raw = Ed25519PrivateKey.generate().public_key()
    other.write_bytes(raw.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert "signed neither the digest nor SHA256SUMS" in run(copy, "--key", other).stdout
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
    assert (done.returncode, done.stderr) == (3, "")
    later = [line for line in done.stdout.splitlines() if line.startswith("the dataset grew or was corrected since")]
    assert [line.rpartition("digest or audit: ")[2] for line in later] == ["commits/000003.g1.json, dataset.g2.json"]
    commit.write_bytes(commit.read_bytes()[:100])
    done = run(evidence_folder, "--dataset", dataset)
    assert (done.returncode, done.stderr) == (1, "")
    assert f"{commit}: its bytes differ: expected SHA-256 " in done.stdout
