"""Whole builds under attack: secrets do not leak, and a hostile catalog reaches nothing.

Only the segment stage is a stub: it sees neither a secret nor a text of the catalog.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import duckdb
import pytest
from typer.testing import CliRunner

from segmint.infra.storage.storage import Storage
from segmint.pipeline.commands.cli import app
from tests.support.builds import NO_DETECTORS, ROOT, digests, segmint, write_catalog, write_config, write_photographs
from tests.support.s3_server import ACCESS_KEY, SECRET_KEY, S3Server

pytestmark = [pytest.mark.ray, pytest.mark.s3]

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIAMARKEDENVIRONMENT",
    "AWS_SECRET_ACCESS_KEY": "marked/secret+of+the/environment",
    "AWS_SESSION_TOKEN": "marked-session-token-of-the-environment",
}
"""Not the server's credentials, which are in the profile of the storage options."""

WRITTEN = "wJalrXUtnFEMI/K7MDENG+marked"
"""Secrets that a person wrote into the catalog."""

SECRETS = (*ENVIRONMENT.values(), SECRET_KEY, WRITTEN, WRITTEN.partition("/")[0], WRITTEN.partition("/")[2])

HOSTILE = (
    "../outside.jpg",
    "/etc/hostname",
    "file:///etc/hostname",
    "FILE:///etc/hostname",
    "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
    "simplecache::file:///etc/hostname",
    "zip://x.jpg::s3://bucket/x.zip",
    f"s3://AKIAIOSFODNN7EXAMPLE:{WRITTEN}@bucket/a.jpg",
    f"https://user:{WRITTEN}@host/a.jpg",
    f"https://bucket.s3.amazonaws.com/a.jpg?X-Amz-Credential=AKIAIOSFODNN7EXAMPLE&X-Amz-Signature={WRITTEN}",
)


def rows(photographs: list[str]) -> list[dict[str, str]]:
    """Rows with hostile URIs, and photographs whose ids and texts are hostile."""
    texts = {
        "license": "CC0-1.0",
        "attribution": "../../../../tmp/segmint-was-here",
        "source_url": f"https://host/page?access_token={WRITTEN}",
        "caption": WRITTEN,
    }
    ids = ("../../../../tmp/segmint-was-here", "/tmp/segmint-was-here")
    good = [{**texts, "uri": name, "image_id": image_id} for name, image_id in zip(photographs, ids, strict=True)]
    return [*good, *({**texts, "uri": uri} for uri in HOSTILE)]


class SecurityBuild:
    """A build's dataset, Ray folder and output, and the machine's state before and after."""

    def __init__(self, folder: Path, ray_folder: Path, server: S3Server) -> None:
        self.dataset, self.ray_folder = folder / "dataset", ray_folder
        bucket = server.make_bucket()
        options = {"s3://": {"endpoint_url": server.endpoint_url}}
        names = write_photographs(folder / "photos", 2)
        for name in names:
            Storage(options).put(f"s3://{bucket}/{name}", (folder / "photos" / name).read_bytes())
        catalog = write_catalog(folder / "catalog.jsonl", rows(names))
        Storage(options).put(f"s3://{bucket}/catalog.jsonl", catalog.read_bytes())
        profiles = folder / "credentials"
        profiles.write_text(f"[vendor]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n")
        config = write_config(
            folder / "build.yaml",
            f"s3://{bucket}/catalog.jsonl",
            self.dataset,
            storage={"s3://": {"endpoint_url": server.endpoint_url, "profile": "vendor"}},
            images_per_shard=20,
            deidentify=NO_DETECTORS,
        )
        self.environment = {
            **ENVIRONMENT,
            "AWS_SHARED_CREDENTIALS_FILE": str(profiles),
            "RAY_TMPDIR": str(ray_folder),
            "TMPDIR": str(folder),
            "SEGMINT_DEBUG": "1",
        }
        umask = os.umask(0o027)
        try:
            self.printed = segmint(
                "build", config, "--json", module="tests.support.two_masks", PYTHONPATH=str(ROOT), **self.environment
            )
        finally:
            os.umask(umask)
        self.config, self.endpoint = config, server.endpoint_url


@pytest.fixture(scope="module")
def ray_folder() -> Iterator[Path]:
    # Ray's sockets need a short path.
    folder = Path(tempfile.mkdtemp(prefix="sm-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, ray_folder: Path, s3_server: S3Server) -> SecurityBuild:
    return SecurityBuild(tmp_path_factory.mktemp("security"), ray_folder, s3_server)


def run_here(environment: dict[str, str], *words: str | Path) -> tuple[int, str]:
    """Run a command that doesn't start Ray, in this process; return its exit code and what it printed."""
    with mock.patch.dict(os.environ, environment):
        done = CliRunner().invoke(app, list(map(str, words)))
    return done.exit_code, done.output


def holders(secrets: tuple[str, ...], *folders: Path) -> list[str]:
    """The files under the folders that contain a secret, with the secret."""
    found = []
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                data = path.read_bytes()
                found += [f"{path}: {secret}" for secret in secrets if secret.encode() in data]
    return found


def test_no_secret_is_in_the_dataset_in_rays_folder_or_in_what_was_printed(
    built: SecurityBuild, capfd: pytest.CaptureFixture[str]
) -> None:
    logs = [path for path in built.ray_folder.rglob("*.out") if path.stat().st_size]
    assert logs, "Ray left no log: this shows nothing"
    assert holders(("mobile_sam",), built.dataset), "the finder finds nothing"
    assert holders(SECRETS, built.dataset, built.ray_folder) == []
    tables = [path for path in built.dataset.rglob("*.parquet") if path.parent.name != "masks"]
    assert len(tables) == 3
    for path in tables:  # their pages are compressed
        texts = str(duckdb.sql(f"select * from '{path}'").fetchall())
        assert "photo_00" in texts or "etc/hostname" in texts
        assert [secret for secret in SECRETS if secret in texts] == []
    code, audited = run_here(built.environment, "audit", built.dataset, "--integrity-only", "--json")
    assert (code, "findings" in audited) == (0, True), audited
    assert "uri_not_allowed" in built.printed
    assert [secret for secret in SECRETS if secret in built.printed + audited + "".join(capfd.readouterr())] == []


def test_hostile_rows_are_refused_and_name_no_file(built: SecurityBuild) -> None:
    refused = duckdb.sql(f"select stage, reason from '{built.dataset}/rejects/*.parquet'").fetchall()
    assert refused == [("read", "uri_not_allowed")] * len(HOSTILE)
    accepted = duckdb.sql(f"select image_id from '{built.dataset}/images/*.parquet' order by ordinal").fetchall()
    assert [image_id for (image_id,) in accepted] == ["../../../../tmp/segmint-was-here", "/tmp/segmint-was-here"]
    assert not list(Path("/tmp").glob("segmint-was-here*"))
    assert all(
        path.parts[0] in {"catalog", "commits", "dataset.json", "images", "masks", "rejects", "shards", "shards.json"}
        for path in map(Path, digests(built.dataset))
    )


def test_files_of_a_dataset_have_the_modes_that_the_umask_gives(built: SecurityBuild) -> None:
    files = [path for path in built.dataset.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}


def test_errors_of_a_configuration_with_secrets_show_none(
    built: SecurityBuild, capfd: pytest.CaptureFixture[str]
) -> None:
    for override in (
        f"output=s3://AKIAIOSFODNN7EXAMPLE:{WRITTEN}@bucket/x",
        f"model.weights=https://b.s3.amazonaws.com/x.pt?X-Amz-Signature={WRITTEN}",
        f'storage."s3://".secret={WRITTEN}',
        f'storage."s3://".endpoint_url=https://u:{WRITTEN}@host',
    ):
        code, printed = run_here(built.environment, "--debug", "build", built.config, "--set", override)
        assert (code, "error: " in printed) == (2, True), printed
        assert [secret for secret in SECRETS if secret in printed + "".join(capfd.readouterr())] == []


def test_refused_credentials_show_no_secret(built: SecurityBuild, capfd: pytest.CaptureFixture[str]) -> None:
    wrong = built.environment | {"AWS_SHARED_CREDENTIALS_FILE": os.devnull, "AWS_CONFIG_FILE": os.devnull}
    # This process keeps its connections: one of its own has the wrong credentials.
    change = f'storage={{"s3://": {{endpoint_url: "{built.endpoint}", connect_timeout: 4}}}}'
    _, printed = run_here(wrong, "--debug", "build", built.config, "--set", change)
    assert "check the credentials" in printed
    assert [secret for secret in SECRETS if secret in printed + "".join(capfd.readouterr())] == []
