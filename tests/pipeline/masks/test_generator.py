"""What a notebook asks of `MaskGenerator`: any image, progress, many images, settings by name, and short answers."""

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import segmint
from segmint.infra.errors import UsageError
from segmint.model.automatic import generator as base
from segmint.model.automatic.settings import MaskSettings
from segmint.model.sam import predictor as sam_predictor
from segmint.model.sam.load import build_sam, load_sam
from segmint.pipeline.masks.generator import MaskGenerator, Predictor, sam_of
from segmint.pipeline.masks.results import ImageMasks

pytestmark = pytest.mark.usefixtures("embedded_once")


@pytest.fixture(scope="module")
def generator(weights: None) -> MaskGenerator:
    return MaskGenerator("mobile_sam", "official", points_per_side=4, stability_score_thresh=0.8, device="cpu")


@pytest.fixture(scope="module")
def cup(coffee: np.ndarray) -> np.ndarray:
    """(200, 300, 3) uint8 RGB; tests of `model/automatic` encode it, too."""
    return cv2.resize(coffee, (300, 200), interpolation=cv2.INTER_AREA)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, cup: np.ndarray) -> Path:
    made = tmp_path_factory.mktemp("photographs")
    Image.fromarray(cup).save(made / "cup.png")
    (made / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    return made


def test_masks_are_those_of_the_plain_generator_however_the_image_is_given(
    generator: MaskGenerator, folder: Path, cup: np.ndarray
) -> None:
    expected = base.MaskGenerator.finish(generator, base.MaskGenerator.find(generator, cup))
    assert len(expected.records) >= 2
    for given in (cup, folder / "cup.png", str(folder / "cup.png"), Image.open(folder / "cup.png")):
        found = generator.generate(given)
        assert (found.records, found.funnel, found.error) == (expected.records, expected.funnel, None)
        assert np.array_equal(found.image, cup)


def test_a_records_mask_has_its_area_and_box(generator: MaskGenerator, folder: Path) -> None:
    for record in generator.generate(folder / "cup.png").records:
        assert record.mask.shape == (200, 300)
        assert record.mask.dtype == bool
        assert record.mask.sum() == record.area
        ys, xs = np.nonzero(record.mask)
        assert record.bbox[:2] == (xs.min(), ys.min())
        assert len(repr(record)) < 160
        assert f"area={record.area}" in repr(record)
        assert "counts" not in repr(record)
        assert len(repr(record.segmentation)) < 90


def test_progress_ends_with_all_points_on_standard_error(
    generator: MaskGenerator, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator.generate(folder / "cup.png", progress=True)
    assert "points 16/16 (100.0%" in capsys.readouterr().err
    generator.generate(folder / "cup.png")
    assert capsys.readouterr() == ("", "")


def test_points_are_counted_over_all_crops(coffee: np.ndarray) -> None:
    predictor = Predictor(build_sam("mobile_sam"))
    predictor.batch_encoder.network = lambda batch: torch.zeros(len(batch), 256, 64, 64)  # counting needs no embeddings
    generator = MaskGenerator(predictor, "sa1b", points_per_side=4, crop_n_layers=1, points_per_chunk=3)
    seen: list[tuple[int, int]] = []
    generator.find(coffee[:40, :60], report=lambda done, points: seen.append((done, points)))
    assert seen[-1] == (32, 32)  # 16 of the image, 4 of each of four crops
    assert {points for _, points in seen} == {32}
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert len(seen) == 14  # chunks of three: six of the image, and two of each crop


def test_a_bad_image_does_not_stop_many(
    generator: MaskGenerator, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [folder / "broken.jpg", folder / "cup.png", folder / "missing.png", np.zeros((3, 4), float)]
    results = list(generator.generate_many(images, progress=True))
    assert [bool(result.records) for result in results] == [False, True, False, False]
    assert "images 4/4" in capsys.readouterr().err
    broken, good, missing, wrong = results
    assert good == generator.generate(folder / "cup.png")
    assert broken.error is not None
    assert broken.error.startswith(f"{folder / 'broken.jpg'}: ")
    assert "missing.png does not exist" in str(missing.error)
    assert "float64: expected" in str(wrong.error)
    with pytest.raises(TypeError, match="a list of paths"):
        list(generator.generate_many(str(folder / "cup.png")))
    for one in (np.zeros((4, 5, 3), np.uint8), Image.new("RGB", (5, 4)), folder / "cup.png"):
        with pytest.raises(TypeError, match="which may be a single image: expected a list"):
            list(generator.generate_many(one))  # type: ignore[arg-type]


def test_many_images_are_read_one_by_one(generator: MaskGenerator, folder: Path) -> None:
    endless = generator.generate_many(folder / "cup.png" for _ in itertools.count())
    assert next(endless) == next(endless)


def test_results_say_in_a_line_what_they_are(generator: MaskGenerator, folder: Path) -> None:
    assert repr(generator) == (
        "MaskGenerator(mobile_sam on cpu, float32; official, points_per_side=4, stability_score_thresh=0.8)"
    )
    found = generator.generate(folder / "cup.png")
    assert repr(found) == f"ImageMasks({len(found.records)} masks of {folder / 'cup.png'})"
    (failed,) = generator.generate_many([folder / "broken.jpg"])
    assert repr(failed) == f"ImageMasks(error={failed.error!r})"


def test_an_image_for_which_torch_has_no_memory_is_named_and_costs_no_other(
    generator: MaskGenerator, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = MaskGenerator.generate

    def too_large(self: MaskGenerator, image: Path) -> ImageMasks:
        if image.name == "large.png":
            torch.empty(1 << 60, dtype=torch.uint8)
        return generate(self, image)

    monkeypatch.setattr(MaskGenerator, "generate", too_large)
    results = list(generator.generate_many([folder / "large.png", folder / "cup.png"]))
    assert [result.error for result in results] == [f"{folder / 'large.png'}: not enough memory", None]

    monkeypatch.setattr(MaskGenerator, "generate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(generator.generate_many([folder / "cup.png"]))


def test_settings_are_a_profile_by_name_with_keys_over_it() -> None:
    assert MaskSettings.sa1b(points_per_side=np.int64(8), pred_iou_thresh=np.float32(0.5)).points_per_side == 8
    sam = build_sam("mobile_sam")
    assert MaskGenerator(sam).settings == MaskSettings.sa1b(crop_n_layers=0)
    assert repr(MaskGenerator(sam)) == "MaskGenerator(mobile_sam on cpu, float32; sa1b)"
    assert MaskGenerator(sam, crop_n_layers=2).settings == MaskSettings.sa1b()
    assert MaskGenerator(sam, "official", points_per_side=7).settings == MaskSettings.official(points_per_side=7)
    settings = MaskSettings.official(crop_n_layers=1)
    assert MaskGenerator(Predictor(sam), settings, 2).crops_per_batch == 2
    assert MaskGenerator(predictor=sam_predictor.Predictor(sam), settings=settings).settings is settings


def test_wrong_settings_and_models_are_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"masks\.points is not a setting: expected one of points_per_side"):
        MaskGenerator("mobile_sam", points=3)
    with pytest.raises(ValueError, match=r"masks\.profile is 'best': expected 'official', 'sa1b', or 'sam2'"):
        MaskGenerator("mobile_sam", "best")
    with pytest.raises(ValueError, match=r"points_per_side can't be .* MaskSettings.*official\(points_per_side=4\)"):
        MaskGenerator("mobile_sam", MaskSettings.official(), points_per_side=4)
    with pytest.raises(TypeError, match="settings is a int"):
        MaskGenerator("mobile_sam", 32)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the model is a dict: expected a name"):
        MaskGenerator({})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"device='cpu' .* can't be combined with a predictor"):
        MaskGenerator(Predictor(build_sam("mobile_sam")), device="cpu")
    with pytest.raises(ValueError, match=r"device='cpu' .* can't be combined with a loaded model"):
        MaskGenerator(build_sam("mobile_sam"), device="cpu")
    for refused in (
        lambda: MaskGenerator("mobile_sam", device="cpu", precision="bf16"),
        lambda: Predictor("mobile_sam", device="cpu", precision="bf16"),
        lambda: MaskGenerator(build_sam("mobile_sam").bfloat16()),
    ):
        with pytest.raises(ValueError, match="bf16 needs a GPU: on a CPU, use precision fp32 or auto"):
            refused()


@pytest.fixture(scope="module")
def predictor(weights: None) -> Predictor:
    return Predictor(device="cpu")


def test_weights_by_name_and_by_path_are_the_same_model(predictor: Predictor, mobile_sam_path: Path) -> None:
    expected = load_sam(mobile_sam_path).state_dict()
    for made in (predictor, Predictor(mobile_sam_path, device="cpu")):
        assert all(torch.equal(value, expected[name]) for name, value in made.sam.state_dict().items())
    loaded = segmint.load_sam(mobile_sam_path, device="cpu")
    assert sam_of(loaded) is loaded
    with pytest.raises(UsageError, match=r"neither a known name .* nor a file"):
        Predictor("sam_vit_z")


def test_any_image_is_embedded_as_its_pixels_are(predictor: Predictor, coffee: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(coffee).save(tmp_path / "coffee.png")
    expected = sam_predictor.Predictor.embed(predictor, coffee)
    for given in (tmp_path / "coffee.png", Image.fromarray(coffee), torch.from_numpy(coffee.copy())):
        assert torch.equal(predictor.embed(given).features, expected.features)
    (found,) = predictor.embed_many([str(tmp_path / "coffee.png")], [(200, 300)])
    assert found.frame_size == (200, 300)
    assert torch.equal(found.features, expected.features)


def test_one_prompt_needs_no_batch(predictor: Predictor, coffee: np.ndarray) -> None:
    embedding = predictor.embed(coffee)
    point, box = [[290.0, 60.0]], [172, 15, 410, 305]
    alone = predictor.predict(embedding, points=point, labels=[1])  # type: ignore[arg-type]
    batched = predictor.predict(embedding, points=np.array([point]), labels=np.array([[1]]))
    assert torch.equal(alone.low_res_logits, batched.low_res_logits)
    again = {"points": torch.tensor(point), "labels": torch.tensor([1]), "masks": alone.low_res_logits[0, :1]}
    single = predictor.predict(embedding, **again, boxes=torch.tensor(box), multimask=False)
    batch = {name: value[None] for name, value in again.items()}
    twice = predictor.predict(embedding, **batch, boxes=torch.tensor([box]), multimask=False)
    assert torch.equal(single.low_res_logits, twice.low_res_logits)
    assert repr(alone).startswith("Masks(3 for each of 1 prompts, predicted IoU 0.")
    assert repr(embedding) == "Embedding(frame 600 x 400 pixels, features (1, 256, 64, 64) on cpu)"
    outside = "points: expected x and y inside the 600 x 400 pixels of the image, got 601, 60$"
    for wrong, said in (
        ({"points": [[60, 60], [601, 60]]}, outside),
        ({"boxes": [410, 15, 172, 305]}, "boxes: "),
    ):
        with pytest.raises(ValueError, match=said):
            predictor.predict(embedding, **wrong)  # type: ignore[arg-type]


def test_masks_that_are_decoded_again_are_not_drawn_in_between(
    generator: MaskGenerator, cup: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"points_per_side": 2, "use_m2m": True, "stability_score_thresh": 0.5}
    again = MaskGenerator(generator.predictor, "sam2", **keys)
    monkeypatch.setattr(Predictor, "predict", None)
    found = again.generate(cup)
    expected = base.MaskGenerator(generator.predictor, MaskSettings.sam2(**keys)).generate(cup)
    assert (found.records, found.funnel) == (expected.records, expected.funnel)
    assert found.records


def test_a_predictor_says_what_it_is(predictor: Predictor) -> None:
    assert repr(predictor) == "Predictor(mobile_sam on cpu, float32)"
    with torch.device("meta"):
        sam = build_sam("vit_l")
    assert repr(Predictor(sam)) == "Predictor(vit_l on meta, float32)"


def test_the_callers_autocast_changes_no_mask(generator: MaskGenerator, cup: np.ndarray) -> None:
    predictor = generator.predictor
    expected = generator.generate(cup).records
    prompted = predictor.predict(predictor.embed(cup), boxes=np.array([50, 20, 200, 150]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding = predictor.embed(cup)
        found = predictor.predict(embedding, boxes=np.array([50, 20, 200, 150]))
        assert generator.generate(cup).records == expected
        assert [len(each.candidates) for each in generator.find_many([(cup, None)])] == [len(expected)]  # type: ignore[union-attr]
        refined = predictor.predict(embedding, masks=found.low_res_logits[:, :1], multimask=False)
    assert torch.equal(found.low_res_logits, prompted.low_res_logits)
    assert found.records == prompted.records
    assert torch.equal(
        predictor.predict(embedding, masks=found.low_res_logits[:, :1], multimask=False).low_res_logits,
        refined.low_res_logits,
    )
