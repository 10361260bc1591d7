"""Masks for single photographs, by the real model on real pixels."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from segmint.infra.assets.resolve import resolve
from segmint.infra.device import Compute, resolve_compute
from segmint.infra.errors import UsageError
from segmint.model.automatic.generator import MaskGenerator
from segmint.model.sam.predictor import Predictor
from segmint.operators.images import decode_jpeg
from segmint.operators.prepare.deidentify import DeidentifyConfig, FacesConfig, PlatesConfig
from segmint.operators.prepare.ingest import IngestConfig
from segmint.operators.prepare.prepare import PrepareConfig, prepare_image
from segmint.operators.prepare.release import ReleaseConfig
from segmint.operators.segment.mask_config import MasksConfig
from segmint.operators.segment.models import load_model
from segmint.operators.segment.segment import segment_image
from segmint.pipeline.masks.run import (
    Frame,
    ImageResult,
    MasksOptions,
    Prompts,
    check_prompts,
    frame_of,
    make_masks,
    masks_config,
    plan_outputs,
    prompted_masks,
    release_config,
    sa1b_document,
)
from tests.support.bad_images import encode

QUICK = MasksConfig(profile="official", points_per_side=4, pred_iou_thresh=0.7, stability_score_thresh=0.8)
CUP = (285.0, 200.0, 1)  # inside the cup of scikit-image's coffee photograph, 600 x 400 pixels


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(load_model(resolve("mobile_sam"), resolve_compute("cpu")))


def document_of(*arguments: Any) -> dict:
    return json.loads(sa1b_document(*arguments))


def decoded(annotation: dict) -> np.ndarray:
    code = annotation["segmentation"]
    return coco.decode({"size": code["size"], "counts": code["counts"].encode("ascii")}).astype(bool)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def assert_annotation(annotation: dict, width: int, height: int) -> None:
    """One annotation as SA-1B has it, consistent with its own mask."""
    assert list(annotation) == [
        "id",
        "segmentation",
        "bbox",
        "area",
        "predicted_iou",
        "stability_score",
        "crop_box",
        "point_coords",
    ]
    for key in ("bbox", "crop_box"):
        assert [type(value) for value in annotation[key]] == [float] * 4
    mask = decoded(annotation)
    assert mask.shape == (height, width)
    assert mask.sum() == annotation["area"] > 0
    y, x = np.nonzero(mask)
    assert annotation["bbox"] == [x.min(), y.min(), np.ptp(x), np.ptp(y)]


def test_automatic_masks_of_a_photograph_as_sa1b_has_them(tmp_path, coffee):
    Image.fromarray(coffee).save(tmp_path / "cup.png")
    told: list[ImageResult] = []
    options = MasksOptions(masks=QUICK, device="cpu", overlay=True)
    results = make_masks([str(tmp_path / "cup.png")], str(tmp_path / "new" / "cup.json"), options, told.append)

    assert results == told
    document = json.loads((tmp_path / "new" / "cup.json").read_text())
    assert document["image"] == {"image_id": 1, "width": 600, "height": 400, "file_name": "cup.png"}
    annotations = document["annotations"]
    assert len(annotations) == results[0].masks >= 3
    assert [annotation["id"] for annotation in annotations] == [10_000 + i for i in range(len(annotations))]
    for annotation in annotations:
        assert_annotation(annotation, 600, 400)
        assert annotation["crop_box"] == [0.0, 0.0, 600.0, 400.0]
        ((x, y),) = annotation["point_coords"]
        assert isinstance(x, float)
        assert isinstance(y, float)
        assert annotation["predicted_iou"] > 0.7
    overlay = Image.open(results[0].overlay)
    assert overlay.size == (600, 400)
    assert (np.asarray(overlay) != coffee).any()


def test_bad_images_are_told_and_the_others_are_made(tmp_path, coffee):
    small = Image.fromarray(coffee).resize((150, 100))
    small.save(tmp_path / "good.jpg")
    (tmp_path / "text.jpg").write_text("this is no photograph")
    whole = (tmp_path / "good.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    names = ["text.jpg", "absent.jpg", "half.jpg", "good.jpg", "."]
    results = make_masks(
        [str(tmp_path / name) for name in names],
        str(tmp_path / "out"),
        MasksOptions(prompts=Prompts(points=((75, 50, 1),)), device="cpu"),
        lambda _: None,
    )
    errors = [result.error or "" for result in results]
    assert errors[0].startswith("not_an_image: ")
    assert "absent.jpg" in errors[1]
    assert errors[2].startswith("truncated: ")
    assert not errors[3]
    assert "is a folder" in errors[4]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.json"]


def in_a_build(data: bytes, release: ReleaseConfig, masks: MasksConfig) -> Frame:
    """The pixels that a build segments of a photograph in which it redacts nothing."""
    nothing = DeidentifyConfig(faces=FacesConfig(detector="none"), plates=PlatesConfig(detector="none"))
    config = PrepareConfig(IngestConfig(), nothing, release, masks.original_crops)
    prepared = prepare_image(data, config, [])
    return Frame(decode_jpeg(prepared.release), None if prepared.original is None else decode_jpeg(prepared.original))


@pytest.mark.parametrize("short_side", [399, 100])
@pytest.mark.parametrize("layers", [0, 2])
def test_sa1b_takes_the_pixels_of_a_build_for_a_large_photograph(coffee, layers, short_side):
    release, masks = ReleaseConfig(short_side=short_side), MasksConfig(crop_n_layers=layers)
    found = frame_of(coffee, MasksOptions(masks, release=release))
    built = in_a_build(encode(Image.fromarray(coffee), "PNG"), release, masks)
    assert (found.image == built.image).all()
    assert (found.original is None) == (built.original is None) == (layers == 0)
    assert found.original is None or (found.original == built.original).all()


def test_a_small_photograph_and_the_other_ways_keep_its_frame(coffee):
    small = ReleaseConfig(short_side=100)
    for options in (
        MasksOptions(),
        MasksOptions(release=small, full_frame=True),
        MasksOptions(QUICK, release=small),
    ):
        found = frame_of(coffee, options)
        assert found.image is coffee
        assert found.original is None


@pytest.mark.parametrize("layers", [0, pytest.param(1, marks=pytest.mark.long)])
def test_sa1b_masks_of_a_large_photograph_are_those_of_a_build(tmp_path, predictor, coffee, layers):
    points = 4 if not layers else 8
    masks = MasksConfig(points_per_side=points, crop_n_layers=layers, pred_iou_thresh=0.7, stability_score_thresh=0.8)
    options = MasksOptions(masks, device="cpu", overlay=True, release=ReleaseConfig(short_side=200))
    Image.fromarray(coffee).save(tmp_path / "cup.png")
    (result,) = make_masks([str(tmp_path / "cup.png")], str(tmp_path / "cup.json"), options, lambda _: None)
    assert (result.frame, result.source) == ((300, 200), (600, 400))
    assert Image.open(result.overlay).size == (300, 200)

    document = json.loads((tmp_path / "cup.json").read_text())
    assert (document["image"]["width"], document["image"]["height"]) == (300, 200)
    frame = in_a_build((tmp_path / "cup.png").read_bytes(), options.release, masks)
    built = segment_image(MaskGenerator(predictor, masks.settings()), frame.image, frame.original)["masks"]
    found = [{key: value for key, value in each.items() if key != "id"} for each in document["annotations"]]
    wanted = [json.loads(json.dumps({**row, "segmentation": as_text(row["segmentation"])})) for row in built]
    assert found == wanted
    assert len({tuple(each["crop_box"]) for each in found}) >= 1 + layers


def as_text(segmentation: dict) -> dict:
    counts = segmentation["counts"]
    return {**segmentation, "counts": counts if isinstance(counts, str) else counts.decode("ascii")}


def test_settings_of_the_released_frame_are_a_build_s():
    assert release_config(["release.short_side=1000"]) == ReleaseConfig(short_side=1000)
    with pytest.raises(UsageError, match="did you mean short_side"):
        release_config(["release.short_sid=1000"])
    with pytest.raises(UsageError, match=r"release\.format is annotations: expected nothing"):
        release_config(["release.format=annotations"])


def test_exif_orientation_is_applied(tmp_path, coffee):
    upright = Image.fromarray(coffee).resize((150, 100))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: rotate by 90 degrees to look at it
    upright.rotate(90, expand=True).save(tmp_path / "lying.jpg", exif=exif)
    options = MasksOptions(prompts=Prompts(points=((149, 1, 1),)), device="cpu")
    (result,) = make_masks([str(tmp_path / "lying.jpg")], str(tmp_path / "m.json"), options, lambda _: None)
    assert result.error is None
    assert json.loads((tmp_path / "m.json").read_text())["image"] | {"file_name": ""} == {
        "image_id": 1,
        "width": 150,
        "height": 100,
        "file_name": "",
    }


def test_a_point_a_box_and_all_masks_of_the_cup(predictor, coffee):
    box = (165.0, 70.0, 230.0, 240.0)
    prompts = Prompts(points=(CUP,), boxes=(box,))
    by_point, by_box = prompted_masks(predictor, coffee, prompts, MasksOptions(prompts=prompts))
    document = document_of(3, "coffee.png", (400, 600), [by_point, by_box])
    for annotation in document["annotations"]:
        assert_annotation(annotation, 600, 400)
        assert 0 < annotation["stability_score"] <= 1
    first, second = document["annotations"]
    assert (first["id"], second["id"]) == (30_000, 30_001)
    assert first["point_coords"] == [[285.0, 200.0]]
    assert second["point_coords"] == []
    assert decoded(first)[200, 285]
    x, y, width, height = second["bbox"]
    assert x > box[0] - 20
    assert y > box[1] - 20
    assert x + width < box[0] + box[2] + 20
    assert y + height < box[1] + box[3] + 20

    every = prompted_masks(predictor, coffee, Prompts(points=(CUP,)), MasksOptions(all_masks=True))
    assert len(every) == 3
    ious = [found.record.predicted_iou for found in every]
    assert ious == sorted(ious, reverse=True)
    assert every[0].record == by_point.record


def test_a_background_point_takes_away(predictor, coffee):
    away = (450.0, 330.0, 1)
    both = Prompts(points=(CUP, away))
    without = Prompts(points=(CUP, (*away[:2], 0)))
    ((joined,), (parted,)) = (prompted_masks(predictor, coffee, p, MasksOptions(prompts=p)) for p in (both, without))
    assert joined.points == (CUP[:2], away[:2])
    masks = [decoded(document_of(1, "c", (400, 600), [found])["annotations"][0]) for found in (joined, parted)]
    assert not masks[1][330, 450]
    assert masks[1][200, 285]
    assert masks[0].sum() != masks[1].sum()


def test_bf16_gives_nearly_the_same_masks(predictor, coffee):
    """All three are compared: their predicted IoUs are so near one another that their order may change."""
    prompts = Prompts(points=(CUP,))
    reduced = Predictor(load_model(resolve("mobile_sam"), Compute("cpu", "bf16", 1)))
    exact, rounded = (
        [
            decoded(document_of(1, "c", (400, 600), [found])["annotations"][0])
            for found in prompted_masks(each, coffee, prompts, MasksOptions(prompts=prompts, all_masks=True))
        ]
        for each in (predictor, reduced)
    )
    assert len(exact) == len(rounded) == 3
    for mask in rounded:
        twin = max(exact, key=lambda other: overlap(mask, other))
        assert overlap(mask, twin) > 0.97
        assert (mask != twin).sum() < 2000


def test_an_empty_mask_is_valid_json():
    from segmint.model.automatic.records import MaskRecord
    from segmint.model.automatic.rle import encode
    from segmint.pipeline.masks.run import Found

    empty = MaskRecord(encode(np.zeros((4, 5), bool)), 0, (0, 0, 0, 0), 0.1, 0.0, (0, 0, 5, 4), (math.nan, math.nan))
    document = sa1b_document(1, "c", (4, 5), [Found(empty, ())])
    assert json.loads(document)["annotations"][0]["point_coords"] == []


def test_one_image_goes_to_a_file_and_several_to_a_folder(tmp_path):
    assert plan_outputs(["a/x.jpg"], "out.json") == [("a/x.jpg", "out.json")]
    assert plan_outputs(["a/x.jpg"], "out/") == [("a/x.jpg", "out/x.json")]
    assert plan_outputs(["a/x.jpg"], str(tmp_path)) == [("a/x.jpg", f"{tmp_path}/x.json")]
    assert plan_outputs(["a/x.jpg", "s3://b/y.png"], "s3://out/p") == [
        ("a/x.jpg", "s3://out/p/x.json"),
        ("s3://b/y.png", "s3://out/p/y.json"),
    ]


def test_outputs_that_collide_or_write_over_an_image_are_refused(tmp_path: Path):
    image = tmp_path / "x.jpg"
    image.write_bytes(b"")
    with pytest.raises(UsageError, match="both be written"):
        plan_outputs(["a/x.jpg", "b/x.png"], "out")
    with pytest.raises(UsageError, match="over the image"):
        plan_outputs([str(image)], str(tmp_path / "." / "x.jpg"))
    with pytest.raises(UsageError, match="is a file"):
        plan_outputs(["a.jpg", "b.jpg"], str(image))


def test_settings_come_from_profile_and_overrides():
    assert masks_config("official", []) == MasksConfig(profile="official")
    assert masks_config("sa1b", ["points_per_side=8", "masks.crop_n_layers=1"]).points_per_side == 8
    with pytest.raises(UsageError, match=r"masks\.drop_redaction_artifacts is 0\.9: expected nothing"):
        masks_config("sa1b", ["drop_redaction_artifacts=0.9"])
    with pytest.raises(UsageError) as caught:
        masks_config("sa1b", ["points_per_sid=8", "box_nms_thresh=much"])
    assert "did you mean points_per_side?" in str(caught.value)
    assert "box_nms_thresh is 'much': expected a valid number" in str(caught.value)


def test_prompts_outside_the_image_are_refused():
    check_prompts(Prompts(points=((0, 0, 1), (10, 5, 0)), boxes=((-3, -3, 5, 5),)), "x.jpg", height=5, width=10)
    with pytest.raises(UsageError, match="10 x 5 pixels"):
        check_prompts(Prompts(points=((11, 0, 1),)), "x.jpg", height=5, width=10)
    with pytest.raises(UsageError, match=r"outside x\.jpg"):
        check_prompts(Prompts(boxes=((10, 0, 4, 4),)), "x.jpg", height=5, width=10)


def test_a_file_that_is_no_checkpoint_is_a_wrong_argument(tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(UsageError, match="not a PyTorch checkpoint"):
        load_model(tmp_path / "weights.pt", Compute("cpu", "fp32", 1))
