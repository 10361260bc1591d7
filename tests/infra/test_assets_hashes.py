import hashlib
import os
from pathlib import Path

import pytest

from segmint.infra.assets import Asset, AssetError, pinned, sha256_of, verify


def test_verify_names_both_hashes(tmp_path: Path, small: Asset) -> None:
    (tmp_path / "small.pt").write_bytes(b"wrong")
    with pytest.raises(AssetError) as caught:
        verify(tmp_path / "small.pt", small)
    assert small.sha256 in str(caught.value)
    assert hashlib.sha256(b"wrong").hexdigest() in str(caught.value)
    with pytest.raises(AssetError, match="is not a file"):
        verify(tmp_path / "none", small)


def test_a_remembered_hash_is_dropped_when_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    assert sha256_of(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"three")
    assert sha256_of(path) == hashlib.sha256(b"three").hexdigest()


def test_a_file_exchanged_behind_its_times_is_hashed_again(tmp_path: Path) -> None:
    path = tmp_path / "own.ts"
    path.write_bytes(b"mine")
    before = path.stat()
    mine = sha256_of(path)
    path.write_bytes(b"evil")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert sha256_of(path) != mine
    with pytest.raises(AssetError, match="created with"):
        pinned(path, mine)
    assert pinned(path, None) == path
