"""The same build with catalog, photographs and dataset on a real S3 server, also with an outage of the server.

`make test` has a build on that server in `test_storage_faults.py`, whose files equal local ones in spite of faults.
"""

import threading
import time
from pathlib import Path

import pytest

from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from tests.support.builds import SEVERAL_ACTORS, digests, segmint, segmint_here, small_catalog, write_config
from tests.support.built_fixtures import IN_TWOS, BuiltDataset
from tests.support.everything import download, upload
from tests.support.s3_server import S3Server

pytestmark = [pytest.mark.ray, pytest.mark.s3]


@pytest.fixture(scope="module")
def photos_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    small_catalog(folder, count=5)
    return folder


@pytest.mark.long
def test_s3_holds_byte_for_byte_what_local_files_hold(
    built: BuiltDataset, s3_bucket: str, s3_options: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    """With three segment actors in S3, and one locally: how many there are changes no byte, either."""
    storage = Storage(s3_options)
    upload(built.catalog.parent, Location(storage, f"s3://{s3_bucket}/in"))
    config = write_config(
        tmp_path / "build.yaml",
        f"s3://{s3_bucket}/in/catalog.jsonl",
        f"s3://{s3_bucket}/datasets/small",
        storage=s3_options,
        **IN_TWOS,
        resources=SEVERAL_ACTORS,
        rows_per_block=1,
    )
    segmint("build", config)
    assert digests(download(Location(storage, f"s3://{s3_bucket}/datasets/small"), tmp_path / "copy")) == digests(
        built.dataset
    )
    assert "nothing to do: all rows of " in segmint_here("build", config)


@pytest.mark.long
def test_an_outage_in_the_middle_commits_no_false_reject(
    photos_folder: Path,
    tmp_path: Path,
    s3_server: S3Server,
    s3_bucket: str,
    s3_options: dict[str, dict[str, str]],
) -> None:
    storage = Storage(s3_options)
    upload(photos_folder, Location(storage, f"s3://{s3_bucket}/in"))
    config = write_config(
        tmp_path / "build.yaml",
        f"s3://{s3_bucket}/in/catalog.jsonl",
        tmp_path / "dataset",
        storage=s3_options,
        images_per_shard=1,
        rows_per_block=1,
    )
    commits = tmp_path / "dataset" / "commits"
    over = threading.Event()
    committed: list[int] = []  # number of commits when the outage began

    def outage() -> None:
        while not any(commits.glob("*.json")):
            if over.wait(0.05):
                return
        s3_server.stop()
        committed.append(len(list(commits.glob("*.json"))))
        time.sleep(20)
        s3_server.start()

    saboteur = threading.Thread(target=outage)
    saboteur.start()
    try:
        segmint("build", config, check=None)
    finally:
        over.set()
        saboteur.join()
    assert committed, "the build ended without a commit"
    assert committed[0] < 5, "the build was over before the server went out"
    segmint("build", config)
    undisturbed = write_config(
        tmp_path / "local.yaml",
        photos_folder / "catalog.jsonl",
        tmp_path / "undisturbed",
        images_per_shard=1,
        rows_per_block=1,
    )
    segmint("build", undisturbed)
    assert digests(tmp_path / "dataset") == digests(tmp_path / "undisturbed")
