"""The demonstration with a small grid: the whole of it but the time that full grids take."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pipeline.demo

pytestmark = pytest.mark.ray


def test_it_builds_draws_and_finds_nothing_to_do_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {**pipeline.demo.CONFIG, "masks": {"profile": "sa1b", "crop_n_layers": 0, "points_per_side": 4}}
    monkeypatch.setattr(pipeline.demo, "CONFIG", small)
    told: list[str] = []
    accounting = pipeline.demo.run_demo(tmp_path / "demo", told.append)
    assert accounting.written == 4
    assert accounting.rejected == {
        "license_not_allowed": 1,
        "license_expired": 1,
        "truncated": 1,
        "duplicate_id": 1,
    }
    pictures = sorted((tmp_path / "demo" / "overlays").iterdir())
    assert [picture.name for picture in pictures] == ["sa_1.png", "sa_2.png", "sa_4.png", "sa_6.png"]
    for picture in pictures:
        assert str(picture) in "\n".join(told)
        assert np.asarray(Image.open(picture)).std() > 10
    told.clear()
    pipeline.demo.run_demo(tmp_path / "demo", told.append)
    assert any("nothing was left to do" in line for line in told)
