import hashlib
import http.server
import os
import shutil
import stat
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from segmint.infra.assets import resolve as assets
from segmint.infra.assets.resolve import (
    ASSETS,
    AssetError,
    PinnedUrl,
    describe,
    locate,
    pinned,
    plain_name,
    resolve,
    settled,
    sha256_of,
    verify,
)
from segmint.infra.storage.storage import Storage

CONTENT = b"weights of a very small model"
SMALL = assets.Asset(
    name="small",
    file_name="small.pt",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    size=len(CONTENT),
    license="CC0-1.0",
    sources=(),
)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch):
    """Registers the small asset with the sources given."""

    def register(*sources) -> None:
        monkeypatch.setitem(ASSETS, "small", replace(SMALL, sources=tuple(sources)))

    register()
    return register


@pytest.fixture
def web(tmp_path: Path):
    """A web server over a folder: (address, folder)."""
    folder = tmp_path / "web"
    folder.mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()


@pytest.mark.parametrize("name", ["mobile_sam", "clp"])
def test_a_file_inside_a_package_is_found_without_importing_it(name: str, tmp_path: Path) -> None:
    package = ASSETS[name].sources[0].package
    path = resolve(name, cache=tmp_path)
    assert path.name == ASSETS[name].file_name
    assert path.stat().st_size == ASSETS[name].size
    assert package not in sys.modules
    assert locate(name, tmp_path) == path
    verify(path, ASSETS[name])


def test_every_asset_has_a_full_hash_a_license_and_a_source() -> None:
    for name, asset in ASSETS.items():
        assert name == asset.name
        assert len(bytes.fromhex(asset.sha256)) == 32
        assert asset.license
        assert asset.sources


def test_describe_fetches_nothing(tmp_path: Path) -> None:
    found = {status.asset.name: status.path for status in describe(tmp_path)}
    assert set(found) == {"mobile_sam", "vit_b", "vit_l", "vit_h", "clp"}
    assert found["vit_h"] is None
    assert found["clp"] is not None
    assert list(tmp_path.iterdir()) == []


def test_verify_names_both_hashes(tmp_path: Path) -> None:
    (tmp_path / "small.pt").write_bytes(b"wrong")
    with pytest.raises(AssetError) as caught:
        verify(tmp_path / "small.pt", SMALL)
    assert SMALL.sha256 in str(caught.value)
    assert hashlib.sha256(b"wrong").hexdigest() in str(caught.value)
    with pytest.raises(AssetError, match="is no file"):
        verify(tmp_path / "none", SMALL)


def test_a_remembered_hash_is_dropped_when_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    assert sha256_of(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"three")
    assert sha256_of(path) == hashlib.sha256(b"three").hexdigest()


def test_a_path_is_taken_unless_it_bears_a_known_name(known, tmp_path: Path) -> None:
    own = tmp_path / "fine-tuned.pt"
    own.write_bytes(b"anything")
    assert resolve(str(own)) == own
    assert resolve(own.as_uri()) == own
    named = tmp_path / "small.pt"
    named.write_bytes(CONTENT[:-1])
    with pytest.raises(AssetError, match="rename it if it is yours"):
        resolve(str(named))
    named.write_bytes(CONTENT)
    assert resolve(str(named)) == named
    with pytest.raises(AssetError, match="neither a known name"):
        resolve("vit_x")


def test_mirror_then_cache_then_web_and_wrong_files_are_passed_over(known, tmp_path: Path, web) -> None:
    address, folder = web
    known(PinnedUrl(f"{address}/small.pt"))
    cache, mirror = tmp_path / "cache", tmp_path / "mirror"
    mirror.mkdir()

    with pytest.raises(AssetError) as caught:
        resolve("small", mirror=str(mirror), cache=cache)
    for part in (str(mirror), str(cache), "404", "What helps"):
        assert part in str(caught.value)

    (folder / "small.pt").write_bytes(CONTENT)
    (mirror / "small.pt").write_bytes(b"wrong")
    assert resolve("small", mirror=str(mirror), cache=cache) == cache / "small.pt"
    (folder / "small.pt").unlink()
    assert resolve("small", cache=cache) == cache / "small.pt"
    (mirror / "small.pt").write_bytes(CONTENT)
    assert resolve("small", mirror=str(mirror), cache=cache) == mirror / "small.pt"


def test_a_wrong_file_from_the_web_never_reaches_the_cache(known, tmp_path: Path, web) -> None:
    address, folder = web
    known(PinnedUrl(f"{address}/small.pt"))
    (folder / "small.pt").write_bytes(b"an error page")
    with pytest.raises(AssetError) as caught:
        resolve("small", cache=tmp_path / "cache")
    assert SMALL.sha256 in str(caught.value)
    assert not (tmp_path / "cache" / "small.pt").exists()


def test_a_web_address_must_be_pinned(tmp_path: Path, web) -> None:
    address, folder = web
    (folder / "own.ts").write_bytes(CONTENT)
    with pytest.raises(AssetError, match="not pinned"):
        resolve(f"{address}/own.ts", cache=tmp_path)
    assert resolve(f"{address}/own.ts#sha256={SMALL.sha256}", cache=tmp_path).read_bytes() == CONTENT
    with pytest.raises(AssetError, match="cannot fetch"):
        resolve(f"{address}/own.ts#sha256={'0' * 64}", cache=tmp_path)


@pytest.mark.s3
def test_mirror_and_own_weights_in_a_bucket(known, tmp_path: Path, s3_bucket: str, s3_options) -> None:
    storage = Storage(s3_options)
    mirror = f"s3://{s3_bucket}/assets"
    storage.put(f"{mirror}/small.pt", b"wrong")
    with pytest.raises(AssetError, match="expected SHA-256"):
        resolve("small", mirror=mirror, storage=storage, cache=tmp_path / "a")
    storage.put(f"{mirror}/small.pt", CONTENT)
    path = resolve("small", mirror=mirror, storage=storage, cache=tmp_path / "a")
    assert path == tmp_path / "a" / "small.pt"
    assert path.read_bytes() == CONTENT
    storage.delete(f"{mirror}/small.pt")
    assert resolve("small", mirror=mirror, storage=storage, cache=tmp_path / "a") == path

    storage.put(f"{mirror}/own.ts", b"own")
    own = resolve(f"{mirror}/own.ts", storage=storage, cache=tmp_path / "b")
    assert own.read_bytes() == b"own"
    storage.put(f"{mirror}/sub/small.pt", b"wrong")
    with pytest.raises(AssetError, match="rename it"):
        resolve(f"{mirror}/sub/small.pt", storage=storage, cache=tmp_path / "b")


def test_the_cache_folder_comes_from_the_environment(known, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(assets.CACHE_VARIABLE, str(tmp_path / "given"))
    (tmp_path / "given").mkdir()
    (tmp_path / "source").write_bytes(CONTENT)
    shutil.copy(tmp_path / "source", tmp_path / "given" / "small.pt")
    assert resolve("small") == tmp_path / "given" / "small.pt"


@pytest.mark.parametrize(
    "address",
    ["https://me:hunter2@host/own.pt", "https://host/own.pt?X-Amz-Signature=hunter2", "http://h/x.pt?sig=hunter2"],
)
def test_a_web_address_with_a_credential_is_refused_and_not_repeated(tmp_path: Path, address: str) -> None:
    for door in (settled, lambda given: resolve(given, cache=tmp_path)):
        with pytest.raises(AssetError, match="carries a credential") as caught:
            door(f"{address}#sha256={'0' * 64}")
        assert "hunter2" not in str(caught.value)


def test_the_name_of_weights_is_that_of_the_file() -> None:
    for given in ("own.pt", "/a/own.pt", "s3://b/a/own.pt", f"https://h/a/own.pt?x=/y#sha256={'0' * 64}"):
        assert plain_name(given) == "own.pt"


def test_the_cache_is_its_owners_alone(known, tmp_path: Path, web) -> None:
    address, folder = web
    (folder / "own.ts").write_bytes(CONTENT)
    resolve(f"{address}/own.ts#sha256={SMALL.sha256}", cache=tmp_path / "a" / "segmint")
    assert stat.S_IMODE((tmp_path / "a" / "segmint").stat().st_mode) == 0o700


def test_a_file_exchanged_behind_its_times_is_hashed_anew(tmp_path: Path) -> None:
    path = tmp_path / "own.ts"
    path.write_bytes(b"mine")
    before = path.stat()
    mine = sha256_of(path)
    path.write_bytes(b"evil")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert sha256_of(path) != mine
    with pytest.raises(AssetError, match="begun with"):
        pinned(path, mine)
    assert pinned(path, None) == path
