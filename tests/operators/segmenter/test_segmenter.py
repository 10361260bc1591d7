"""A segmenter on tables of rows, without Ray: its masks, verdicts, and faults."""

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from segmint.infra.errors import UsageError
from segmint.operators.custom.contract import StageContractError, load_stage
from segmint.operators.custom.stage import CustomStage
from segmint.operators.describe import describe_table
from segmint.operators.images import decode_jpeg
from segmint.operators.prepare.release import encode_original
from segmint.operators.rows import PREPARED, PROMPTED, SEGMENTED, to_table
from segmint.operators.segment.numerics import MixedNumericsError, Numerics, observe_release_numerics
from segmint.operators.segment.segment_alone import control_image, control_table
from segmint.operators.segmenter.segmenter import CustomSegmenter, SegmenterSettings, control_rows
from tests.support.described_rows import accepted_row, faulted_row, rejected_row

HERE = "tests.support.segmenters"


def prepared(**first: Any) -> pa.Table:
    """Four rows: two accepted ones, a rejected one, and a faulted one."""
    return to_table([{**accepted_row(0), **first}, accepted_row(1), rejected_row(2), faulted_row(3)], PREPARED)


def apply(name: str, table: pa.Table, *, batch_size: int | None = None, threads: int = 1, **arguments: Any) -> pa.Table:
    spec = load_stage(f"{HERE}.{name}", arguments)
    return CustomSegmenter(spec, batch_size, settings=SegmenterSettings(threads=threads))(table)


@pytest.mark.parametrize(("batch_size", "threads"), [(None, 1), (3, 2)])
def test_a_segmenter_takes_the_place_of_sam(batch_size: int | None, threads: int) -> None:
    table = CustomStage(load_stage("tests.support.custom_stages.Mean", {}))(prepared())
    done = apply("Bright", table, batch_size=batch_size, threads=threads)
    assert done.drop_columns("stage_mean").schema == SEGMENTED
    assert done.column("stage_mean").equals(table.column("stage_mean"))
    described = describe_table(done).to_pylist()
    assert [row["masks"] is None for row in described] == [False, False, True, True]
    assert (described[2]["reason"], described[3]["fault"]) == (rejected_row(2)["reason"], faulted_row(3)["fault"])
    for row in described[:2]:
        gray = decode_jpeg(row["release"])
        assert len(row["masks"]) == row["funnel"]["predicted"] == row["funnel"]["written"] == row["next_mask"] > 0
        assert (row["statistics"]["mean_predicted_iou"], row["statistics"]["mean_stability_score"]) == (0.75, None)
        for mask in row["masks"]:
            assert mask["segmentation"]["size"] == [gray.shape[0], gray.shape[1]]
            assert (mask["label"], mask["label_score"], mask["source"]) == ("bright", 0.5, "automatic")


def test_the_masks_do_not_depend_on_their_form() -> None:
    pixels, encoded = (apply(name, prepared()).column("masks").to_pylist() for name in ("Bright", "Encoded"))
    for one, other in zip(pixels[:2], encoded[:2], strict=True):
        for name in ("segmentation", "bbox", "area"):
            assert [mask[name] for mask in one] == [mask[name] for mask in other]


def test_only_a_segmenter_that_wants_the_redacted_original_gets_it() -> None:
    original = np.full((60, 80, 3), 7, np.uint8)
    table = prepared(original=encode_original(original))
    texts = [row["masks"][0]["prompts"][0]["text"] for row in apply("Original", table).to_pylist()[:2]]
    assert texts == ["80 x 60", "40 x 30"], "the second image wasn't made smaller"
    assert "original" not in apply("Original", table).column_names
    spec = load_stage(f"{HERE}.Original", {})
    assert spec.identity["wants_original"] is True
    for row in apply("LooksForOriginal", table).to_pylist()[:2]:
        told = "AttributeError: the row has no original: set wants_original = True in the class (segmenters.py, line "
        assert row["fault"].startswith(f"stage_looks: {told}")


@pytest.mark.parametrize(
    ("how", "fault"),
    [
        ("raise", "ValueError: no masks for image 2"),
        ("size", r"MaskError: mask 0 is an array of bool with the shape \(30, 41\)"),
        ("type", "MaskError: mask 0 is an array of uint8"),
        ("no_mask", "MaskError: mask 0 is of type ndarray"),
        ("nan", "MaskError: mask 0: score"),
        ("sum", "MaskError: mask 0: the RLE counts cover 1199 pixels"),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_row_for_which_the_segmenter_fails_is_faulted_alone(how: str, fault: str, batch_size: int) -> None:
    done = apply("Faulty", prepared(), batch_size=batch_size, how={"2": how}).to_pylist()
    assert (done[0]["fault"], len(done[0]["masks"])) == (None, 1)
    assert (done[1]["masks"], done[1]["reason"]) == (None, None)
    assert re.match(f"stage_faulty: {fault}", done[1]["fault"])


def test_a_stage_adds_its_masks_to_those_of_the_images() -> None:
    rows = [accepted_row(0), accepted_row(1, masks=0), rejected_row(2), faulted_row(3)]
    segmented = to_table(rows, SEGMENTED)
    prompts = pa.array([[{"box": [1.0, 2.0, 3.0, 4.0]}], None, None, None], PROMPTED.field("prompts").type)
    table = CustomStage(load_stage("tests.support.custom_stages.Mean", {}))(segmented.append_column("prompts", prompts))
    done = apply("Bright", table)
    assert done.drop_columns(["stage_mean", "prompts"]).schema == SEGMENTED
    for name in set(table.column_names) - {"masks", "funnel"}:
        assert done.column(name).equals(table.column(name)), name
    model = load_stage(f"{HERE}.Bright", {}).sha256
    alone = apply("Bright", prepared()).to_pylist()
    described = describe_table(done).to_pylist()
    for before, added, after in zip(table.to_pylist()[:2], alone[:2], described[:2], strict=True):
        count = len(before["masks"])
        assert len(added["masks"]) > 0
        assert after["next_mask"] == len(after["masks"]) == after["funnel"]["written"] == count + len(added["masks"])
        for step, number in added["funnel"].items():
            assert after["funnel"][step] == before["funnel"][step] + number
        assert [(mask["model"], mask["label"]) for mask in after["masks"][:count]] == [(None, None)] * count
        for mask, other in zip(after["masks"], [*before["masks"], *added["masks"]], strict=True):
            assert {name: mask[name] for name in other if name != "model"} == {
                name: value for name, value in other.items() if name != "model"
            }
        for mask in after["masks"][count:]:
            assert (mask["model"], mask["label_source"], mask["source"]) == (model, f"model:{model}", "automatic")
    assert [row["masks"] for row in described[2:]] == [None, None]
    assert (described[2]["reason"], described[3]["fault"]) == (rows[2]["reason"], rows[3]["fault"])

    faulty = apply("Faulty", table, how={"1": "raise", "2": "many"}).to_pylist()
    assert [row["masks"] for row in faulty] == [None] * 4
    told = r"stage_faulty: ValueError: no masks for image 1 \(segmenters\.py, line \d+\)"
    assert re.fullmatch(told, faulty[0]["fault"])
    assert faulty[1]["reason"] == "too_many_masks"


def test_the_control_image_of_a_stage_that_adds_masks_has_one() -> None:
    bare, segmented = control_rows(adds=False), control_rows(adds=True)
    assert "masks" not in bare.column_names
    assert segmented.column_names == [*SEGMENTED.names, "prompts"]
    (row,) = segmented.to_pylist()
    assert (row["masks"][0]["area"], row["masks"][0]["predicted_iou"]) == (256 * 192, 1.0)
    assert row["prompts"] == bare.to_pylist()[0]["prompts"]
    (done,) = apply("Bright", segmented).to_pylist()
    assert len(done["masks"]) > 1


def test_too_many_masks_are_a_verdict() -> None:
    row = apply("Faulty", prepared(), how={"2": "many"}).to_pylist()[1]
    assert (row["stage"], row["reason"], row["masks"]) == ("stage_faulty", "too_many_masks", None)


def test_a_segmenter_that_forgets_its_masks_ends_the_run() -> None:
    with pytest.raises(StageContractError, match="the segmenter faulty returned image 2 without masks: it must call"):
        apply("Faulty", prepared(), how={"2": "forget"})


def test_a_trial_also_encodes_the_masks() -> None:
    def alone(**arguments: Any) -> CustomSegmenter:
        return CustomSegmenter(load_stage(f"{HERE}.Faulty", arguments))

    assert alone(how={"1": "raise"}).has_memory_for(control_table())
    with pytest.raises(Exception, match="mask 0: score"):
        alone(how={"control": "nan"}).has_memory_for(control_table())
    assert control_image().shape == (192, 256, 3)


def test_the_identity_of_a_segmenter() -> None:
    spec, other = (load_stage(f"{HERE}.Bright", {"threshold": threshold}) for threshold in (1, 2))
    assert spec.identity == {
        "stage": f"{HERE}.Bright",
        "version": "1",
        "wants_original": False,
        "wants_prompts": False,
        "arguments": {"threshold": 1},
    }
    assert (len(spec.sha256), spec.sha256 == other.sha256) == (64, False)
    masks = apply("Bright", prepared(), threshold=1).to_pylist()[0]["masks"]
    assert {mask["label_source"] for mask in masks} == {f"model:{spec.sha256}"}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("WithFields", "a stage with masks = True has neither fields nor labels"),
        ("WithoutMasks", "it sets wants_original, which only a stage with masks = True may do"),
        ("WrongMasks", "masks is 1: expected true or false"),
    ],
)
def test_an_invalid_class_is_refused(name: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        load_stage(f"{HERE}.{name}", {})


def test_an_actor_releases_what_the_dataset_began_with() -> None:
    spec = load_stage(f"{HERE}.Bright", {})
    numerics = observe_release_numerics(spec.sha256)
    assert numerics == Numerics.recorded(numerics.to_dict())
    assert not {"device_kind", "threads", "cpu", "kernels", "cuda"} & numerics.to_dict().keys()
    assert (numerics.device, numerics.weights_sha256) == ("segmenter", spec.sha256)
    CustomSegmenter(spec, settings=SegmenterSettings(numerics=numerics))
    older = Numerics.recorded({**numerics.to_dict(), "pillow": "1.0"})
    with pytest.raises(MixedNumericsError, match=r"released images bit for bit: pillow '.*' instead of '1\.0'"):
        CustomSegmenter(spec, settings=SegmenterSettings(numerics=older))
