"""Small demo catalog of photographs from scikit-image and scikit-learn, with their real licenses.

A build accepts four of its rows, and rejects four others, each for a different reason. The photographs are exact copies
of files in the installed packages, except for one that is deliberately corrupted.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segmint.catalogs.schema import SOURCE
from segmint.infra.assets.known import PackageFile
from segmint.infra.errors import UsageError

DEMO_LICENSES = ("CC0-1.0", "CC-BY-2.0", "LicenseRef-public-domain")
"""Licenses that the demo's configuration allows."""

_SKIMAGE = "skimage/data"
_SKLEARN = "sklearn/datasets/images"


@dataclass(frozen=True)
class _Photograph:
    package_path: str  # below site-packages, starting with the package's name
    license: str
    attribution: str
    provider: str
    source_url: str
    country: str | None
    caption: str


# Licenses and credits as given by the packages: skimage.data's docstrings, sklearn's datasets/images/README.txt. That
# README credits both of its photographs to danielbuechele, but links the flower to vultilion's page.
_ASTRONAUT = _Photograph(
    f"{_SKIMAGE}/astronaut.png",
    "LicenseRef-public-domain",
    "NASA",
    "scikit-image",
    "https://flic.kr/p/r9qvLn",
    "US",
    "Eileen Collins, astronaut. No known copyright restrictions, released into the public domain by NASA.",
)
_COFFEE = _Photograph(
    f"{_SKIMAGE}/coffee.png",
    "CC0-1.0",
    "Rachel Michetti, courtesy of Pikolo Espresso Bar",
    "scikit-image",
    "https://scikit-image.org/docs/stable/api/skimage.data.html#skimage.data.coffee",
    None,
    "A coffee cup.",
)
_CHELSEA = _Photograph(
    f"{_SKIMAGE}/chelsea.png",
    "CC0-1.0",
    "Stefan van der Walt",
    "scikit-image",
    "https://scikit-image.org/docs/stable/api/skimage.data.html#skimage.data.chelsea",
    None,
    "Chelsea the cat.",
)
_CHINA = _Photograph(
    f"{_SKLEARN}/china.jpg",
    "CC-BY-2.0",
    "danielbuechele",
    "scikit-learn",
    "https://www.flickr.com/photos/danielbuechele/6061409035/",
    "CN",
    "A building in China.",
)
_FLOWER = _Photograph(
    f"{_SKLEARN}/flower.jpg",
    "CC-BY-2.0",
    "vultilion",
    "scikit-learn",
    "https://www.flickr.com/photos/vultilion/6056698931/",
    None,
    "A flower.",
)
_MOTORCYCLE = _Photograph(
    f"{_SKIMAGE}/motorcycle_left.png",
    "LicenseRef-middlebury-2014-stereo",
    "Nera Nesic, Porter Westling, Xi Wang, York Kitajima, Greg Krathwohl, Daniel Scharstein (Middlebury)",
    "scikit-image",
    "https://vision.middlebury.edu/stereo/data/scenes2014/",
    "US",
    "A motorcycle, from the Middlebury 2014 stereo benchmark.",
)


def write_demo(folder: Path) -> Path:
    """Write the demo's photographs and its catalog, `catalog.jsonl`, into `folder`, and return the catalog's path.

    Each call writes the same bytes. Raises `UsageError` if scikit-image or scikit-learn is not installed.
    """
    photos = folder / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    rows = list(_rows(photos))
    catalog = folder / "catalog.jsonl"
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    catalog.write_text(text, encoding="utf-8")
    return catalog


def _rows(photos: Path) -> Iterator[dict[str, Any]]:
    for photograph in (_ASTRONAUT, _COFFEE):
        yield _copied(photos, photograph)
    yield _copied(photos, _MOTORCYCLE) | {
        "caption": f"{_MOTORCYCLE.caption} Refused: its license is not among those allowed."
    }
    yield _copied(photos, _CHELSEA)
    yield _copied(photos, _FLOWER) | {
        "valid_until": "2020-12-31",
        "caption": f"{_FLOWER.caption} Refused as expired: the date is made up, the true license has no end.",
    }
    china = _copied(photos, _CHINA)
    yield china
    whole = (photos / Path(_CHINA.package_path).name).read_bytes()
    (photos / "china-broken.jpg").write_bytes(whole[: len(whole) // 2])
    yield china | {
        "uri": "photos/china-broken.jpg",
        "image_id": "china-broken",
        "caption": "The same file cut in half. Refused as broken.",
    }
    yield _copied(photos, _COFFEE) | {"caption": "The cup once more. Refused: its image_id stood there before."}


def _copied(photos: Path, photograph: _Photograph) -> dict[str, Any]:
    """Copy a photograph's file, and return its catalog row with the keys in the order of `SOURCE`."""
    source = _installed(photograph.package_path)
    (photos / source.name).write_bytes(source.read_bytes())
    row: dict[str, Any] = {
        **vars(photograph),
        "uri": f"photos/{source.name}",
        "image_id": source.stem,
        "redistributable": photograph.license in DEMO_LICENSES,
    }
    return {name: row[name] for name in SOURCE.names if row.get(name) is not None}


def _installed(package_path: str) -> Path:
    package, _, inside = package_path.partition("/")
    path = PackageFile("segmint[demo]", package, inside).find()
    if path is None:
        raise UsageError(f"the demo needs {package_path}, which is not installed: pip install 'segmint[demo]'")
    return path
