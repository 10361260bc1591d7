"""Tests marked `cuda`: on a GPU machine without most packages they are collected alone, elsewhere they are skipped."""

from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m cuda`, pass over files and folders that have no such test: what they import may not be installed."""
    if config.option.markexpr != "cuda" or TESTS not in (collection_path, *collection_path.parents):
        return None
    files = [collection_path] if collection_path.match("test_*.py") else collection_path.rglob("test_*.py")
    return None if any("@pytest.mark.cuda" in file.read_text(encoding="utf-8") for file in files) else True


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip by name where torch sees no GPU."""
    if item.get_closest_marker("cuda") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("torch sees no CUDA device here")
