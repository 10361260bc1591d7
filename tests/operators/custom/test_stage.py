"""A custom stage on tables of rows, without Ray: its column, labels, verdicts, and faults."""

import gc
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from segmint import Reject, StageRow
from segmint.operators.custom.contract import StageContractError, load_stage, refusal
from segmint.operators.custom.stage import CustomStage, stage_rows
from segmint.operators.describe import describe_table
from segmint.operators.images import decode_jpeg
from segmint.operators.rows import DESCRIBED, PREPARED, SEGMENTED, to_table
from tests.support.cells import examples_of, run_cells
from tests.support.custom_stages import WEIGHTS
from tests.support.described_rows import accepted_row, faulted_row, rejected_row
from tests.support.photographs import photograph

HERE = "tests.support.custom_stages"


def table_of(schema: pa.Schema = DESCRIBED) -> pa.Table:
    """Four rows: two accepted ones, a rejected one, and a faulted one."""
    return to_table([accepted_row(0), accepted_row(1, masks=3), rejected_row(2), faulted_row(3)], schema)


def apply(stage: str, table: pa.Table, batch_size: int | None = None, **arguments: Any) -> pa.Table:
    return CustomStage(load_stage(f"{HERE}.{stage}", arguments), batch_size)(table)


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_a_stage_adds_its_column_and_nothing_else_changes(batch_size: int | None) -> None:
    table = table_of(PREPARED)
    done = apply("Mean", table, batch_size)
    assert done.drop_columns("stage_mean").equals(table)
    values = done.column("stage_mean").to_pylist()
    assert [value and value["sides"] for value in values] == [[30, 40], [30, 40], None, None]
    gray = stage_rows(table)[0].image.mean()
    assert values[0]["gray"] == gray


def test_the_columns_of_earlier_stages_stay_in_describe_and_are_seen_by_later_ones() -> None:
    segmented = apply("Mean", table_of(SEGMENTED))
    described = describe_table(segmented)
    assert described.column("stage_mean").equals(segmented.column("stage_mean"))
    assert stage_rows(described)[1]["stage_mean"]["sides"] == [30, 40]
    assert described.drop_columns("stage_mean").schema == DESCRIBED


def test_a_stage_rejects_with_its_own_reason() -> None:
    done = apply("Mean", table_of(), most=3).to_pylist()
    assert [(row["stage"], row["reason"]) for row in done[:3]] == [
        ("stage_mean", "too_bright"),
        ("stage_mean", "too_bright"),
        ("read", "not_found"),
    ]
    assert "expected at most 3" in done[0]["detail"]
    assert [row["stage_mean"] for row in done] == [None] * 4


def test_a_stage_never_sees_an_original_or_a_verdict() -> None:
    row = stage_rows(to_table([{**accepted_row(0), "original": b"secret"}], PREPARED))[0]
    assert not {"original", "fault", "stage", "reason", "detail"} & set(row)
    assert "original" in PREPARED.names
    with pytest.raises(KeyError):
        row["original"]
    with pytest.raises(TypeError):
        row["width"] = 3  # type: ignore[index]
    assert StageRow({"id": 1, "release": b""}).with_values(a=1)["id"] == 1
    with pytest.raises(ValueError, match="image 1 isn't in the dataset"):
        _ = StageRow({"id": 1, "release": b""}).image


def test_a_stage_sets_columns_and_labels_of_masks() -> None:
    table = table_of()
    done = apply("Ranks", table).to_pylist()
    masks = [mask for row in done[:2] for mask in row["masks"]]
    assert [mask["stage_rank"] for mask in masks] == [{"place": place} for place in (0, 1, 0, 1, 2)]
    labels = [(mask["label"], mask["label_score"], mask["label_source"]) for mask in masks]
    largest, other = ("größte", 0.5, WEIGHTS), (None, None, None)
    assert labels == [largest, other, largest, other, other]
    plain = [{key: value for key, value in mask.items() if key in ("area", "bbox", "segmentation")} for mask in masks]
    before = [mask for row in table.to_pylist()[:2] for mask in row["masks"]]
    assert plain == [{key: mask[key] for key in ("area", "bbox", "segmentation")} for mask in before]
    assert done[2]["masks"] is None


@pytest.mark.parametrize("function", ["wrong_type", "fail_on_2"])
def test_a_row_that_fails_is_faulted_alone(function: str) -> None:
    done = apply("Faulty", table_of(), function=function).to_pylist()
    assert [row["stage_faulty"] for row in done] == [{"gray": 1.0}, None, None, None]
    assert done[0]["fault"] is None
    assert done[1]["reason"] is None
    assert done[1]["fault"].startswith(
        "stage_faulty: TypeError: gray: Could not convert 'bright'"
        if function == "wrong_type"
        else "stage_faulty: KeyError: "
    )


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"names": "cat"}, "names is of type str: expected a list"),
        ({"names": {"cat", "dog"}}, "names is of type set: expected a list"),
        ({"names": {"cat": 1}}, "names is of type dict: expected a list"),
        ({"box": {"x": 1, "y": 2}}, "box has y, which the stage doesn't declare"),
        ({"names": [1]}, "names: Expected bytes, got a 'int' object"),
    ],
)
def test_the_fault_of_a_wrong_value_names_its_field(values: dict[str, Any], fault: str) -> None:
    done = apply("Nested", table_of(), values=values).to_pylist()
    assert [row["fault"] for row in done[:2]] == [f"stage_nested: TypeError: {fault}"] * 2
    stored = apply("Nested", table_of(), values={"names": ("cat", None), "box": (1,)}).to_pylist()
    assert stored[0]["stage_nested"] == {"names": ["cat", None], "box": {"x": 1}}


def test_images_of_earlier_batches_are_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def decode(jpeg: bytes) -> Any:
        gc.collect()
        alive.append(sum(each() is not None for each in decoded))
        pixels = decode_jpeg(jpeg)
        decoded.append(weakref.ref(pixels))
        return pixels

    monkeypatch.setattr("segmint.operators.custom.contract.decode_jpeg", decode)
    apply("Mean", to_table([accepted_row(place) for place in range(4)], DESCRIBED), batch_size=2)
    assert alive == [0, 1, 0, 1]


def test_a_raised_reject_is_a_verdict_on_its_row() -> None:
    done = apply("Faulty", table_of(), function="reject_2").to_pylist()
    assert [(row["stage"], row["reason"]) for row in done[:2]] == [(None, None), ("stage_faulty", "second")]


@pytest.mark.parametrize(
    ("stage", "function", "told"),
    [
        ("Faulty", "drop", "the stage faulty returned 1 rows for 2"),
        ("Faulty", "add", "the stage faulty returned 3 rows for 2"),
        ("Faulty", "reorder", "the stage faulty returned image 2 in place of image 1"),
        ("Faulty", "undeclared", "the stage faulty set other of image 1"),
        ("FaultyMasks", "too_few", "the stage faulty returned 0 values for the 2 masks of image 1"),
        ("FaultyList", "fraction_and_undeclared", "the stage faulty set other of image 2"),
        ("FaultyLabels", "persons_label", "the stage faulty set label_source 'person' and label_score None"),
    ],
)
def test_rows_and_values_that_break_the_rules_are_refused(stage: str, function: str, told: str) -> None:
    with pytest.raises(StageContractError) as caught:
        apply(stage, table_of(), function=function)
    assert str(caught.value).startswith(told)
    assert refusal(RuntimeError(f"Traceback\n  x.y.StageContractError: {caught.value}\n")) == str(caught.value)


@pytest.mark.parametrize(("reason", "detail"), [("taken_down", "x"), ("Bad reason", "x"), ("blurry", " "), ("", "x")])
def test_a_reject_needs_a_reason_of_its_own_and_a_detail(reason: str, detail: str) -> None:
    with pytest.raises(StageContractError):
        Reject(reason, detail)


def test_a_stage_that_exits_has_a_fault_like_one_that_raises() -> None:
    done = apply("Faulty", table_of(), function="leave_on_2").to_pylist()
    assert [row["fault"] for row in done[:2]] == [None, "stage_faulty: RuntimeError: it called sys.exit(2)"]
    assert done[0]["stage_faulty"] == {"gray": 1.0}


def test_a_fraction_in_place_of_a_whole_number_is_a_fault_and_not_cut_off() -> None:
    done = apply("FaultyList", table_of(), function="fraction").to_pylist()
    assert [row["stage_faulty"] for row in done[:2]] == [{"sides": [3, 4]}, None]
    assert "TypeError: item is" in done[1]["fault"]


class JudgedStage(CustomStage):
    """A stage whose rows fail when a test says so."""

    def fail(self, rows: Any, entry: Any) -> None:
        """Have rows that ran together fail."""
        self._end_if_unfit(rows, RuntimeError("CUDA error"), entry)


def test_a_gpu_that_fails_is_only_blamed_on_an_image_that_ran_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segmint.operators.custom.stage.device_failure", lambda _: "CUDA error")
    monkeypatch.setattr("segmint.operators.custom.stage.os._exit", lambda _: None)
    stage, excused = JudgedStage(load_stage(f"{HERE}.Mean", {}), on_gpu=True), list[int]()
    entry: Any = SimpleNamespace(excuse=lambda ordinal, _: excused.append(ordinal))
    rows = list(stage_rows(table_of()).values())
    stage.fail(rows, entry)
    assert excused == []
    stage.fail(rows[1:], entry)
    assert excused == [1]


def test_the_example_of_the_page_tests_a_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage, _, example = examples_of(Path(__file__).parents[3] / "docs/stages.md")
    (tmp_path / "blur.py").write_text(stage, encoding="utf-8")
    Image.fromarray(photograph("coffee")).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    run_cells([example])
    assert capsys.readouterr().out.startswith("{'variance': ")
