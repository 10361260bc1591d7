"""An image that is set, prompts that do not fit, and models that change."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segmint.compat import SamPredictor
from segmint.model.sam.load import build_sam
from tests.support.embedded_once import embed_once

BOX = np.array([10, 10, 60, 50])


@pytest.fixture(scope="module")
def image(coffee: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(coffee[100:180, 200:300])


@pytest.fixture(scope="module")
def predictor(image: np.ndarray) -> SamPredictor:
    made = SamPredictor(build_sam("mobile_sam"))
    embed_once(made.model.predictor())
    made.set_image(image)
    return made


def test_bgr_and_other_kinds_of_images_are_the_same_image(
    predictor: SamPredictor, image: np.ndarray, tmp_path: Path
) -> None:
    assert predictor.features is not None
    expected = predictor.features.clone()
    Image.fromarray(image).save(tmp_path / "cup.png")
    predictor.set_image(image[..., ::-1], image_format="BGR")
    assert torch.equal(predictor.features, expected)
    predictor.set_image(tmp_path / "cup.png", "BGR")  # a file has its own order
    assert torch.equal(predictor.features, expected)
    masks, ious, logits = predictor.predict_torch(None, None, torch.zeros(0, 4))
    assert (masks.shape, masks.dtype, len(ious), len(logits)) == ((0, 3, 80, 100), torch.bool, 0, 0)
    as_float = torch.from_numpy(predictor.transform.apply_image(image)).permute(2, 0, 1)[None].float()
    predictor.set_torch_image(as_float, image.shape[:2])
    assert torch.equal(predictor.features, expected)


def test_labels_of_a_boxs_corners_are_a_box(predictor: SamPredictor, image: np.ndarray) -> None:
    predictor.set_image(image)
    point, corners = np.array([[30, 20]]), BOX.reshape(2, 2)
    for points, labels, other in (
        (corners, [2, 3], {}),
        (np.vstack([corners[1:], point, corners[:1]]), [3, 1, 2], {"point_coords": point, "point_labels": [1]}),
    ):
        found = predictor.predict(point_coords=points, point_labels=np.array(labels))
        expected = predictor.predict(box=BOX, **{name: np.array(value) for name, value in other.items()})
        assert all(np.array_equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
    for labels in ([2, 1], [2, 2], [3, 4]):
        with pytest.raises(ValueError, match="expected one 2 and one 3 per prompt, the corners of its box"):
            predictor.predict(point_coords=corners, point_labels=np.array(labels))


def test_logits_are_upscaled_with_their_gradients(predictor: SamPredictor) -> None:
    """Fine-tuning code computes its losses from them."""
    logits, sizes = torch.linspace(-1, 1, 3 * 256**2).reshape(1, 3, 256, 256).requires_grad_(), ((820, 1024), (80, 100))
    upscaled = predictor.model.postprocess_masks(logits, *sizes)
    assert torch.equal(upscaled, predictor.model.full_size(logits, *sizes, logits=True))
    upscaled.sum().backward()
    assert logits.grad is not None


def test_a_model_in_bfloat16_is_refused_on_a_cpu(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="bf16 needs a GPU: on a CPU, use precision fp32 or auto"):
        SamPredictor(build_sam("mobile_sam").bfloat16()).set_image(image)


def test_a_model_that_changes_is_prepared_again(image: np.ndarray) -> None:
    predictor = SamPredictor(build_sam("mobile_sam"))
    predictor.set_image(image)
    prepared = predictor.model.predictor()
    _, before, _ = predictor.predict(box=BOX)
    assert predictor.model.predictor() is prepared
    with torch.no_grad():
        predictor.model.mask_decoder.iou_prediction_head.layers[-1].bias += 1.0
    _, after, _ = predictor.predict(box=BOX)
    assert predictor.model.predictor() is not prepared
    np.testing.assert_allclose(after, before + 1, atol=1e-5)


def test_a_model_that_is_loaded_in_inference_mode_predicts(image: np.ndarray) -> None:
    with torch.inference_mode():
        predictor = SamPredictor(build_sam("mobile_sam"))
        predictor.set_image(image)
        masks, _, _ = predictor.predict(box=BOX)
    assert masks.shape == (3, *image.shape[:2])


def test_without_an_image_and_with_wrong_prompts_it_says_what_to_do(predictor: SamPredictor) -> None:
    with pytest.raises(RuntimeError, match="Call set_image first"):
        SamPredictor(predictor.model).predict(box=BOX)
    with pytest.raises(ValueError, match="point_coords without point_labels"):
        predictor.predict(point_coords=np.array([[1, 2]]))
    with pytest.raises(ValueError, match="no prompt: expected"):
        predictor.predict()
    with pytest.raises(ValueError, match="image_format is 'GBR'"):
        predictor.set_image(np.zeros((3, 3, 3), np.uint8), "GBR")
    with pytest.raises(ValueError, match=r"\(1, 3, 80, 100\): expected \(1, 3, H, W\) with a longer side of 1024"):
        predictor.set_torch_image(torch.zeros(1, 3, 80, 100), (80, 100))


def test_a_binary_mask_counts_as_logits_of_its_foreground(predictor: SamPredictor, image: np.ndarray) -> None:
    predictor.set_image(image)
    disk = np.hypot(*np.mgrid[-128:128, -128:128])[None] < 60
    logits = np.where(disk, 10, -10).astype(np.float32)
    expected = predictor.predict(mask_input=logits)[2]
    for mask in (disk, disk.astype(np.uint8) * 255):
        assert np.array_equal(predictor.predict(mask_input=mask)[2], expected)
    with pytest.raises(ValueError, match="only 0 and 1 as float64: expected logits"):
        predictor.predict(mask_input=disk.astype(float))
