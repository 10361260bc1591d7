"""`segmint.ray.Masks` in a Ray Data pipeline: the masks of `MaskGenerator`, and an error for what is no photograph."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import segmint.ray
from segmint import MaskGenerator
from segmint.operators.segment.segment import mask_row
from tests.support.builds import write_photographs

FEW_POINTS = {"points_per_side": 3, "pred_iou_thresh": 0.7, "stability_score_thresh": 0.8}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder, 2)
    (folder / "broken.jpg").write_bytes(b"not a photograph")
    return folder


@pytest.fixture(scope="module")
def expected(photographs: Path, mobile_sam_path: Path) -> dict[str, list[dict[str, Any]]]:
    generator = MaskGenerator(mobile_sam_path, device="cpu", **FEW_POINTS)
    return {path.name: list(map(mask_row, generator.generate(path))) for path in sorted(photographs.glob("photo_*"))}


def test_each_row_gets_its_masks_or_an_error(
    photographs: Path, expected: dict[str, list[dict[str, Any]]], mobile_sam_path: Path
) -> None:
    names = [*expected, "broken.jpg"]
    data = [*((photographs / name).read_bytes() for name in names), None]
    masks = segmint.ray.Masks(mobile_sam_path, device="cpu", column="jpeg", **FEW_POINTS)
    result = masks(pa.table({"jpeg": pa.array(data, pa.binary()), "name": [*names, "nothing"]}))
    assert result.column_names == ["name", "height", "width", "masks", "error"]
    *found, broken, nothing = result.to_pylist()
    for row in found:
        assert row == {"name": row["name"], "height": 180, "width": 240, "masks": expected[row["name"]], "error": None}
        assert len(row["masks"]) > 0
    assert broken["error"].startswith("not_an_image: ")
    assert nothing["error"] == "the photograph is a NoneType: expected bytes"
    assert {row[name] for row in (broken, nothing) for name in ("height", "width", "masks")} == {None}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "not enough memory: CUDA out of memory."),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "not enough memory: DefaultCPUAllocator"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_a_photograph_that_does_not_fit_into_memory_gets_an_error(
    photographs: Path, mobile_sam_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    masks = segmint.ray.Masks(mobile_sam_path, device="cpu")
    batch = pa.table({"bytes": [(photographs / "photo_000.jpg").read_bytes()]})
    monkeypatch.setattr(MaskGenerator, "generate", fail)
    (row,) = masks(batch).to_pylist()
    assert row["error"].startswith(said)
    assert row["masks"] is None
    error = RuntimeError("a fault of the program")
    with pytest.raises(RuntimeError, match="a fault of the program"):
        masks(batch)


def test_wrong_batches_are_explained(mobile_sam_path: Path) -> None:
    masks = segmint.ray.Masks(mobile_sam_path, device="cpu")
    with pytest.raises(TypeError, match="the batch is a dict: pass batch_format='pyarrow' to map_batches"):
        masks({"bytes": [b""]})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there is no column 'bytes', only image: set column="):
        masks(pa.table({"image": [b""]}))
    with pytest.raises(ValueError, match="the rows already have columns masks, which Masks adds"):
        masks(pa.table({"bytes": [b""], "masks": [1]}))


@pytest.mark.ray
def test_a_pipeline_of_ray_data_writes_them(
    local_ray: object,
    photographs: Path,
    expected: dict[str, list[dict[str, Any]]],
    mobile_sam_path: Path,
    tmp_path: Path,
) -> None:
    import ray

    data = ray.data.read_binary_files(str(photographs), include_paths=True)
    arguments = {"weights": str(mobile_sam_path), "device": "cpu", **FEW_POINTS}
    found = data.map_batches(
        segmint.ray.Masks, fn_constructor_kwargs=arguments, batch_format="pyarrow", batch_size=2, concurrency=1
    )
    found.write_parquet(str(tmp_path / "masks"))
    rows = {Path(row["path"]).name: row for row in pq.read_table(tmp_path / "masks").to_pylist()}
    assert {name: rows[name]["masks"] for name in expected} == expected
    assert rows["broken.jpg"]["masks"] is None
    assert rows["broken.jpg"]["error"].startswith("not_an_image: ")
