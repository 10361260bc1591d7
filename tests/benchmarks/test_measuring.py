"""What the benchmarks share: which photographs they take, and what a spread says."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.measuring import (
    RESULTS,
    ROOT,
    SCIKIT_IMAGE,
    Figures,
    command_of,
    in_process,
    peak_mib,
    photographs,
    read,
    spread,
    waiting_as_shipped,
    write_result,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("truck.png", "dog.png", "groceries.jpg"):
        Image.new("RGB", (4, 3), "red").save(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    return tmp_path


@pytest.mark.usefixtures("processes")
def test_a_peer_waits_as_it_does_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    with waiting_as_shipped():
        assert in_process(os.getenv, "OMP_WAIT_POLICY") is None
    assert in_process(os.getenv, "OMP_WAIT_POLICY") == "PASSIVE"


def test_without_a_folder_the_photographs_are_those_of_scikit_image() -> None:
    assert tuple(photographs()) == SCIKIT_IMAGE
    assert photographs(only=["coffee"]) == {"coffee": "coffee"}
    assert read("coffee").shape == (400, 600, 3)


def test_a_folders_photographs_come_in_the_order_asked_for_and_scikit_images_after_them(folder: Path) -> None:
    assert list(photographs(folder)) == ["dog", "groceries", "truck"]
    assert list(photographs(folder, ["truck", "dog"], scikit_image=True)) == ["truck", "dog", *SCIKIT_IMAGE]
    assert np.array_equal(read(photographs(folder)["dog"]), np.full((3, 4, 3), (255, 0, 0)))


@pytest.mark.parametrize("only", [["truck", "lorry"], ["astronaut"]])
def test_a_photograph_that_is_not_there_is_refused_by_name(folder: Path, only: list[str]) -> None:
    with pytest.raises(SystemExit, match=rf"no photograph {only[-1]}: expected names from dog, groceries, truck"):
        photographs(folder, only, scikit_image=True)


def test_photographs_of_one_name_are_refused(folder: Path) -> None:
    Image.new("RGB", (4, 3)).save(folder / "coffee.png")
    with pytest.raises(SystemExit, match=r"coffee: both in .* and scikit-image's"):
        photographs(folder, scikit_image=True)
    Image.new("RGB", (4, 3)).save(folder / "dog.jpg")
    with pytest.raises(SystemExit, match="expected each name once"):
        photographs(folder)


def test_a_spread_is_the_median_between_the_least_and_the_most() -> None:
    assert spread([3.0, 1.0, 2.00049]) == {"median": 2.0, "least": 1.0, "most": 3.0}


@pytest.mark.usefixtures("processes")
def test_a_measurement_has_a_separate_process() -> None:
    assert in_process(os.getpid) != os.getpid()


@pytest.mark.usefixtures("processes")
def test_the_peak_of_a_process_is_not_that_of_the_one_that_started_it() -> None:
    large = np.ones(400 << 20, dtype=np.uint8)
    assert large.nbytes >> 20 == 400
    assert peak_mib() > 400
    assert 0 < in_process(peak_mib) < 300


@pytest.mark.usefixtures("processes")
def test_figures_from_the_same_machine_are_kept_and_others_are_not(tmp_path: Path) -> None:
    path, machine = tmp_path / "result.json", {"cpu": "fast", "load_average_before": 0.1}
    measured: list[float] = []

    def measure() -> dict[str, Any]:
        measured.append(1.0)
        return {"seconds": len(measured)}

    def figures() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(path.read_text())["runs"]
        return [{name: each[name] for name in ("writers", "seconds")} for each in found]

    Figures(path, "something", machine).add("runs", {"writers": 1}, measure)
    again = Figures(path, "something", {**machine, "load_average_before": 5.0})
    for writers in (1, 2):
        again.add("runs", {"writers": writers}, measure)
    assert figures() == [{"writers": 1, "seconds": 1}, {"writers": 2, "seconds": 2}]
    Figures(path, "something", {**machine, "cpu": "slow"}).add("runs", {"writers": 1}, measure)
    assert figures() == [{"writers": 1, "seconds": 3}]


@pytest.mark.usefixtures("processes")
def test_a_result_says_what_it_is_and_where_it_was_made(tmp_path: Path) -> None:
    write_result(tmp_path / "new" / "result.json", "something", {"cores": 2}, {"rows": []})
    result = json.loads((tmp_path / "new" / "result.json").read_text())
    assert list(result) == ["benchmark", "date", "machine", "command", "commit", "rows"]
    assert (result["benchmark"], result["machine"]) == ("something", {"cores": 2})
    assert result["commit"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", result["commit"])
    assert result["command"].startswith("python ")


def test_a_command_names_no_folder_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "photos").mkdir()
    words = [str(ROOT / "benchmarks/plots.py"), "--photos", str(tmp_path / "photos"), "--rounds", "3"]
    assert command_of(words) == "python benchmarks/plots.py --photos photos --rounds 3"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_each_stored_result_names_its_command_commit_and_cpu(path: Path) -> None:
    result = json.loads(path.read_text())
    kind, *words = result["command"].split()
    assert re.fullmatch(r"(stored by )?[0-9a-f]{40}(-dirty)?", result["commit"])
    assert result["machine"]["cpu"]
    if kind == "make":
        assert f"\n{words[0]}:" in (ROOT / "Makefile").read_text()
    else:
        assert (ROOT / words[0]).is_file()
