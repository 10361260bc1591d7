"""`segmint verify`, `sign` and `diff` as a user meets them: exit codes, lines, JSON."""

import json
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
)
from typer.testing import CliRunner

from segmint.catalogs.dataset.commits import write_shards_index
from segmint.catalogs.dataset.versions import put_version
from segmint.pipeline.commands.cli import app
from tests.support.locations import location_of
from tests.support.protocol import DatasetPath, begin, write


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset of two shards with a recorded version."""
    place = DatasetPath(str(tmp_path / "dataset"))
    begin(place)
    write(place, 0)
    write(place, 1)
    write_shards_index(place.location, "protocol")
    put_version(place.location, "build")
    return tmp_path / "dataset"


def run(*arguments: object, typed: str | None = None):
    return CliRunner().invoke(app, list(map(str, arguments)), input=typed)


def test_verify(dataset: Path) -> None:
    done = run("verify", dataset)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].endswith("; verified; compared with the dataset's own records only")
    assert done.stdout.splitlines()[1].startswith("dataset digest: sha256:")
    path = next((dataset / "masks").glob("sa_000001-*"))
    path.write_bytes(b"x")
    done = run("verify", dataset, "--json")
    assert done.exit_code == 1
    value = json.loads(done.stdout)
    assert not value["verified"]
    assert value["problems"][0].startswith(f"masks/{path.name}: its bytes differ from those recorded")
    assert run("verify", dataset, "--version", 1).exit_code == 1
    assert run("verify", dataset, "--version", 2).exit_code == 2
    assert run("verify", dataset / "nowhere").exit_code == 2


def test_sign_and_verify(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = Ed25519PrivateKey.generate()
    private, public = tmp_path / "key.pem", tmp_path / "public.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"sesame")))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    unsigned = run("verify", dataset, "--key", public, "--require-pinned")
    assert (unsigned.exit_code, "not checked" in unsigned.stdout) == (1, False)
    assert "; 1 problem: not verified; compared with the dataset's own records only\n" in unsigned.stdout
    assert "there's no terminal to ask for its passphrase" in run("sign", dataset, "--key", private).stderr
    runner = sys.modules[CliRunner.isolation.__module__]  # typer's, or click's if typer has none of its own
    standard_input = runner._NamedTextIOWrapper  # noqa: SLF001 - the runner has no option for a terminal
    monkeypatch.setattr(standard_input, "isatty", lambda _: True, raising=False)
    aborted = run("sign", dataset, "--key", private)
    assert (aborted.exit_code, aborted.stderr.splitlines()[-1].partition(":")[0]) == (3, "interrupted")
    done = run("sign", dataset, "--key", private, typed="sesame\n")
    assert done.exit_code == 0, done.output
    assert "sesame" not in done.output
    assert list((dataset / "versions").glob("1.*.sig"))
    signed = run("verify", dataset, "--key", public, "--require-pinned")
    identity = next((dataset / "versions").glob("1.*.sig")).name.split(".")[1]
    said = " ".join(signed.stdout.split())  # lines are broken on a terminal
    assert f"; verified; compared with the signature of version 1 by key {identity} dataset digest" in said
    assert signed.exit_code == 0
    assert run("sign", dataset, "--key", private, typed="barley\n").exit_code == 2


def test_a_pinned_digest(dataset: Path) -> None:
    unpinned = run("verify", dataset, "--require-pinned")
    assert unpinned.exit_code == 3
    assert unpinned.stdout.startswith("not checked: the digest, against anything outside the dataset: pass --key, or")
    assert "; not verified; compared with the dataset's own records only\n" in unpinned.stdout
    digest = json.loads(run("verify", dataset, "--json").stdout)["version"]["digest"]
    for short in (1, digest[:20]):
        assert run("verify", dataset, "--require-pinned", "--version", short).exit_code == 3
    for extra in ([], ["--require-pinned"]):
        pinned = run("verify", dataset, "--version", f"sha256:{digest}", *extra)
        assert (pinned.exit_code, "; verified; compared with the pinned digest sha256:" in pinned.stdout) == (0, True)
    wrong = run("verify", dataset, "--version", f"sha256:{'0' * 64}")
    assert wrong.exit_code == 1, wrong.output
    assert f"its digest is sha256:{digest}, expected sha256:{'0' * 64}\n" in wrong.stdout
    (dataset / "versions/1.json").unlink()
    assert run("verify", dataset).exit_code == 3, "no version is recorded"
    assert run("verify", dataset, "--version", digest).exit_code == 0, "the pin says what the dataset must be"
    write(DatasetPath(str(dataset)), 1, variant=2, generation=2)
    write_shards_index(location_of(dataset), "protocol")
    put_version(location_of(dataset), "import")
    assert run("verify", dataset).exit_code == 0
    assert run("verify", dataset, "--version", digest).exit_code == 1, "recorded again with other content"


def test_diff(dataset: Path) -> None:
    write(DatasetPath(str(dataset)), 1, variant=2, generation=2)
    done = run("diff", dataset, dataset, "--version-a", 1)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "  added       1 image: image-5" in done.stdout.splitlines()
    value = json.loads(run("diff", dataset, dataset, "--version-a", 1, "--json").stdout)
    assert value["added"] == {"count": 1, "first": ["image-5"]}
    assert run("diff", dataset, location_of(dataset / "nowhere")).exit_code == 2
