"""The demo's catalog: real photographs and licenses, and one refusal of each kind."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from segmint.catalogs.licenses import canonical_identifier
from segmint.catalogs.source.collect import DEMO_LICENSES, write_demo
from segmint.catalogs.source.readers import read_catalog
from tests.support.locations import location_of


def test_the_photographs_are_the_packages_files(tmp_path: Path) -> None:
    import skimage
    import sklearn

    catalog = write_demo(tmp_path)
    (batch,) = read_catalog(location_of(catalog))
    rows = batch.to_pylist()
    assert len(rows) == 8
    sources = {
        **{path.name: path for path in (Path(skimage.__file__).parent / "data").iterdir()},
        **{path.name: path for path in (Path(sklearn.__file__).parent / "datasets/images").iterdir()},
    }
    for row in rows:
        assert canonical_identifier(row["license"]) == row["license"]
        assert row["attribution"]
        assert row["source_url"].startswith("https://")
        path = tmp_path / row["uri"]
        if row["image_id"] == "china-broken":
            with pytest.raises(OSError, match="truncated"), Image.open(path) as image:
                image.load()
        else:
            assert path.read_bytes() == sources[path.name].read_bytes()
            Image.open(io.BytesIO(path.read_bytes())).load()


def test_four_of_eight_are_accepted(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in write_demo(tmp_path).read_text(encoding="utf-8").splitlines()]
    seen: set[str] = set()
    good = []
    for row in rows:
        fine = row["license"] in DEMO_LICENSES and "valid_until" not in row and "broken" not in row["image_id"]
        if fine and row["image_id"] not in seen:
            good.append(row["image_id"])
        seen.add(row["image_id"])
    assert good == ["astronaut", "coffee", "chelsea", "china"]
    sizes = {Image.open(tmp_path / "photos" / name).size for name in ("astronaut.png", "chelsea.png", "china.jpg")}
    assert len(sizes) == 3


def test_writing_again_changes_nothing(tmp_path: Path) -> None:
    write_demo(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    write_demo(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
