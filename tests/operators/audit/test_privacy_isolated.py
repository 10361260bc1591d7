"""A detector's file runs in a child: it finds the same, and a hang, a death or any exception is named."""

from pathlib import Path

import numpy as np
import psutil
import pytest

from segmint.model.detectors.torchscript import TorchScriptDetector
from segmint.operators.audit import privacy
from segmint.operators.audit.privacy import DetectorFailedError, IsolatedDetector
from tests.support.onnx_detectors import listed
from tests.support.torchscript import MAGENTA, DoubleDetector, GreedyDetector, HangingDetector, saved

BLANK = np.zeros((60, 80, 3), np.uint8)


def marked(image: np.ndarray) -> np.ndarray:
    """The image with a first pixel that the modules know."""
    image = image.copy()
    image[0, 0] = MAGENTA
    return image


@pytest.mark.usefixtures("processes")
def test_it_finds_what_the_file_finds_in_this_process(tmp_path: Path) -> None:
    """Also a file with operators of torchvision, which nothing else imports there."""
    path = saved(DoubleDetector(), tmp_path / "nms.pt")
    there, here = IsolatedDetector(path, "plate"), TorchScriptDetector(path, "plate")
    assert (there.name, there.kind, there.score) == (here.name, here.kind, here.score)
    (found,) = there.detect(BLANK)
    assert [found] == here.detect(BLANK)
    assert (found.score, found.box) == (0.96, (0, 0, 80, 60))


@pytest.mark.usefixtures("processes")
def test_a_search_without_end_is_late_and_one_that_always_hangs_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = IsolatedDetector(saved(HangingDetector(), tmp_path / "hanging.pt"), "face", timeout_s=60)
    with monkeypatch.context() as patch:
        patch.setattr(detector.children, "timeout_s", 0.3)
        with pytest.raises(DetectorFailedError, match=r"^not done within 60 seconds, twice$"):
            detector.detect(marked(BLANK))
    with monkeypatch.context() as patch:
        patch.setattr(privacy, "MOST_LATE", 1)
        with pytest.raises(DetectorFailedError, match=r"^not run again, .* took over 60 seconds 1 times in a row$"):
            detector.detect(BLANK)
    assert detector.detect(BLANK) == []
    monkeypatch.setattr(privacy, "MOST_LATE", 1)
    assert detector.detect(BLANK) == []  # the search before this one was not late


@pytest.mark.usefixtures("processes")
def test_what_it_raises_and_what_it_allocates_are_named(tmp_path: Path) -> None:
    greedy = IsolatedDetector(saved(GreedyDetector(), tmp_path / "greedy.pt"), "face")
    with pytest.raises(DetectorFailedError, match=r"^needs more than the 4 GiB of memory that a search may take$"):
        greedy.detect(marked(BLANK))
    with pytest.raises(DetectorFailedError, match="no high images"):
        greedy.detect(np.ascontiguousarray(BLANK.transpose(1, 0, 2)))
    assert greedy.detect(BLANK) == []


@pytest.mark.usefixtures("processes")
def test_an_onnx_file_is_searched_without_torch(tmp_path: Path) -> None:
    """It takes seconds to import, and hundreds of megabytes."""
    before = set(psutil.Process().children())
    detector = IsolatedDetector(listed(tmp_path / "faces.onnx"), "face")
    detector.try_out()
    started = set(psutil.Process().children()) - before
    loaded = {Path(memory.path).name for child in started for memory in child.memory_maps()}
    assert any(name.startswith("onnxruntime_pybind11") for name in loaded)
    assert not any(name.startswith("libtorch") for name in loaded)
    detector.close()
