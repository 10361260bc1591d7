"""Declarations of custom stages, and the errors that stop a build before it starts."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pytest

from segmint.infra.errors import UsageError
from segmint.operators.custom.contract import StageContractError, load_stage
from tests.support import custom_stages
from tests.support.custom_stages import Mean

HERE = "tests.support.custom_stages"


def test_a_stage_declares_its_column_and_its_version_is_its_source() -> None:
    spec = load_stage(f"{HERE}.Mean", {"most": 3})
    assert spec.label == "stage_mean"
    assert spec.version == hashlib.sha256(Path(custom_stages.__file__).read_bytes()).hexdigest()
    assert spec.column is not None
    kind = pa.struct([("gray", pa.float64()), ("sides", pa.list_(pa.int32()))])
    assert spec.column.arrow_field == pa.field("stage_mean", kind)
    assert spec.identity["arguments"] == {"most": 3}
    call = spec.start()
    assert isinstance(call, Mean)
    assert call.most == 3


def test_a_version_of_its_own_stands_for_the_arguments(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("first")
    (tmp_path / "b").write_text("first")
    one, other = (load_stage(f"{HERE}.Keyed", {"file": str(tmp_path / name)}) for name in "ab")
    assert one.identity == other.identity
    assert one.identity["version"] == "first"
    assert "arguments" not in one.identity
    assert one.column is None
    (tmp_path / "a").write_text("second")
    with pytest.raises(StageContractError, match="its version here is second, and that of the build is first"):
        one.start()


def test_a_stage_that_cannot_start_says_why() -> None:
    with pytest.raises(StageContractError, match="the stage faulty can't start in a worker: KeyError: 'unknown'"):
        load_stage(f"{HERE}.Faulty", {"function": "unknown"}).start()


@pytest.mark.parametrize(
    ("stage", "arguments", "told"),
    [
        ("nowhere.Stage", {}, "can't be imported: ModuleNotFoundError"),
        (f"{HERE}.Absent", {}, "can't be imported: AttributeError"),
        (f"{HERE}.NOT_CALLABLE", {}, "isn't a function or a class with a __call__ method"),
        (f"{HERE}.NoCall", {}, "isn't a function or a class with a __call__ method"),
        (f"{HERE}.Mean", {"least": 3}, "unexpected keyword argument 'least'"),
        (f"{HERE}.Keyed", {}, "missing a required argument: 'file'"),
        (f"{HERE}.Keyed", {"file": "/absent"}, "FileNotFoundError"),
        (f"{HERE}.Mean", {"most": "\ud800"}, "surrogates not allowed"),
        (f"{HERE}.drop", {"rows": []}, "has an invalid name"),
        (f"{HERE}.BadName", {}, "has an invalid name: String should match"),
        (f"{HERE}.BadType", {}, "ValueError: No type alias for decimal"),
        (f"{HERE}.BadField", {}, "has an invalid fields.0.type"),
        (f"{HERE}.BadTable", {}, "has an invalid table"),
        (f"{HERE}.BadVersion", {}, "version is 3"),
        (f"{HERE}.BadLabels", {}, "a stage with labels has fields of masks only"),
    ],
)
def test_an_invalid_stage_is_refused_by_name(stage: str, arguments: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_stage(stage, arguments)
    assert str(caught.value).startswith(f"the stage {stage} ")
    assert told in str(caught.value)
