"""The demonstration with small grids and a stub of the segment stage, which `test_first_hour.py` runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import segmint.pipeline.demo
from segmint.infra.errors import SegmintError
from tests.support.two_masks import TwoMaskSegment


@pytest.mark.ray
def test_it_builds_draws_and_finds_nothing_to_do_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {**segmint.pipeline.demo.CONFIG, "masks": {"profile": "sa1b", "crop_n_layers": 0, "points_per_side": 4}}
    monkeypatch.setattr(segmint.pipeline.demo, "CONFIG", small)
    monkeypatch.setattr("segmint.pipeline.build.Segment", TwoMaskSegment)
    monkeypatch.setattr(segmint.pipeline.demo, "CROPS_SETTINGS", ("points_per_side=8", "crop_n_layers=1"))
    told: list[str] = []
    accounting = segmint.pipeline.demo.run_demo(tmp_path / "demo", told.append)
    assert accounting.written == 4
    assert accounting.rejected == {
        "license_not_allowed": 1,
        "license_expired": 1,
        "truncated": 1,
        "duplicate_id": 1,
    }
    overlays = tmp_path / "demo" / "overlays"
    pictures = sorted(overlays.glob("*.png"))
    names = ["china.overlay.png", "sa_1.png", "sa_2.png", "sa_4.png", "sa_6.png"]
    assert [picture.name for picture in pictures] == names
    for picture in pictures:
        assert f"  {picture}" in told
        assert np.asarray(Image.open(picture)).std() > 10

    made = json.loads((overlays / "china.json").read_text(encoding="utf-8"))
    assert (made["image"]["width"], made["image"]["height"]) == (640, 427)
    widths = [annotation["crop_box"][2] for annotation in made["annotations"]]
    from_image = sum(width == 640 for width in widths)
    from_crops = sum(320 < width < 640 for width in widths)
    assert from_image > 0
    assert from_crops > 0
    counts = f"{len(widths)} masks: {from_image} from the image, {from_crops} from its crops"
    settings = "--set points_per_side=8 --set crop_n_layers=1"
    command = f"segmint masks {tmp_path}/demo/photos/china.jpg -o {overlays}/china.json {settings} --overlay"
    assert told[-3:] == [command, counts, f"  {overlays}/china.overlay.png"]

    answer, before = list(told), {path: path.stat().st_mtime_ns for path in overlays.iterdir()}
    told.clear()
    segmint.pipeline.demo.run_demo(tmp_path / "demo", told.append)
    assert any("nothing to do: all rows of " in line for line in told)
    assert told[-3:] == answer[-3:]
    assert {path: path.stat().st_mtime_ns for path in overlays.iterdir()} == before


def test_a_photograph_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photograph")
    with pytest.raises(SegmintError, match=r"broken\.jpg: "):
        segmint.pipeline.demo.show_crops(broken, tmp_path, lambda line: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.jpg"]


def test_the_readme_shows_the_command_and_the_pictures() -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    photograph = Path("demo/photos") / segmint.pipeline.demo.CROPS_OF
    document = Path("demo/overlays") / f"{photograph.stem}.json"
    assert f"\n{segmint.pipeline.demo.crops_command(photograph, document)}\n" in readme
    for name in ("sa_1.png", "sa_2.png", "sa_4.png", "sa_6.png", f"{photograph.stem}.overlay.png"):
        assert f"\n  demo/overlays/{name}\n" in readme
