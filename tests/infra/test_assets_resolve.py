import sys
from pathlib import Path

import pytest

from segmint.infra.assets import ASSETS, Asset, AssetError, locate, resolve, resolve_default, verify
from segmint.infra.storage.storage import Storage


@pytest.mark.parametrize("name", ["mobile_sam", "clp"])
def test_a_file_inside_a_package_is_found_without_importing_it(name: str, cache: Path) -> None:
    source = ASSETS[name].package
    assert source is not None
    path = resolve(name)
    assert path.name == ASSETS[name].file_name
    assert path.stat().st_size == ASSETS[name].size
    assert source.package not in sys.modules
    assert locate(name) == path
    verify(path, ASSETS[name])


def test_locate_fetches_nothing(cache: Path) -> None:
    found = {name: locate(name) for name in ASSETS}
    assert set(found) == {"mobile_sam", "vit_b", "vit_l", "vit_h", "clp"}
    assert found["vit_h"] is None
    assert found["clp"] is not None
    assert not cache.exists()


def test_a_path_is_taken_unless_it_bears_a_known_name(known, tmp_path: Path, content: bytes) -> None:
    own = tmp_path / "fine-tuned.pt"
    own.write_bytes(b"anything")
    assert resolve(str(own)) == own
    assert resolve(own.as_uri()) == own
    ending = tmp_path / "my-small.pt"
    ending.write_bytes(b"anything")
    assert resolve(str(ending)) == ending
    named = tmp_path / "small.pt"
    named.write_bytes(content[:-1])
    with pytest.raises(AssetError, match="rename it if it is yours"):
        resolve(str(named))
    named.write_bytes(content)
    assert resolve(str(named)) == named
    with pytest.raises(AssetError, match="neither a known name"):
        resolve("vit_x")
    with pytest.raises(AssetError, match="--weights is clp, which isn't a SAM model"):
        resolve_default("clp", "clp", "--weights")


def test_mirror_then_cache_then_web_and_wrong_files_are_passed_over(
    known, cache: Path, tmp_path: Path, web, content: bytes
) -> None:
    address, folder = web
    known(url=f"{address}/small.pt")
    mirror = tmp_path / "mirror"
    mirror.mkdir()

    with pytest.raises(AssetError) as caught:
        resolve("small", mirror=str(mirror))
    for part in (str(mirror), str(cache), "404", "Try"):
        assert part in str(caught.value)

    (folder / "small.pt").write_bytes(content)
    (mirror / "small.pt").write_bytes(b"wrong")
    assert resolve("small", mirror=str(mirror)) == cache / "small.pt"
    (folder / "small.pt").unlink()
    assert resolve("small") == cache / "small.pt"
    (mirror / "small.pt").write_bytes(content)
    assert resolve("small", mirror=str(mirror)) == mirror / "small.pt"


def test_a_wrong_file_from_the_web_never_reaches_the_cache(known, cache: Path, web, small: Asset) -> None:
    address, folder = web
    known(url=f"{address}/small.pt")
    (folder / "small.pt").write_bytes(b"an error page")
    with pytest.raises(AssetError) as caught:
        resolve("small")
    assert small.sha256 in str(caught.value)
    assert not (cache / "small.pt").exists()


@pytest.mark.s3
def test_mirror_and_own_weights_in_a_bucket(known, cache: Path, s3_bucket: str, s3_options, content: bytes) -> None:
    storage = Storage(s3_options)
    mirror = f"s3://{s3_bucket}/assets"
    storage.put(f"{mirror}/small.pt", b"wrong")
    with pytest.raises(AssetError, match="expected SHA-256"):
        resolve("small", mirror=mirror, storage=storage)
    storage.put(f"{mirror}/small.pt", content)
    path = resolve("small", mirror=mirror, storage=storage)
    assert path == cache / "small.pt"
    assert path.read_bytes() == content
    storage.delete(f"{mirror}/small.pt")
    assert resolve("small", mirror=mirror, storage=storage) == path

    storage.put(f"{mirror}/own.ts", b"own")
    own = resolve(f"{mirror}/own.ts", storage=storage)
    assert own.read_bytes() == b"own"
    storage.put(f"{mirror}/sub/small.pt", b"wrong")
    with pytest.raises(AssetError, match="rename it"):
        resolve(f"{mirror}/sub/small.pt", storage=storage)
