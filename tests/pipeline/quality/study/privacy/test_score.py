"""A privacy study's score: counts by kind, and the largest share of images that they allow."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from segmint.catalogs.dataset.regions import read_regions
from segmint.infra.errors import UsageError
from segmint.pipeline.quality.study.privacy.sample import sample_privacy
from segmint.pipeline.quality.study.privacy.score import read_score, score_privacy
from tests.support.committed import write_dataset
from tests.support.locations import location_of


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """The images 1, 2, 4 and 5."""
    write_dataset(location_of(tmp_path / "small"), shards=2)
    sample_privacy(location_of(tmp_path / "small"), 4, 0, location_of(tmp_path / "study"))
    return tmp_path / "study"


def answer(study: Path, images: list[int], *marks: tuple[int, int, list[float]]) -> None:
    """Put the answers for some images: marks of (image, category, box)."""
    document = {
        "categories": [{"id": n, "name": name} for n, name in enumerate(("face", "plate", "other", "cat"), 1)],
        "images": [{"id": n, "file_name": f"sa_{n}.jpg", "width": 80, "height": 60} for n in images],
        "annotations": [
            {"id": n, "image_id": image, "category_id": category, "bbox": box}
            for n, (image, category, box) in enumerate(marks)
        ],
    }
    (study / "corrected.json").write_text(json.dumps(document))


def test_marks_are_counted_by_kind_and_become_regions(study: Path, tmp_path: Path) -> None:
    answer(study, [1, 2, 4], (1, 1, [0, 0, 4, 4]), (1, 1, [9, 9, 4, 4]), (1, 2, [20, 1, 9, 4]), (2, 4, [1, 1, 3, 3]))
    score = score_privacy(location_of(study), regions=location_of(tmp_path / "missed.jsonl"))
    assert (score.images, score.population, score.answered) == (4, 4, 3)
    counts = {each.kind: (each.marks, each.images) for each in score.missed}
    assert counts == {"face": (2, 2), "plate": (1, 2), "other": (0, 1), "any": (3, 2)}, "a cat may have been a face"
    assert score.any.share == pytest.approx(2 / 3)
    assert score.any.at_most == pytest.approx(0.98305, abs=1e-5)  # 1 - p^3 = 0.05
    assert "1 image without an answer" in "\n".join(score.lines())
    found = read_regions(location_of(tmp_path / "missed.jsonl"))
    assert [(each.id, each.kind, each.x, each.y, each.w, each.h) for each in found] == [
        (1, "face", 0, 0, 4, 4),
        (1, "face", 9, 9, 4, 4),
        (1, "plate", 20, 1, 9, 4),
    ]


def test_nothing_marked_is_a_bound_and_no_file(study: Path, tmp_path: Path) -> None:
    answer(study, [1, 2, 4, 5])
    score = score_privacy(location_of(study), regions=location_of(tmp_path / "missed.jsonl"))
    assert score.any.at_most == pytest.approx(1 - 0.05 ** (1 / 4))
    assert score.regions is None
    assert not (tmp_path / "missed.jsonl").exists()


def test_no_answer_is_no_bound(study: Path) -> None:
    answer(study, [9])
    score = score_privacy(location_of(study))
    assert (score.answered, score.foreign, score.any.at_most) == (0, 1, None)
    assert "no image was answered, so there is no bound" in score.lines()


def test_a_score_is_read_back_and_one_that_was_edited_is_not(study: Path, tmp_path: Path) -> None:
    answer(study, [1, 2], (1, 1, [0, 0, 4, 4]))
    score = score_privacy(location_of(study))
    file = location_of(tmp_path / "score.json")
    with pytest.raises(UsageError, match="does not exist"):
        read_score(file)
    file.put(json.dumps(asdict(score)).encode())
    assert read_score(file) == score
    value = asdict(score)
    value["missed"][0]["at_most"] = 0.001
    for wrong in (json.dumps(value).encode(), b"{}", b"no"):
        file.put(wrong)
        with pytest.raises(UsageError, match="is not a score"):
            read_score(file)
