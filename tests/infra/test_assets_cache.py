import shutil
import stat
from pathlib import Path

import pytest

from segmint.infra.assets import ASSETS, CACHE_VARIABLE, Asset, AssetError, cache_folder, locate, resolve
from segmint.infra.errors import UsageError


def test_a_web_address_must_be_pinned(cache: Path, web, content: bytes, small: Asset) -> None:
    address, folder = web
    (folder / "own.ts").write_bytes(content)
    with pytest.raises(AssetError, match="not pinned"):
        resolve(f"{address}/own.ts")
    assert resolve(f"{address}/own.ts#sha256={small.sha256}").read_bytes() == content
    with pytest.raises(AssetError, match="cannot fetch"):
        resolve(f"{address}/own.ts#sha256={'0' * 64}")


def test_the_cache_folder_comes_from_the_environment(known, tmp_path: Path, monkeypatch, content: bytes) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "given"))
    (tmp_path / "given").mkdir()
    (tmp_path / "source").write_bytes(content)
    shutil.copy(tmp_path / "source", tmp_path / "given" / "small.pt")
    assert resolve("small") == tmp_path / "given" / "small.pt"


def test_the_cache_is_its_owners_alone(known, cache: Path, web, content: bytes, small: Asset) -> None:
    address, folder = web
    (folder / "own.ts").write_bytes(content)
    resolve(f"{address}/own.ts#sha256={small.sha256}")
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who isn't in the system's list and has no variables, as in some containers."""

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "SEGMINT_CACHE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("weights")
def test_without_a_home_folder_only_the_cache_is_missing(homeless: None, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no home folder.*set SEGMINT_CACHE to a folder"):
        cache_folder()
    assert locate("mobile_sam") is not None
    own = tmp_path / "own.pt"
    own.write_bytes(b"weights")
    assert resolve(str(own)) == own
    (tmp_path / ASSETS["mobile_sam"].file_name).write_bytes(b"wrong")
    with pytest.raises(AssetError, match=r"no usable copy of vit_h(.|\n)*set SEGMINT_CACHE"):
        resolve("vit_h", mirror=str(tmp_path))
    with pytest.raises(UsageError, match="set SEGMINT_CACHE"):
        resolve("https://example.org/own.pt#sha256=" + "0" * 64)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("SEGMINT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(AssetError, match=r"the cache .*/file/cache can't be written: .*Set SEGMINT_CACHE"):
        resolve("https://example.org/own.pt#sha256=" + "0" * 64)
