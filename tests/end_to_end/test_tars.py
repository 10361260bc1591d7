"""Photographs in single files, in a scanned tar, and in a collected one, on a real S3 server, give the same rows."""

import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segmint.catalogs.dataset.tombstones import TakedownRequest, read_removals
from segmint.infra.ray_session import Cluster
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import split_member
from segmint.pipeline.corrections.takedown import takedown
from segmint.pipeline.quality.audit.integrity import audit_integrity
from tests.support.builds import AS_SHIPPED, NO_DETECTORS, ONE_EACH, segmint_here, small_catalog, write_config
from tests.support.faulty_proxy import faulty_proxy
from tests.support.locations import location_of
from tests.support.s3_server import S3Server
from tests.support.tars import tar_of

pytestmark = [pytest.mark.ray, pytest.mark.s3]

WAYS = ("collected", "single", "tarred")
"""Ways of storing the same photographs, in the order of the catalog's files."""

OWN = dict.fromkeys(("ordinal", "id", "image_id", "uri", "annotation_id"))
"""Columns that differ between rows of the same photograph."""


@dataclass(frozen=True)
class TarBuild:
    """A dataset, its configuration and catalog, the photographs' bytes, and how often the build made each request."""

    dataset: Path
    config: Path
    catalog: Location
    photographs: list[bytes]
    requests: Counter[str]


_made: list[TarBuild] = []


@pytest.fixture
def tar_build(s3_server: S3Server, local_ray: Cluster, tmp_path_factory: pytest.TempPathFactory) -> TarBuild:
    """One build for all tests of this file: the catalog is a folder of three Parquet files beside two tars."""
    if not _made:
        _made.append(build(tmp_path_factory.mktemp("tars"), s3_server))
    return _made[0]


def build(scratch: Path, server: S3Server) -> TarBuild:
    local = small_catalog(scratch / "photos", count=4)
    rows = [json.loads(line) for line in local.read_text().splitlines()]
    photographs = [(local.parent / row["uri"]).read_bytes() for row in rows[:3]]
    direct = Storage({"s3://": {"endpoint_url": server.endpoint_url}})
    catalog = Location(direct, f"s3://{server.make_bucket()}/in/")
    targets: list[str] = []
    with faulty_proxy(server.port) as proxy:
        options = {"s3://": {"endpoint_url": proxy.url}}
        config = write_config(
            scratch / "build.yaml",
            catalog.uri,
            scratch / "dataset",
            storage=options,
            images_per_shard=6,
            model=AS_SHIPPED,
            resources=ONE_EACH,
            deidentify=NO_DETECTORS,
        )

        def named(way: str) -> list[dict[str, Any]]:
            return [{**row, "image_id": f"{way} {number}"} for number, row in enumerate(rows)]

        copied = [
            {**row, "image": {"bytes": data}} for row, data in zip(named(WAYS[0]), [*photographs, None], strict=True)
        ]
        pq.write_table(pa.Table.from_pylist(copied), scratch / "rows.parquet")
        collect = ("catalog", "collect", scratch / "rows.parquet", "--bytes", "image.bytes", "--config", config)
        assert "copied 3 photographs of 4 rows" in segmint_here(*collect, "-o", catalog.uri)

        single = [*named(WAYS[1])[:3], {**rows[-1], "uri": "nowhere.tar#512+7"}]
        for row, data in zip(single, photographs, strict=False):
            (catalog / row["uri"]).put(data)
        pq.write_table(pa.Table.from_pylist(single), scratch / "single.parquet")
        (catalog / "single.parquet").put_file(scratch / "single.parquet")

        files: dict[str, bytes] = {}
        for row, data in zip(named(WAYS[2]), photographs, strict=False):
            files[f"photos/{row['uri']}"] = data
            files[f"photos/{row['uri']}.json"] = json.dumps({**row, "uri": "ignored"}).encode()
        (catalog / "photos.tar").put(tar_of(files))
        tar, scanned = catalog / "photos.tar", catalog / "tarred.parquet"
        segmint_here("catalog", "scan", tar.uri, "-o", scanned.uri, "--config", config)

        proxy.policy = lambda method, target: targets.append(f"{method} {target.partition('?')[0]}") or b""
        segmint_here("build", config)
        proxy.policy = lambda method, target: b""
        assert "nothing to do: all rows of " in segmint_here("build", config)
    return TarBuild(scratch / "dataset", config, catalog, photographs, Counter(targets))


def tables(dataset: Path, kind: str) -> list[dict[str, Any]]:
    """The rows of all tables of a kind, in order."""
    return [row for file in sorted((dataset / kind).glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def rows_by_way(dataset: Path, kind: str) -> list[list[dict[str, Any]]]:
    """The rows of each way, without what differs between them."""
    rows = tables(dataset, kind)
    for row in rows:
        if row.get("container") is not None:
            row["container"] -= 10_000 * row["id"]
    return [[{**row, **OWN} for row in rows if row["image_id"].startswith(way)] for way in WAYS]


def test_jpegs_masks_and_rows_are_those_of_single_files(tar_build: TarBuild) -> None:
    for kind, fewest in (("images", 2), ("masks", 5), ("rejects", 1)):
        collected, single, tarred = rows_by_way(tar_build.dataset, kind)
        if kind == "rejects":  # without bytes, a collected row is an empty file
            assert collected.pop()["reason"] == "empty_object"
        assert collected == single == tarred
        assert len(single) >= fewest
    assert {row["license"] for row in rows_by_way(tar_build.dataset, "images")[1]} == {"CC0-1.0"}
    assert [row["reason"] for row in tables(tar_build.dataset, "rejects")].count("not_found") == 1
    assert audit_integrity(location_of(tar_build.dataset)).findings.total == 0


def test_each_photograph_takes_one_request(tar_build: TarBuild) -> None:
    uris = [row["uri"] for row in tables(tar_build.dataset, "images")]
    collected = uris[0].partition("#")[0]
    assert re.fullmatch(r"0001-[0-9a-f]{12}\.tar", collected)
    assert [uri.partition("#")[0] for uri in uris[:2] + uris[4:]] == [collected] * 2 + ["photos.tar"] * 2
    assert all(split_member(uri) for uri in uris[:2] + uris[4:])
    folder = f"/{tar_build.catalog.uri.removeprefix('s3://')}"
    found = {target: count for target, count in tar_build.requests.items() if target.endswith((".tar", ".jpg"))}
    expected = {collected: 4, "photos.tar": 2, "nowhere.tar": 1, **dict.fromkeys(uris[2:4], 1)}  # an empty file: two
    assert found == {f"GET {folder}{name}": count for name, count in expected.items()}


def test_a_takedown_of_one_photograph_keeps_its_place_in_the_tar(tar_build: TarBuild, tmp_path: Path) -> None:
    dataset = shutil.copytree(tar_build.dataset, tmp_path / "dataset")
    uris = [row["uri"] for row in tables(dataset, "images")]
    takedown(location_of(dataset), TakedownRequest(ids=("tarred 1",)), "the photographer asked for it")
    found = [row["image_id"] for row in tables(dataset, "images")]
    assert found == ["collected 0", "single 0", "tarred 0"]  # its copies are removed, too
    assert audit_integrity(location_of(dataset)).findings.total == 0
    removals = read_removals(location_of(dataset), tar_build.catalog.uri)
    assert removals is not None
    assert sorted(removed.uri for removed in removals.images.values()) == sorted(uris[1::2])
    for uri in (uris[5], f"./{uris[5]}", f"{tar_build.catalog}{uris[5]}"):
        assert removals.names.names_source(uri)  # so no later row brings it back
    assert not any(removals.names.names_source(uri) for uri in (*uris[::2], "photos.tar"))


def test_a_takedown_names_the_place_of_a_collected_original(tar_build: TarBuild, tmp_path: Path) -> None:
    dataset = shutil.copytree(tar_build.dataset, tmp_path / "dataset")
    (tmp_path / "ids.txt").write_text("collected 1\n")
    words = ("takedown", dataset, "--ids", tmp_path / "ids.txt", "--reason", "withdrawn", "--yes")
    ((tar, start, size),) = re.findall(r"(0001-\w+\.tar)#(\d+)\+(\d+)", segmint_here(*words))
    originals = (tar_build.catalog / tar).read()
    assert originals[int(start) :][: int(size)] == tar_build.photographs[1]
