import shutil
import stat
from pathlib import Path

import pytest

from segmint.infra.assets.cache import CACHE_VARIABLE
from segmint.infra.assets.known import Asset, AssetError
from segmint.infra.assets.resolve import resolve


def test_a_web_address_must_be_pinned(tmp_path: Path, web, content: bytes, small: Asset) -> None:
    address, folder = web
    (folder / "own.ts").write_bytes(content)
    with pytest.raises(AssetError, match="not pinned"):
        resolve(f"{address}/own.ts", cache=tmp_path)
    assert resolve(f"{address}/own.ts#sha256={small.sha256}", cache=tmp_path).read_bytes() == content
    with pytest.raises(AssetError, match="cannot fetch"):
        resolve(f"{address}/own.ts#sha256={'0' * 64}", cache=tmp_path)


def test_the_cache_folder_comes_from_the_environment(known, tmp_path: Path, monkeypatch, content: bytes) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "given"))
    (tmp_path / "given").mkdir()
    (tmp_path / "source").write_bytes(content)
    shutil.copy(tmp_path / "source", tmp_path / "given" / "small.pt")
    assert resolve("small") == tmp_path / "given" / "small.pt"


def test_the_cache_is_its_owners_alone(known, tmp_path: Path, web, content: bytes, small: Asset) -> None:
    address, folder = web
    (folder / "own.ts").write_bytes(content)
    resolve(f"{address}/own.ts#sha256={small.sha256}", cache=tmp_path / "a" / "segmint")
    assert stat.S_IMODE((tmp_path / "a" / "segmint").stat().st_mode) == 0o700
