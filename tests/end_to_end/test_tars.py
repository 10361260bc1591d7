"""A build of photographs in a tar on a real S3 server equals a build of the same photographs in single files."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from segmint.catalogs.dataset.tombstones import TakedownRequest, read_removals
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import split_member
from segmint.pipeline.corrections.takedown import takedown
from segmint.pipeline.quality.audit.integrity import audit_integrity
from tests.support.builds import digests, segmint, segmint_here, write_config
from tests.support.built_fixtures import IN_TWOS, BuiltDataset
from tests.support.faulty_proxy import faulty_proxy
from tests.support.locations import location_of
from tests.support.s3_server import S3Server
from tests.support.tars import tar_of

pytestmark = [pytest.mark.ray, pytest.mark.s3]


@dataclass(frozen=True)
class TarBuild:
    """A dataset built from a tar, the URIs of its catalog, and how often the build made each request."""

    dataset: Path
    uris: list[str]
    requests: Counter[str]


@pytest.fixture(scope="module")
def tar_build(built: BuiltDataset, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TarBuild]:
    """The rows of `built`, scanned from a tar whose sidecars have their licenses and names."""
    scratch = tmp_path_factory.mktemp("tar")
    rows = [json.loads(line) for line in built.catalog.read_text().splitlines()]
    files: dict[str, bytes] = {}
    for row in rows[:-1]:
        files[f"photos/{row['uri']}"] = (built.catalog.parent / row["uri"]).read_bytes()
        files[f"photos/{row['uri']}.json"] = json.dumps({**row, "uri": "ignored"}).encode()
    bucket = s3_server.make_bucket()
    folder = f"s3://{bucket}/in"
    direct = Storage({"s3://": {"endpoint_url": s3_server.endpoint_url}})
    direct.put(f"{folder}/0001.tar", tar_of(files))
    targets: list[str] = []
    with faulty_proxy(s3_server.port) as proxy:
        options = {"s3://": {"endpoint_url": proxy.url}}
        config = write_config(
            scratch / "build.yaml", f"{folder}/catalog.jsonl", scratch / "dataset", storage=options, **IN_TWOS
        )
        segmint_here("catalog", "scan", folder, "-o", f"{folder}/catalog.jsonl", "--config", config)
        catalog = direct.read(f"{folder}/catalog.jsonl").decode()
        uris = [json.loads(line)["uri"] for line in catalog.splitlines()]
        missing = {**rows[-1], "uri": "nowhere.tar#512+7"}
        direct.put(f"{folder}/catalog.jsonl", (catalog + json.dumps(missing) + "\n").encode())
        proxy.policy = lambda method, target: targets.append(f"{method} {target.partition('?')[0]}") or b""
        segmint("build", config)
    yield TarBuild(scratch / "dataset", uris, Counter(targets))
    s3_server.remove_bucket(bucket)


def tables(dataset: Path, kind: str) -> list[dict[str, Any]]:
    """The rows of all tables of a kind, in order, without the URI."""
    files = sorted((dataset / kind).glob("*.parquet"))
    return [{**row, "uri": None} for file in files for row in pq.read_table(file).to_pylist()]


def test_jpegs_masks_and_rows_are_those_of_single_files(built: BuiltDataset, tar_build: TarBuild) -> None:
    same = {"shards", "masks"}
    found, expected = (
        {path: digest for path, digest in digests(dataset).items() if Path(path).parts[0] in same}
        for dataset in (tar_build.dataset, built.dataset)
    )
    assert found == expected
    assert len(found) == 6
    for kind in ("images", "rejects", "catalog"):
        assert tables(tar_build.dataset, kind) == tables(built.dataset, kind)
    assert len(tables(tar_build.dataset, "images")) == 4
    assert audit_integrity(location_of(tar_build.dataset)).findings.total == 0


def test_each_photograph_takes_one_request(tar_build: TarBuild) -> None:
    assert len(tar_build.uris) == 5
    assert all(uri.startswith("0001.tar#") and split_member(uri) for uri in tar_build.uris)
    tars = {request: count for request, count in tar_build.requests.items() if ".tar" in request}
    bucket = next(iter(tars)).split("/")[1]
    assert tars == {f"GET /{bucket}/in/0001.tar": 4, f"GET /{bucket}/in/nowhere.tar": 1}


def test_a_takedown_of_one_photograph_keeps_its_place_in_the_tar(tar_build: TarBuild, tmp_path: Path) -> None:
    dataset = shutil.copytree(tar_build.dataset, tmp_path / "dataset")
    takedown(location_of(dataset), TakedownRequest(ids=("image-1",)), "the photographer asked for it")
    found = [row["image_id"] for row in tables(dataset, "images")]
    assert found == ["image-0", "image-3", "image-4"]
    assert audit_integrity(location_of(dataset)).findings.total == 0
    removals = read_removals(location_of(dataset), "s3://bucket/in/catalog.jsonl")
    assert removals is not None
    (removed,) = removals.images.values()
    assert removed.uri == tar_build.uris[1]
    for uri in (removed.uri, f"./{removed.uri}", f"s3://bucket/in/{removed.uri}"):
        assert removals.names.names_source(uri)  # so no later row brings it back
    assert not any(removals.names.names_source(uri) for uri in (*tar_build.uris[:1], *tar_build.uris[2:], "0001.tar"))
