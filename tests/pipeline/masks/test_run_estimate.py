"""What is said before masks are made: the work, and the time it takes by the speed of the last run."""

import json
from pathlib import Path

import pytest

from segmint.pipeline.masks.options import MasksOptions, PhotographPrompt, masks_config
from segmint.pipeline.masks.run import SPEEDS, Speed, Stopwatch, Work, recorded_speed

WHOLE = MasksOptions(masks=masks_config("sa1b", []), device="cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEGMINT_CACHE", str(tmp_path))
    return tmp_path


def test_the_work_is_known_from_the_settings() -> None:
    crops = MasksOptions(masks=masks_config("sa1b", ["crop_n_layers=2"]))
    assert (Work(WHOLE, 1).encodes, Work(WHOLE, 1).points) == (1, 1024)
    assert (Work(crops, 1).encodes, Work(crops, 1).points) == (21, 3072)
    assert Work(crops, 3).seconds(Speed(4, 0.5, 0.01)) == pytest.approx(4 + 3 * (21 * 0.5 + 30.72))


def test_a_recorded_speed_gives_the_next_estimate(cache: Path) -> None:
    work = Work(WHOLE, 1)
    seen: list[tuple[int, int]] = []
    stopwatch = Stopwatch(work, 120.0, lambda done, points: seen.append((done, points)))
    stopwatch(8, 1024)
    stopwatch(1024, 1024)
    stopwatch.record()
    assert seen == [(8, 1024), (1024, 1024)]
    speed = recorded_speed(WHOLE)
    assert speed is not None
    assert speed.start_s == 120
    assert work.line() == "mobile_sam: 1,024 points, about 2 min"
    assert recorded_speed(MasksOptions(device="cpu", precision="bf16")) is None
    several = Work(MasksOptions(prompts=(PhotographPrompt(box=(0, 0, 5, 5)),), device="cpu"), 1200)
    assert several.line().startswith("mobile_sam: 1,200 photographs with 1 prompt, about ")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"%s": {"start_s": 3}}', '{"%s": {"a": null}}', '{"%s": "x"}'])
def test_a_damaged_record_is_no_record(cache: Path, text: str) -> None:
    Stopwatch(Work(WHOLE, 1), 1.0).record()
    (key,) = json.loads((cache / SPEEDS).read_text())
    (cache / SPEEDS).write_text(text.replace("%s", key))
    assert recorded_speed(WHOLE) is None
    assert Work(WHOLE, 1).line().startswith("mobile_sam: 1,024 points, about ")


def test_a_cache_that_cannot_be_written_is_no_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "file").write_text("")
    monkeypatch.setenv("SEGMINT_CACHE", str(cache / "file" / "deep"))
    Stopwatch(Work(WHOLE, 1), 1.0).record()
    assert recorded_speed(WHOLE) is None


def test_a_first_estimate_grows_with_the_weights(tmp_path: Path) -> None:
    own = tmp_path / "own.pt"
    with own.open("wb") as file:
        file.truncate(2_000_000_000)
    line = Work(MasksOptions(masks=WHOLE.masks, weights=str(own), device="cpu"), 1).line()
    assert line.startswith("own.pt: 1,024 points, about ")
    assert line != Work(WHOLE, 1).line().replace("mobile_sam", "own.pt")
