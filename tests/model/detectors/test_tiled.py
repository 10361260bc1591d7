"""What is too small for a detector on the whole image is found on a tile, once, at its place."""

from pathlib import Path

import numpy as np
import pytest

from segmint.model.detectors.detection import Detection, TiledDetector
from segmint.model.detectors.torchscript import TorchScriptDetector
from tests.support.torchscript import MagentaDetector, saved, spot


class RecordingDetector:
    """A detector of nothing that keeps the sizes it is shown."""

    name, kind, score = "seeing", "face", 0.5

    def __init__(self) -> None:
        self.shown: list[tuple[int, int]] = []

    def detect(self, image: np.ndarray) -> list[Detection]:
        self.shown.append((image.shape[0], image.shape[1]))
        return []


@pytest.mark.parametrize("at", [(0, 0), (290, 190), (143, 95)])
def test_a_spot_too_small_for_the_detector_is_found_in_an_enlarged_tile(tmp_path: Path, at: tuple[int, int]) -> None:
    inner = TorchScriptDetector(saved(MagentaDetector(least=16), tmp_path / "spot.pt"), "plate")
    image = spot(np.zeros((200, 300, 3), np.uint8), *at, side=10)
    assert inner.detect(image) == []
    (found,) = TiledDetector(inner, "spot on tiles", tile_side=128, tile_overlap=48).detect(image)
    assert (found.kind, found.source, found.score) == ("plate", "spot on tiles", 0.95)
    assert np.abs(np.array(found.box) - (*at, at[0] + 10, at[1] + 10)).max() <= 1


def test_what_is_larger_than_a_tile_is_found_on_the_whole_image(tmp_path: Path) -> None:
    inner = TorchScriptDetector(saved(MagentaDetector(least=150), tmp_path / "spot.pt"), "face")
    image = spot(np.zeros((200, 300, 3), np.uint8), 70, 20, side=160)
    (found,) = TiledDetector(inner, "spot", tile_side=128, tile_overlap=48).detect(image)
    assert found.box == (70, 20, 230, 180)


def test_an_image_is_shown_whole_and_in_tiles_at_two_scales_which_are_never_larger() -> None:
    seeing = RecordingDetector()
    TiledDetector(seeing, "x", tile_side=100, tile_overlap=20, max_pixels=9_600).detect(
        np.zeros((160, 240, 3), np.uint8)
    )
    assert seeing.shown[0] == (80, 120), "shrunk to `max_pixels`"
    assert len(seeing.shown) == 1 + 2 * 3 + 4 * 6
    assert max(max(size) for size in seeing.shown[1:]) <= 100


def test_an_image_that_is_one_tile_is_searched_twice() -> None:
    seeing = RecordingDetector()
    TiledDetector(seeing, "x", tile_side=100, tile_overlap=20).detect(np.zeros((40, 50, 3), np.uint8))
    assert seeing.shown == [(40, 50), (80, 100)]
