"""Copies of a picture that was taken down, by the real commands: the same pixels are refused, and near ones listed.

Only the segment stage is a stub: it takes no part in this.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segmint.infra.ray_session import Cluster
from tests.support.builds import AS_SHIPPED, NO_DETECTORS, ONE_EACH, segmint_here, write_catalog, write_config
from tests.support.photographs import photograph
from tests.support.small_dataset import build_dataset
from tests.support.two_masks import TwoMaskSegment

pytestmark = pytest.mark.ray

QUICK: dict[str, Any] = {
    "images_per_shard": 9,
    "deidentify": NO_DETECTORS,
    "model": AS_SHIPPED,
    "resources": ONE_EACH,
}


def encoded(image: Image.Image, quality: int = 92) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=quality)
    return sink.getvalue()


def scaled(share: float) -> Callable[[Image.Image], bytes]:
    return lambda image: encoded(image.resize((round(image.width * share), round(image.height * share))))


def cropped(image: Image.Image) -> bytes:
    x, y = round(image.width * 0.05), round(image.height * 0.05)
    return encoded(image.crop((x, y, image.width - x, image.height - y)))


SAME = {
    "appended": lambda data, number: data + bytes(number),
    "comment": lambda data, number: data[:2] + b"\xff\xfe\x00\x03" + bytes([number]) + data[2:],
}
"""Files with the same pixels as `data`, others for each `number`."""

NEAR: dict[str, Callable[[Image.Image], bytes]] = {
    "quality 80": lambda image: encoded(image, 80),
    "quality 40": lambda image: encoded(image, 40),
    "75%": scaled(0.75),
    "50%": scaled(0.5),
    "cropped": cropped,
    "gray": lambda image: encoded(image.convert("L")),
}


def write_copies(folder: Path, data: bytes, number: int) -> list[dict[str, str]]:
    """Write the eight copies of a picture, and return their catalog rows."""
    files = {name: change(data, number) for name, change in SAME.items()}
    files |= {name: change(Image.open(io.BytesIO(data))) for name, change in NEAR.items()}
    for name, content in files.items():
        (folder / f"{number} {name}.jpg").write_bytes(content)
    return [
        {"uri": f"{number} {name}.jpg", "image_id": f"copy {number} {name}", "license": "CC0-1.0"} for name in files
    ]


def copies(lines: list[str]) -> set[str]:
    """The names of copies in lines on near copies."""
    return {line.partition(" copy ")[2].partition(" looks like ")[0] for line in lines if " looks like " in line}


def test_eight_copies_of_a_picture_in_committed_shards_and_in_a_later_build(
    tmp_path: Path, local_ray: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segmint.pipeline.build.Segment", TwoMaskSegment)
    photos, dataset = tmp_path / "photos", tmp_path / "dataset"
    photos.mkdir()
    original = encoded(Image.fromarray(photograph("coffee", (480, 320))))
    (photos / "original.jpg").write_bytes(original)
    Image.fromarray(np.rot90(photograph("coffee", (480, 320)))).save(photos / "turned.png")
    Image.fromarray(photograph("chelsea", (480, 320))).save(photos / "other.jpg")
    rows = [{"uri": name, "image_id": name, "license": "CC0-1.0"} for name in ("original.jpg", "other.jpg")]
    catalog = photos / "catalog.jsonl"
    write_catalog(catalog, [*rows, *write_copies(photos, original, 1)])
    config = write_config(tmp_path / "build.yaml", catalog, dataset, **QUICK)
    build_dataset(config, segment_class=TwoMaskSegment)
    hashes = recognized(dataset)

    (tmp_path / "ids.txt").write_text("original.jpg\n")
    words = ("takedown", dataset, "--ids", tmp_path / "ids.txt", "--reason", "withdrawn")
    listed = json.loads(segmint_here(*words, "--dry-run", "--json"))
    assert {row["image_id"] for row in listed["copies"]} == {f"copy 1 {name}" for name in SAME}
    assert copies(listed["similar"]) == {f"1 {name}" for name in NEAR}
    taken = segmint_here(*words, "--yes", "--json")
    assert copies(json.loads(taken)["similar"]) == {f"1 {name}" for name in NEAR}
    proof = json.loads(segmint_here("takedown", dataset, "--prove", "original.jpg", "--json", check=1))
    assert copies(proof["found"]) == {f"1 {name}" for name in NEAR}

    turned = {"uri": "turned.png", "image_id": "copy 2 turned", "license": "CC0-1.0"}
    write_catalog(catalog, [*rows, *write_copies(photos, original, 1), *write_copies(photos, original, 2), turned])
    printed = "\n" + segmint_here("build", config, "--grow", "--json")
    built = json.loads("{" + printed.partition("\n{\n")[2])
    assert built["rejected"] == {"taken_down": 1 + 2 * len(SAME)}
    assert copies(built["similar"]) == {f"2 {name}" for name in (*NEAR, "turned")}
    every = {f"{number} {name}" for number in (1, 2) for name in NEAR} | {"2 turned"}
    shown = segmint_here("takedown", dataset, "--prove", "original.jpg", "--json", check=1)
    assert copies(json.loads(shown)["found"]) == every
    noted = json.loads(segmint_here("audit", dataset, "--integrity-only", "--json"))
    assert copies(", ".join(noted["notes"]).split(", ")) >= {"1 quality 80"}
    for text in (taken, shown, json.dumps(built), json.dumps(noted)):
        assert not [each for each in hashes if each in text]

    (tombstone,) = (dataset / "tombstones").iterdir()
    ids = [line.partition("sa_")[2].partition(" ")[0] for line in json.loads(shown)["found"]]
    for id in ids[1:]:
        segmint_here("takedown", dataset, "--other-picture", id, "--of", tombstone.name, "--reason", "another cup")
    assert len(json.loads(segmint_here("takedown", dataset, "--prove", "1", "--json", check=1))["found"]) == 1
    segmint_here(*words, "--with-similar", "--yes")
    segmint_here("takedown", dataset, "--prove", "1", "--json")
    segmint_here("verify", dataset)


def recognized(dataset: Path) -> set[str]:
    """Return the hashes that recognize a dataset's first picture, as numbers and in hexadecimal digits."""
    row = pq.read_table(next((dataset / "images").glob("sa_000000-*"))).to_pylist()[0]
    hashes = [form(value) for value in row["hashes"] for form in (str, "{:016x}".format)]
    return {row["pixels_sha256"], row["release_sha256"], *hashes}
