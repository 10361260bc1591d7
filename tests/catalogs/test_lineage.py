"""Where weights come from: what `training.json` beside them must say, and what becomes of a file that does not."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from segmint.catalogs.lineage import (
    TrainingDatasetRef,
    TrainingRound,
    describe_rounds,
    lineage_of,
    readable_lineage_of,
    trainings,
)
from segmint.infra.errors import UsageError
from segmint.infra.storage.storage import Storage
from tests.support.lineages import BASE, HELD_OUT, TRAINED, training_json


def lineage_beside(folder: Path, sha256: str = TRAINED) -> tuple[TrainingRound, ...]:
    return lineage_of(str(folder / "sam.pth"), sha256, Storage())


def test_the_lineage_ends_with_the_weights_and_what_was_measured_of_them(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text(json.dumps(training_json()))
    base, last = lineage_beside(tmp_path)
    assert base == TrainingRound(weights=BASE, name="mobile_sam")
    datasets = (TrainingDatasetRef(name="street", digest="d" * 64),)
    assert last == TrainingRound(weights=TRAINED, name="sam-1.pth", datasets=datasets, held_out=HELD_OUT)
    assert trainings((base, last)) == 1
    assert describe_rounds((base, last)) == [
        "round 1: weights sam-1.pth (SHA-256 111111111111), trained on street (digest dddddddddddd) from mobile_sam; "
        "mean IoU at one click 0.361 before and 0.828 at the best step, on 14 masks of 2 held-out images"
    ]


def test_a_second_training_is_round_two(tmp_path: Path) -> None:
    first = TrainingRound(
        weights=TRAINED, name="sam-1.pth", datasets=(TrainingDatasetRef(name="street", digest="d" * 64),)
    )
    second = first.model_copy(update={"weights": "2" * 64, "name": "sam-2.pth"})
    lineage = (TrainingRound(weights=BASE, name="mobile_sam"), first, second)
    assert trainings(lineage) == 2
    assert [line.partition(":")[0] for line in describe_rounds(lineage)] == ["round 1", "round 2"]
    assert describe_rounds(lineage)[1].endswith("from sam-1.pth")


@pytest.mark.parametrize("weights", ["mobile_sam", "https://example.org/sam.pth#sha256=" + "0" * 64])
def test_a_known_name_and_a_web_address_have_none(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "training.json").write_text(json.dumps(training_json()))
    monkeypatch.chdir(tmp_path)
    assert lineage_of(weights, TRAINED, Storage()) == ()


def test_weights_alone_have_none_and_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lineage_beside(tmp_path) == ()
    assert "".join(capsys.readouterr()) == ""


def changed(**changes: Any) -> bytes:
    return json.dumps({**training_json(), **changes}).encode()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b'{"weights": ', "Expecting value"),
        (b"[1, 2]", "should be a valid dictionary"),
        (b'{"weights": "\xff"}', "invalid start byte"),
        (b"[" * 100_000, "recursion"),
        (changed(lineage=[]), "its lineage does not end with its weights"),
        (changed(datasets=[]), "its datasets are not those of the last round"),
        (changed(weights="2" * 64), "describes the weights 222222222222"),
        (changed(lineage=training_json()["lineage"][:1]), "its lineage does not end with its weights"),
        (changed(lineage=[{"weights": "sam", "name": "x"}]), "lineage.0.weights: String should match pattern"),
        (changed(lineage=training_json()["lineage"] * 600), "at most 1000 items"),
        (json.dumps(training_json()).replace("0.361", "1.5").encode(), "before: Input should be less than or equal"),
        (json.dumps(training_json()).replace("0.361", "NaN").encode(), "before: Input should be a finite number"),
    ],
)
def test_another_file_is_a_warning(
    data: bytes, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "training.json").write_bytes(data)
    assert lineage_beside(tmp_path) == ()
    printed = "".join(capsys.readouterr())
    assert "lineage_unknown" in printed
    assert problem in printed
    assert str(tmp_path / "training.json") in printed
    if "describes the weights" not in problem:
        with pytest.raises(UsageError, match=re.escape(problem)):
            readable_lineage_of(str(tmp_path / "sam.pth"), TRAINED, Storage())
