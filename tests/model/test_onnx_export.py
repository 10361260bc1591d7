"""The graphs in onnxruntime beside `Predictor`, and beside the reference package's own export module."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from segment_anything.utils.onnx import SamOnnxModel
from segment_anything.utils.transforms import ResizeLongestSide

from benchmarks.masks.reference import reference_sam
from segmint.model.onnx_export import HIGH_RES, DecoderGraph, export_decoder, export_encoder, traced_resized_size
from segmint.model.sam.geometry import SAM2
from segmint.model.sam.image_encoder_hiera import HieraShape, ImageEncoderHiera
from segmint.model.sam.load import Sam, load_sam
from segmint.model.sam.mask_decoder import SAM2_TRAITS, MaskDecoder, PromptEncoder
from segmint.model.sam.predictor import Embedding, Predictor
from segmint.model.sam.preprocess import resize, resized_size, stretch
from tests.support.random_weights import randomize
from tests.support.tiny_vit import tiny_sam

pytestmark = pytest.mark.usefixtures("one_thread", "embedded_once")

Inputs = dict[str, np.ndarray]

POINTS = {
    "no point": ([], []),
    "a point": ([[410.0, 160.5]], [1]),
    "points": ([[410.0, 160.5], [300.0, 250.0], [60.0, 390.0]], [1, 1, 0]),
    "padded points": ([[410.0, 160.5], [0.0, 0.0], [60.0, 390.0]], [1, -1, 0]),
}
BOX = [180.0, 60.0, 520.0, 350.0]
MIXTURES = [
    ("a point", None, False),
    ("padded points", None, False),
    ("no point", BOX, False),
    ("points", BOX, False),
    ("a point", None, True),
    ("no point", None, True),
]
SIZES = [(900, 301), (1, 3000)]


@pytest.fixture(scope="module")
def predictor(mobile_sam_path: Path) -> Predictor:
    return Predictor(load_sam(mobile_sam_path))


@pytest.fixture(scope="module")
def embedding(predictor: Predictor, coffee: np.ndarray) -> Embedding:
    return predictor.embed(coffee)


@pytest.fixture(scope="module", params=[False, True], ids=["all masks", "single mask"])
def decoder(
    request: pytest.FixtureRequest, predictor: Predictor, tmp_path_factory: pytest.TempPathFactory
) -> tuple[onnxruntime.InferenceSession, bool]:
    path = tmp_path_factory.mktemp("decoder") / "decoder.onnx"
    export_decoder(predictor.sam, path, single_mask=request.param)
    return session_of(path), request.param


def session_of(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # an error that a test expects is not for the console
    return onnxruntime.InferenceSession(path, options)


def notebook_inputs(
    embedding: Embedding, points: list[list[float]], labels: list[int], box: list[float] | None, mask: np.ndarray | None
) -> Inputs:
    """The inputs as the reference package's notebook makes them, with its own transform."""
    coordinates = np.array(points, np.float64).reshape(-1, 2)
    kinds = np.array(labels, np.float64)
    if box is not None:
        coordinates = np.concatenate([coordinates, np.array(box).reshape(2, 2)])
        kinds = np.concatenate([kinds, [2, 3]])
    elif points:
        coordinates = np.concatenate([coordinates, [[0.0, 0.0]]])
        kinds = np.concatenate([kinds, [-1]])
    scaled = ResizeLongestSide(1024).apply_coords(coordinates, embedding.frame_size)
    return {
        "image_embeddings": embedding.features.numpy(),
        "point_coords": scaled[None].astype(np.float32),
        "point_labels": kinds[None].astype(np.float32),
        "mask_input": np.zeros((1, 1, 256, 256), np.float32) if mask is None else mask,
        "has_mask_input": np.array([mask is not None], np.float32),
        "orig_im_size": np.array(embedding.frame_size, np.float32),
    }


def assert_near(found: np.ndarray, expected: torch.Tensor) -> None:
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4, rtol=1e-5)  # logits reach 40


@pytest.mark.parametrize(("points", "box", "mask"), MIXTURES)
def test_every_mixture_of_prompts_gives_the_masks_of_torch(
    predictor: Predictor,
    embedding: Embedding,
    decoder: tuple[onnxruntime.InferenceSession, bool],
    points: str,
    box: list[float] | None,
    mask: bool,
) -> None:
    session, single_mask = decoder
    coordinates, labels = POINTS[points]
    earlier = predictor.predict(embedding, boxes=np.array([[200, 80, 400, 300]]), multimask=False).low_res_logits
    inputs = notebook_inputs(embedding, coordinates, labels, box, earlier.numpy() if mask else None)
    masks, ious, low_res = session.run(None, inputs)

    if single_mask:
        reference = SamOnnxModel(reference_sam(predictor.sam), return_single_mask=True)
        expected = reference(**{name: torch.from_numpy(value) for name, value in inputs.items()})
        for found, wanted in zip((masks, ious, low_res), expected, strict=True):
            assert_near(found, wanted)
        return
    prompts = {
        "points": np.array([coordinates]) if coordinates else None,
        "labels": np.array([labels]) if coordinates else None,
        "boxes": None if box is None else np.array([box]),
        "masks": earlier if mask else None,
    }
    for multimask, ours in ((False, slice(0, 1)), (True, slice(1, 4))):
        predicted = predictor.predict(embedding, **prompts, multimask=multimask)
        assert_near(low_res[:, ours], predicted.low_res_logits)
        assert_near(ious[:, ours], predicted.predicted_iou)
        assert_near(masks[:, ours], predictor.upscale(predicted.low_res_logits, embedding))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_masks_have_the_size_of_any_image(
    predictor: Predictor,
    embedding: Embedding,
    decoder: tuple[onnxruntime.InferenceSession, bool],
    size: tuple[int, int],
) -> None:
    session, single_mask = decoder
    framed = replace(embedding, input_size=resized_size(*size, 1024), frame_size=size)
    inputs = notebook_inputs(framed, [[size[1] / 2, size[0] / 2]], [1], None, None)
    masks, _, low_res = session.run(None, inputs)
    assert masks.shape == (1, 1 if single_mask else 4, *size)
    assert_near(masks, predictor.upscale(torch.from_numpy(low_res), framed))


def test_the_rule_for_sizes_is_that_of_images() -> None:
    rng = np.random.default_rng(0)
    ties = [(height, 2048 * times) for times in range(1, 6) for height in range(1, 2048 * times, 2 * times)]
    for height, width in [*ties, *rng.integers(1, 30_000, (2000, 2)).tolist()]:
        found = traced_resized_size(torch.tensor([height, width]), 1024)
        assert tuple(found.tolist()) == resized_size(height, width, 1024)


def test_names_and_shapes_are_those_of_the_reference_export(decoder: tuple[onnxruntime.InferenceSession, bool]) -> None:
    session, single_mask = decoder
    assert {each.name: each.shape for each in session.get_inputs()} == {
        "image_embeddings": [1, 256, 64, 64],
        "point_coords": [1, "num_points", 2],
        "point_labels": [1, "num_points"],
        "mask_input": [1, 1, 256, 256],
        "has_mask_input": [1],
        "orig_im_size": [2],
    }
    assert [each.name for each in session.get_outputs()] == ["masks", "iou_predictions", "low_res_masks"]
    assert session.get_outputs()[2].shape == [1, 1 if single_mask else 4, 256, 256]
    assert {each.type for each in (*session.get_inputs(), *session.get_outputs())} == {"tensor(float)"}


@torch.inference_mode()
def test_a_stretched_model_with_high_resolution_features_gives_what_torch_does(
    coffee: np.ndarray, tmp_path: Path
) -> None:
    shape = HieraShape(16, 1, (1, 1, 2, 1), (8, 4, 14, 7), (3,), 7)
    prompts, mask_decoder = PromptEncoder(SAM2, pads_boxes=True), MaskDecoder(2, SAM2_TRAITS)
    predictor = Predictor(randomize(Sam(ImageEncoderHiera(shape), prompts, mask_decoder), seed=2))
    embedding = predictor.embed(coffee)
    export_encoder(predictor.sam, tmp_path / "encoder.onnx")
    pixels = stretch(torch.from_numpy(coffee), 1024).numpy()
    found = session_of(tmp_path / "encoder.onnx").run(["image_embeddings", *HIGH_RES], {"image": pixels})
    for ours, expected in zip(found, (embedding.features, *embedding.high_res), strict=True):
        assert expected.std() > 0.05
        assert_near(ours, expected)

    export_decoder(predictor.sam, tmp_path / "decoder.onnx", single_mask=False)
    scale = 1024 / np.array(coffee.shape[1::-1])
    corners = [*np.array([[410.0, 160.5]]) * scale, *np.array(BOX).reshape(2, 2) * scale, (0.0, 0.0)]
    inputs = {
        "image_embeddings": embedding.features.numpy(),
        "point_coords": np.array([corners], np.float32),
        "point_labels": np.array([[1, 2, 3, -1]], np.float32),
        "mask_input": np.zeros((1, 1, 256, 256), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array(coffee.shape[:2], np.float32),
        **{name: maps.numpy() for name, maps in zip(HIGH_RES, embedding.high_res, strict=True)},
    }
    masks, ious, low_res = session_of(tmp_path / "decoder.onnx").run(None, inputs)
    predicted = predictor.predict_all(embedding, [[[410.0, 160.5]]], [[1]], [BOX])
    assert_near(low_res, predicted.low_res_logits)
    assert_near(ious, predicted.predicted_iou)
    assert_near(masks, predictor.upscale(predicted.low_res_logits, embedding))
    assert (low_res[0, 0] == low_res[0, 1:]).all(axis=(1, 2)).any(), "the single mask is unstable with these weights"

    mask_decoder.traits = replace(SAM2_TRAITS, single_mask_stability=0.0)  # otherwise, the best replaces the first
    graph = DecoderGraph(predictor.sam, single_mask=True)
    of_box = predictor.predict_all(embedding, boxes=[BOX]).predicted_iou[0, 1:].max()
    of_both = predictor.predict_all(embedding, [[[410.0, 160.5]]], [[1]], [BOX]).predicted_iou[0, 0]
    for first, expected in ((1, of_box), (0, of_both)):  # a box alone is ambiguous, unlike a box with a point
        inputs["point_coords"] = np.array([corners[first:]], np.float32)
        inputs["point_labels"] = np.array([[1, 2, 3, -1][first:]], np.float32)
        _, iou, _ = graph(*map(torch.from_numpy, inputs.values()))
        assert_near(iou[0, 0].numpy(), expected)


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("encoder", ["mobile_sam", "vit"])
def test_the_encoder_gives_the_embeddings_of_torch(
    encoder: str, request: pytest.FixtureRequest, coffee: np.ndarray, tmp_path: Path
) -> None:
    predictor = request.getfixturevalue("predictor") if encoder == "mobile_sam" else Predictor(tiny_sam())
    path = tmp_path / "encoder.onnx"
    export_encoder(predictor.sam, path)
    session = session_of(path)
    image = coffee if encoder == "mobile_sam" else coffee[:, :333]  # other tests encode the whole, too
    (found,) = session.run(["image_embeddings"], {"image": resize(image, 1024)})
    expected = predictor.embed(image).features
    assert expected.std() > 0.05
    assert_near(found, expected)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail):
        session.run(None, {"image": np.zeros((1025, 8, 3), np.uint8)})
