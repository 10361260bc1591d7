"""Every file below a dataset's root is accounted for: planted originals are found, and running commands are not."""

import json
import multiprocessing
import os
import re
import shutil
import time
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import pytest
from typer.testing import CliRunner

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.versions import put_version
from segmint.catalogs.layout import data_path
from segmint.infra.errors import UnfinishedError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.pipeline.commands.cli import app
from segmint.pipeline.quality import verify
from segmint.pipeline.quality.audit.integrity import audit_integrity
from segmint.pipeline.quality.verify import verify_dataset
from tests.support.everything import jpegs
from tests.support.faulty_proxy import faulty_proxy
from tests.support.history_commands import answer_and_merge, grow, import_mask, take_down
from tests.support.locations import location_of
from tests.support.many_shards import write_many_shards
from tests.support.protocol import DatasetPath, two_shards, write
from tests.support.s3_server import S3Server

ROUNDS = 12
UNFINISHED = re.compile(
    r"^(?:still_there|other_catalog_row): |^shards.json: no such file|"
    r": expected (?:only generation \d|no unreferenced file)"
)
"""What is true until the running command ends: the image, or a former file of its shard, isn't removed yet."""


def found_by(dataset: Path, *command: str) -> tuple[int, list[str], str]:
    """The exit code of a command, the files of its findings or problems, and what it printed."""
    done = CliRunner().invoke(app, [command[0], str(dataset), *command[1:], "--json"])
    value = json.loads(done.stdout)
    findings = [each["file"] for each in value["findings"]] if "findings" in value else []
    problems = [each.partition(":")[0] for each in value.get("problems", ())]
    return done.exit_code, sorted({*findings, *problems}), done.stdout


def test_an_original_in_six_places_is_found_by_audit_and_verify(dataset: Path, tmp_path: Path) -> None:
    original = jpegs(dataset)["sa_1.jpg"]
    put_version(location_of(dataset), "build")
    (dataset / "README.md").write_text("Our streets, 2026.\n")
    (dataset / ".gitattributes").write_text("*.tar filter=lfs\n")
    for command in (("audit", "--integrity-only"), ("verify",)):
        code, files, printed = found_by(dataset, *command)
        assert (code, files) == (0, []), printed
        assert "README.md" in printed
    first = CommitLog(location_of(dataset)).read(0, 1)
    assert first is not None
    tar = first.file("shards").path
    (tmp_path / "elsewhere.tar").write_bytes((dataset / tar).read_bytes())
    (dataset / tar).unlink()
    (dataset / tar).symlink_to(tmp_path / "elsewhere.tar")
    shutil.make_archive(str(tmp_path / "a"), "zip", dataset / "images")
    shutil.copy(tmp_path / "a.zip", dataset / "originals.zip")
    stray, foreign = data_path("shards", 1, "0123456789ab" * 6), "masks/sa_000001-0123456789ab-originals.parquet"
    shutil.copy(tmp_path / "elsewhere.tar", dataset / stray)
    age(dataset / stray, days=2)
    age(dataset / "commits", days=2)
    shutil.copy(next((dataset / "images").glob("*.parquet")), dataset / foreign)
    for place, data in {"report/photo.jpg": original, "some/deep/folder/.cache": original * 100}.items():
        (dataset / place).parent.mkdir(parents=True, exist_ok=True)
        (dataset / place).write_bytes(data)
    planted = sorted(["originals.zip", stray, tar, "report/photo.jpg", foreign, "some/deep/folder/.cache"])
    for command in (("audit", "--integrity-only"), ("verify",)):
        code, files, printed = found_by(dataset, *command)
        assert (code, files) == (1, planted), printed


def age(place: Path, days: int) -> None:
    """Make files as old as those of a dataset that was built days ago."""
    then = time.time() - days * 24 * 3600
    for path in (place, *place.rglob("*")):
        os.utime(path, (then, then))


def held_by_verify(folder: Path, shards: int) -> tuple[int, int]:
    """Return the peak in bytes of what Python holds while one thread verifies a new dataset, and the dataset's keys.

    How many more files several threads read at a time, and hold in buffers, differs from run to run.
    """
    dataset = location_of(folder)
    keys = write_many_shards(dataset, shards)
    with patch.multiple(verify, THREADS=1, AHEAD=1):
        tracemalloc.start()
        found = verify_dataset(dataset)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (found.problems, found.files) == ((), keys)
    return peak, keys


def test_verify_holds_few_bytes_per_key(tmp_path: Path) -> None:
    """In a process of its own, because the peak counts what any thread allocates."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        small, few = process.submit(held_by_verify, tmp_path / "50", 50).result()
        large, many = process.submit(held_by_verify, tmp_path / "150", 150).result()
    assert (few, many) == (252, 752)
    assert (large - small) / (many - few) <= 500  # some 300


@pytest.mark.s3
@pytest.mark.long
def test_verifying_1000_shards_takes_one_request_per_1000_keys_besides_the_files(
    s3_server: S3Server, s3_bucket: str
) -> None:
    with faulty_proxy(s3_server.port) as proxy:
        dataset = Location(Storage({"s3://": {"endpoint_url": proxy.url}}), f"s3://{s3_bucket}/dataset")
        keys = write_many_shards(dataset, 1_000)
        proxy.requests.clear()
        found = verify_dataset(dataset)
    assert (found.problems, found.files) == ((), keys)
    # A commit is read in one request; a file that it names is looked at before it is streamed.
    assert len(proxy.requests) - 1_000 - 2 * 4_000 <= keys / 1000 + 20


def change(place: DatasetPath) -> None:
    """A build that grows the dataset, imports, merges, and takedowns, one after another."""
    write(place, 1)
    import_mask(place, 0, 1)
    answer_and_merge(place, 3, 2)
    grow(place)
    take_down(place, 1)
    write(place, 2)
    import_mask(place, 3, 3)
    answer_and_merge(place, 0, 4)
    take_down(place, 4)
    take_down(place, 7)


@pytest.mark.long
def test_nothing_false_is_found_next_to_a_build_a_takedown_and_an_import() -> None:
    verified, audited, said = 0, 0, set()
    for _ in range(ROUNDS):
        with two_shards(1) as place:
            age(Path(place.uri), days=3)
            process = multiprocessing.get_context("spawn").Process(target=change, args=(place,))
            process.start()
            while process.is_alive():
                said.update(verify_dataset(place.location).problems)
                verified += 1
                try:
                    said.update(finding.line() for finding in audit_integrity(place.location).findings)
                    audited += 1
                except (NotFoundError, UnfinishedError) as error:  # exit code 3
                    assert "catalog" in str(error)  # noqa: PT017
            assert process.exitcode == 0
            assert audit_integrity(place.location).findings.total == 0
    assert min(verified, audited) >= 100
    assert sorted(each for each in said if UNFINISHED.search(each) is None) == []
