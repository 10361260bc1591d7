"""An `az://` dataset on Azurite: what a store must do, a killed build, a takedown, and faults.

AZURITE_URL, AZURITE_PID, and the variables of an account are in the environment.
"""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from azure.core import MatchConditions
from azure.core.credentials import AzureNamedKeyCredential
from azure.core.exceptions import ResourceModifiedError
from azure.storage.blob import BlobServiceClient
from torch.utils.data import DataLoader

from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.catalogs.dataset.tables import open_committed
from segmint.catalogs.dataset.tombstones import TakedownRequest, read_tombstones
from segmint.catalogs.findings import RejectedError
from segmint.catalogs.source.scan import relative_rows, scan
from segmint.infra.errors import UsageError
from segmint.infra.storage.connections import AzureStore
from segmint.infra.storage.errors import AccessRefusedError, NotFoundError, ObjectTooLargeError, UnavailableError
from segmint.infra.storage.location import Location, probe, store_time
from segmint.infra.storage.retry import RetryPolicy
from segmint.infra.storage.storage import Storage
from segmint.infra.storage.stores import TEMPORARY_PREFIX
from segmint.infra.uris import UriNotAllowedError
from segmint.operators.prepare.read_image import ImageReader
from segmint.operators.rows import SCHEMAS
from segmint.operators.shards.put import check_purge
from segmint.pipeline.corrections.takedown import takedown
from segmint.pipeline.quality.audit.integrity import audit_integrity
from tests.support.builds import digests, segmint, small_catalog, write_config
from tests.support.committed import write_dataset
from tests.support.everything import download, jpegs, mentions, upload
from tests.support.runs import finish, running, wait_for
from tests.support.tars import tar_of
from tests.support.traces import files_with_traces, scan_data, telling_windows

URL = os.environ["AZURITE_URL"]
OPTIONS = {"az://": {"endpoint_url": URL}}
STORAGE = Storage(OPTIONS, RetryPolicy(attempts=2))
ACCOUNT = AzureNamedKeyCredential(os.environ["AZURE_STORAGE_ACCOUNT_NAME"], os.environ["AZURE_STORAGE_ACCOUNT_KEY"])
SERVICE = BlobServiceClient(URL, ACCOUNT)


def main() -> None:
    """Run every check; an assertion that fails ends the program."""
    with tempfile.TemporaryDirectory(prefix="segmint-azure-") as folder:
        check_store(Location(STORAGE, f"az://{made('objects')}/some/folder"), Path(folder))
        check_reading(Location(STORAGE, f"az://{made('reading')}/some [odd] prefix"))
        check_tar(Location(STORAGE, f"az://{made('tars')}/some folder"))
        check_dataset(Path(folder))
        check_faults()


def made(container: str) -> str:
    """Make a container; return its name."""
    SERVICE.create_container(container)
    return container


def check_store(folder: Location, scratch: Path) -> None:
    """Every operation of a store, with names that are hard to carry."""
    probe(folder)  # create-only puts, also by eight writers at once
    assert abs((store_time(folder) - datetime.now(UTC)).total_seconds()) < 60
    names = ["a#b?c=%20&d.jpg", "deep/er/Ünïcode 'x'.bin", "plain", "z z/%41"]
    for number, name in enumerate(names):
        assert (folder / name).put_if_absent(b"x" * number)
        assert (folder / name).put_if_absent(b"x" * number), "the same bytes count as ours"
        assert not (folder / name).put_if_absent(b"other")
    assert [(each.name, each.size) for each in folder.walk()] == [(name, i) for i, name in enumerate(names)]
    assert [each.name for each in folder.list()] == ["a#b?c=%20&d.jpg", "plain"]
    assert [each.name for each in folder.list(beginning="pl")] == ["plain"]
    file = folder / "plain"
    file.put(bytes(range(256)))
    assert file.read() == bytes(range(256))
    stream = file.open_ranges()
    stream.seek(100)
    assert stream.read(7) == bytes(range(100, 107))
    for start, stop in ((0, 256), (100, 107), (250, 300), (256, 300), (9999, 10000)):
        assert STORAGE.read_part(file.uri, start, stop) == bytes(range(256))[start:stop]
    assert refused(lambda: STORAGE.read_part(f"{folder}/absent", 0, 9), NotFoundError)
    assert refused(lambda: file.read(max_bytes=255), ObjectTooLargeError)
    assert refused((folder / "absent").read, NotFoundError)
    assert not (folder / "deep").exists(), "a prefix is no object"
    (folder / "absent").delete()
    (scratch / "large").write_bytes(os.urandom(1 << 20) * 70)  # more than the library puts at once by default
    large = folder / "large"
    assert large.put_file_if_absent(scratch / "large")
    assert large.sha256() == Location(STORAGE, str(scratch / "large")).sha256()
    blob = SERVICE.get_blob_client("objects", "some/folder/large")
    assert blob.get_block_list()[0] == [], "one put, no blocks, which two writers could mix"
    (scratch / "large").write_bytes(b"other")
    assert not large.put_file_if_absent(scratch / "large")
    large.put_file(scratch / "large")
    assert large.read() == b"other"
    # No command of segmint replaces an object only if it is unchanged, but the emulator tells whether it could.
    old = blob.get_blob_properties().etag
    large.put(b"new")
    when = {"etag": old, "match_condition": MatchConditions.IfNotModified}
    assert refused(lambda: blob.upload_blob(b"late", overwrite=True, **when), ResourceModifiedError)

    blob.create_snapshot()
    large.put(b"newer")
    large.delete()
    blob.upload_blob(b"again")
    blob.create_snapshot()
    assert folder.versioned() == {"large"}
    large.purge()
    assert folder.versioned() == set()
    assert "large" not in folder.walk_ever()
    check_purge(folder)
    deleted = SimpleNamespace(name=f"some/folder/{TEMPORARY_PREFIX}versions", deleted=True)
    with mock.patch.object(AzureStore, "entries", side_effect=[[], [], [deleted]]):  # the emulator has no soft delete
        assert "soft delete keeps" in refused(lambda: check_purge(folder), UsageError)
    print(f"az://: {len(names)} hard names, conditional puts, 70 MiB in one put, ranges, snapshots, and soft delete")


def check_reading(dataset: Location) -> None:
    """DuckDB and forked workers read a dataset in place."""
    write_dataset(dataset, shards=3)
    with open_committed(dataset, SCHEMAS) as tables:
        assert tables.query("SELECT count(*) AS n FROM masks").to_pylist() == [{"n": 12}]
    loader = DataLoader(open_dataset(dataset.uri, STORAGE), num_workers=2, batch_size=None)
    assert len(list(loader)) == 6
    print("az://: DuckDB and forked workers read in place")


def check_tar(folder: Location) -> None:
    """The images in a tar get rows, each is read by its URI, and a URI of another place is refused."""
    images = {f"{number}.jpg": os.urandom(1000 + number) for number in range(3)}
    (folder / "a #1.tar").put(tar_of({**images, "1.json": b'{"license": "CC-BY-4.0"}'}))
    reader = ImageReader(STORAGE, f"{folder}/catalog.jsonl", max_bytes=2000)
    rows = list(relative_rows(scan(folder, license="CC0-1.0", hashed=True), folder / "catalog.jsonl"))
    assert [row["license"] for row in rows] == ["CC0-1.0", "CC-BY-4.0", "CC0-1.0"]
    assert [reader.read(row) for row in rows] == list(images.values())
    for uri in ("a #1.tar#512+7", "a #1.tar#51200+7", "b.tar#512+7"):
        assert refused(lambda uri=uri: reader.read({"uri": uri}), RejectedError)
    print("az://: images in a tar")


def check_dataset(folder: Path) -> None:
    """A build that is killed and resumed, and a takedown: the bytes are those of local files, and no trace is left."""
    photos, stored = folder / "photos", Location(STORAGE, f"az://{made('photos')}/in")
    small_catalog(photos, count=6)
    upload(photos, stored)
    changes = {"images_per_shard": 1, "rows_per_block": 1}
    local = write_config(folder / "local.yaml", photos / "catalog.jsonl", folder / "local", **changes)
    segmint("build", local)
    dataset = Location(STORAGE, f"az://{made('datasets')}/small")
    config = write_config(folder / "az.yaml", f"{stored}/catalog.jsonl", dataset.uri, storage=OPTIONS, **changes)
    with running(config) as run:
        wait_for("a commit", lambda: (dataset / "commits").list(), run)
        run.kill()
        assert run.wait() == -signal.SIGKILL
    committed = len((dataset / "commits").list())
    assert 0 < committed < 6, f"{committed} of 6 shards when the build was killed"
    more = finish(config)
    assert digests(download(dataset, folder / "copy")) == digests(folder / "local")
    assert "nothing to do: all rows of " in segmint("build", config)
    print(f"az://: killed after {committed} of 6 commits, {more} more builds, byte for byte the local dataset")

    container = SERVICE.get_container_client("datasets")
    for blob in list(container.list_blobs()):
        container.get_blob_client(blob.name).create_snapshot()
    windows = telling_windows(scan_data(jpegs(folder / "local")["sa_2.jpg"]))
    assert files_with_traces(windows, [folder / "copy"])
    now = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    asked = TakedownRequest(ids=("image-1",)), "the photographer asked for it", now
    takedown(dataset, *asked)
    takedown(Location(Storage(), str(folder / "local")), *asked)
    shutil.rmtree(folder / "copy")
    copy = download(dataset, folder / "copy")
    assert digests(copy) == digests(folder / "local")
    for number, blob in enumerate(container.list_blobs(include=["snapshots"])):
        path = folder / "ever" / f"{number:05}-{Path(blob.name).name}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(container.get_blob_client(blob.name, snapshot=blob.snapshot).download_blob().readall())
    assert files_with_traces(windows, [folder / "ever"]) == []
    tombstone = read_tombstones(dataset)[0].name
    told = [path for path in mentions(folder / "ever", ["image-1"]) if not path.endswith(tombstone)]
    assert told == [], told
    assert audit_integrity(dataset).findings.total == 0
    print(f"az://: taken down, no trace of the image in {number + 1} blobs and snapshots, no finding")


def check_faults() -> None:
    """Missing containers, wrong credentials, other accounts, and an outage are told apart."""
    here, option = Storage(OPTIONS, RetryPolicy(attempts=2, first_wait_s=0.05)), "az://absent/x"
    told = [
        refused(lambda: here.read(option), AccessRefusedError),
        refused(lambda: here.size(option), AccessRefusedError),
    ]
    assert all("there is no such bucket" in text and "RequestId" not in text for text in told), told
    for name in ("az://A_B/x", "abfss://c@evil.example.org/x", "abfss://container@evil.blob.core.windows.net.org/x"):
        assert refused(lambda name=name: here.read(name), UriNotAllowedError)
    assert refused(lambda: Storage({"az://": {"account_key": "x"}}), UsageError)
    assert refused(lambda: Storage({"az://": {"timeout": 1}}), UsageError)
    os.environ["AZURE_STORAGE_ACCOUNT_KEY"] = "d3Jvbmc="
    wrong = Storage({"az://": {"endpoint_url": URL}, "az://photos": {"endpoint_url": URL, "anon": False}})
    text = refused(lambda: wrong.read("az://photos/in/catalog.jsonl"), AccessRefusedError)
    assert "check the credentials" in text, text
    os.kill(int(os.environ["AZURITE_PID"]), signal.SIGKILL)
    text = refused(lambda: here.read("az://photos/in/catalog.jsonl"), UnavailableError)
    assert not here.answers("az://photos/in/catalog.jsonl")
    print("az://: absent containers, other servers, credentials, and an outage are told apart")


def refused(call: Callable[[], object], kind: type[Exception]) -> str:
    """Return the text of the error that a call must raise; it is true if it has one."""
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


if __name__ == "__main__":
    main()
