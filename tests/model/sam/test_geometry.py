"""Small models of other geometries, from pixels to masks, beside torch's own operations and the reference package."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import PromptEncoder as ReferencePromptEncoder
from torch import Tensor
from torchvision.transforms import Resize, ToTensor

from benchmarks.masks.reference import reference_sam
from segmint.compat.predictor import SamPredictor as CompatPredictor
from segmint.model.automatic.device_crops import DeviceCrops, suits
from segmint.model.automatic.generator import MaskGenerator
from segmint.model.automatic.proposals import BoxedUpscaling
from segmint.model.automatic.rle import decode
from segmint.model.automatic.settings import MaskSettings
from segmint.model.automatic.tiled_upscaling import TiledUpscaling
from segmint.model.sam.geometry import SAM1, Geometry, Placement
from segmint.model.sam.image_encoder_vit import ImageEncoderViT, VitShape
from segmint.model.sam.load import Sam
from segmint.model.sam.mask_decoder import MaskDecoder, PromptEmbedding, PromptEncoder
from segmint.model.sam.predictor import Predictor
from segmint.model.sam.preprocess import PIXEL_MEAN, PIXEL_STD, stretch
from segmint.model.training.recipe import FINETUNE
from segmint.model.training.step import StepSettings, train_step
from tests.support.random_weights import randomize
from tests.support.slow_generator import generate_slowly
from tests.support.whole_masks import in_full

pytestmark = pytest.mark.usefixtures("one_thread")

POINTS = np.array([[30.5, 40.0], [160.0, 90.5], [13.0, 110.0]])
# Random weights give speckles all over the image, whose boxes are alike.
KEYS = {"points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.2, "box_nms_thresh": 1.0}


def model(image_size: int, patch_size: int, placement: Placement) -> Predictor:
    """A SAM with random weights, whose ViT has two narrow blocks; both geometries have 32 x 32 positions."""
    encoder = ImageEncoderViT(VitShape(64, depth=2, heads=2, global_blocks=(1,)), image_size, patch_size)
    prompts = PromptEncoder(Geometry(image_size, patch_size, placement))
    return Predictor(randomize(Sam(encoder, prompts, MaskDecoder())))


@pytest.fixture(scope="module")
def padded() -> Predictor:
    return model(512, 16, "padded")


@pytest.fixture(scope="module")
def stretched() -> Predictor:
    return model(448, 14, "stretched")


@pytest.fixture(scope="module")
def image(coffee: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(coffee[100:220, 150:318])


def stretched_by_torchvision(image: np.ndarray, side: int) -> Tensor:
    """The operations of SAM 2's reference code, on 0 to 255."""
    return Resize((side, side))(255 * ToTensor()(image.copy())).permute(1, 2, 0)


def plain_masks(sam: Sam, image: np.ndarray, side: int, input_size: tuple[int, int], is_padded: bool) -> list[Tensor]:
    """Features, low-resolution logits, predicted IoUs, and logits in the frame, for each of `POINTS`."""
    height, width = input_size
    if is_padded:
        pixels = torch.tensor(np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)))
    else:
        pixels = stretched_by_torchvision(image, side)
    normal = ((pixels - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)).permute(2, 0, 1)
    features = sam.image_encoder(F.pad(normal, (0, side - width, 0, side - height))[None])
    encoder = ReferencePromptEncoder(256, (32, 32), (side, side), 16)
    encoder.load_state_dict(sam.prompt_encoder.state_dict())
    scaled = torch.tensor(POINTS * [width / image.shape[1], height / image.shape[0]])[:, None]
    prompt = PromptEmbedding(*encoder((scaled, torch.ones(len(POINTS), 1)), None, None))
    low, ious = sam.mask_decoder(features, encoder.get_dense_pe(), prompt, multimask=True)
    square = F.interpolate(low, (side, side), mode="bilinear")[..., :height, :width] if is_padded else low
    return [features, low, ious, F.interpolate(square, image.shape[:2], mode="bilinear")]


@pytest.mark.parametrize(("name", "side", "input_size"), [("padded", 512, (366, 512)), ("stretched", 448, (448, 448))])
@torch.no_grad()
def test_masks_are_those_of_plain_operations(
    name: str, side: int, input_size: tuple[int, int], request: pytest.FixtureRequest, image: np.ndarray
) -> None:
    predictor: Predictor = request.getfixturevalue(name)
    features, low, ious, expected = plain_masks(predictor.sam, image, side, input_size, name == "padded")

    embedding = predictor.embed(image)
    assert embedding.input_size == input_size
    torch.testing.assert_close(embedding.features, features, atol=1e-4, rtol=0)
    found = predictor.predict(embedding, POINTS[:, None], np.ones((len(POINTS), 1)))
    plan = predictor.plan_points(embedding)
    decoded = predictor.decode_points(embedding, plan, POINTS)
    drawn = predictor.draw_masks(plan, decoded, torch.ones(len(POINTS), 3, dtype=torch.bool))
    assert low.shape == (len(POINTS), 3, 128, 128)
    for logits, predicted in (
        (found.low_res_logits, found.predicted_iou),
        (drawn.view(low.shape), decoded.predicted_iou),
    ):
        torch.testing.assert_close(logits, low, atol=1e-3, rtol=0)
        torch.testing.assert_close(predicted, ious, atol=1e-4, rtol=0)
    torch.testing.assert_close(predictor.upscale(found.low_res_logits, embedding), expected, atol=1e-3, rtol=0)

    size = image.shape[:2]
    for upscaling in (BoxedUpscaling, TiledUpscaling):
        steps = upscaling(embedding, predictor.sam.geometry)
        masks = steps.draw(steps.stable_masks(low.flatten(0, 1), 1.0, 0.0).sketches)
        different = torch.from_numpy(in_full(masks, size)) != (expected.flatten(0, 1) > 0)
        assert (expected.flatten(0, 1)[different].abs() < 1e-4).all()

    again = predictor.predict(embedding, masks=low[:, 0:1]).low_res_logits
    assert again.shape == low.shape
    with pytest.raises(ValueError, match=r"masks have the shape \(1, 1, 256, 256\): expected \(B, 1, 128, 128\)"):
        predictor.predict(embedding, masks=np.zeros((1, 1, 256, 256)))


# Other tests compare padded models with the plain recipe, at MobileSAM's size.
@pytest.mark.parametrize("use_m2m", [False, True], ids=["once", "m2m"])
@pytest.mark.parametrize("name", [pytest.param("padded", marks=pytest.mark.long), "stretched"])
def test_a_generated_image_is_the_plain_recipes(
    name: str, use_m2m: bool, request: pytest.FixtureRequest, image: np.ndarray
) -> None:
    predictor: Predictor = request.getfixturevalue(name)
    keys = {**KEYS, "stability_score_thresh": 0.0} if use_m2m else KEYS  # the speckles of these masks are too thin
    settings = MaskSettings.official(**keys, crop_n_layers=1, crop_nms_thresh=1.0, use_m2m=use_m2m)
    slow = generate_slowly(predictor, settings, image)

    generator = MaskGenerator(predictor, settings)
    fast = generator.generate(image)
    assert suits(predictor.sam.mask_decoder, settings) == (not use_m2m)
    generator.device_crops = None if use_m2m else DeviceCrops(predictor, settings)
    on_device = generator.generate(image)

    assert slow.funnel.predicted == 3 * (4 + 4)
    assert slow.funnel.stable > len(slow.records) >= 4
    for found in (fast, on_device):
        assert found.funnel == slow.funnel
        for ours, plain in zip(found.records, slow.records, strict=True):
            mask, expected = decode(ours.segmentation), decode(plain.segmentation)
            assert (ours.point_coords, ours.crop_box) == (plain.point_coords, plain.crop_box)
            assert (mask != expected).sum() <= 1e-3 * mask.size


def test_the_padded_model_gives_the_reference_packages_masks(padded: Predictor, image: np.ndarray) -> None:
    reference = reference_sam(padded.sam)
    theirs = SamPredictor(reference)
    theirs.set_image(image)
    box, mask = np.array([20.0, 30.5, 120.0, 70.0]), np.random.default_rng(0).normal(size=(1, 128, 128))
    expected = theirs.predict(POINTS, np.array([1, 0, 1]), box, mask.astype(np.float32), return_logits=True)

    embedding = padded.embed(image)
    found = padded.predict(embedding, POINTS, np.array([1, 0, 1]), box, mask)

    masks = padded.upscale(found.low_res_logits, embedding)
    for ours, plain in zip((masks, found.predicted_iou, found.low_res_logits), expected, strict=True):
        np.testing.assert_allclose(ours[0].numpy(), plain, atol=1e-3)

    records = MaskGenerator(padded, MaskSettings.official(**KEYS)).generate(image).records
    annotations = SamAutomaticMaskGenerator(reference, **KEYS).generate(image)
    assert len(records) == len(annotations) >= 3
    for record, annotation in zip(records, annotations, strict=True):
        assert list(record.point_coords) == annotation["point_coords"][0]
        assert (record.mask != annotation["segmentation"]).sum() <= 1e-3 * record.mask.size


def test_stretching_ignores_the_aspect_ratio_and_does_not_round(image: np.ndarray) -> None:
    found = stretch(torch.from_numpy(image), 448)
    torch.testing.assert_close(found, stretched_by_torchvision(image, 448), atol=1e-3, rtol=0)
    rounded = torch.tensor(np.asarray(Image.fromarray(image).resize((448, 448), Image.Resampling.BILINEAR)))
    assert 0.25 < (found - rounded).abs().max() < 1.01


def test_what_only_pads_refuses_a_stretched_model(stretched: Predictor, padded: Predictor) -> None:
    message = "supports models with padded input, but this model's input is stretched"
    with pytest.raises(ValueError, match=f"embed_resized {message}"):
        CompatPredictor(stretched.sam).set_image(np.zeros((40, 60, 3), np.uint8))
    settings = StepSettings(FINETUNE.losses, FINETUNE.sampling, 0)
    for sam in (stretched.sam, padded.sam):
        with pytest.raises(ValueError, match=r"padded to 1024 pixels, but not Geometry\("):
            train_step(sam, torch.zeros(0, 256, 32, 32), [], settings, 0, 1)


def test_sizes_follow_from_the_image_and_patch_size() -> None:
    assert (SAM1.image_size, SAM1.patch_size, SAM1.embedding_size, SAM1.low_res_size) == (1024, 16, 64, 256)
    sam3 = Geometry(1008, 14, "stretched")
    assert (sam3.embedding_size, sam3.low_res_size) == (72, 288)
    with pytest.raises(ValueError, match="image_size is 1000: expected a multiple of patch_size, 16"):
        Geometry(1000)
