"""Cells that make the calls of the reference's notebooks run with the import changed, and give the same answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import segment_anything
import torch
from PIL import Image

from benchmarks.masks.reference import reference_sam
from segmint.compat.sam import Sam
from segmint.model.sam.load import load_sam
from tests.support.embedded_once import embed_once

mpl.use("Agg")

LOAD = """
import cv2, numpy as np, torch
import matplotlib.pyplot as plt
from {package} import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry
image = cv2.cvtColor(cv2.imread(photo), cv2.COLOR_BGR2RGB)
sam = sam_model_registry[model_type](checkpoint=checkpoint)
sam.to(device="cpu")
"""

AUTOMATIC = [
    """
mask_generator = SamAutomaticMaskGenerator(sam, points_per_side=4)
masks = mask_generator.generate(image)
""",
    """
count, keys = len(masks), list(masks[0].keys())
by_area = sorted(masks, key=lambda mask: mask["area"], reverse=True)
axes = plt.figure().gca()
axes.set_autoscale_on(False)
layer = np.ones((*by_area[0]["segmentation"].shape, 4))
layer[:, :, 3] = 0
for number, mask in enumerate(by_area):
    layer[mask["segmentation"]] = [number / 50, 0.5, 0.5, 0.35]
axes.imshow(layer)
plt.close()
""",
    """
mask_generator_2 = SamAutomaticMaskGenerator(
    model=sam, points_per_side=4, pred_iou_thresh=0.7, stability_score_thresh=0.85, crop_n_layers=1,
    crop_n_points_downscale_factor=2, min_mask_region_area=100,
)
masks_2 = mask_generator_2.generate(image)
x, y, width, height = masks[0]["bbox"]
cut = image[y : y + height, x : x + width]
""",
]

PREDICTOR = [
    """
predictor = SamPredictor(sam)
predictor.set_image(image)
point, label = np.array([[290, 60]]), np.array([1])
three, scores, logits = predictor.predict(point_coords=point, point_labels=label, multimask_output=True)
""",
    """
points, labels = np.array([[290, 60], [220, 200]]), np.array([1, 1])
mask_input = logits[np.argmax(scores), :, :]
more, more_scores, more_logits = predictor.predict(
    point_coords=points, point_labels=labels, mask_input=mask_input[None, :, :], multimask_output=False
)
""",
    """
labels = np.array([1, 0])
less, _, _ = predictor.predict(
    point_coords=points, point_labels=labels, mask_input=mask_input[None, :, :], multimask_output=False
)
""",
    """
box = np.array([172, 15, 410, 305])
boxed, box_scores, _ = predictor.predict(point_coords=None, point_labels=None, box=box[None, :], multimask_output=False)
flat, _, _ = predictor.predict(box=box, multimask_output=False)
""",
    """
without, _, _ = predictor.predict(
    point_coords=np.array([[220, 200]]), point_labels=np.array([0]), box=box, multimask_output=False
)
raw, _, _ = predictor.predict(box=box, return_logits=True)
""",
    """
boxes = torch.tensor([[172, 15, 410, 305], [0, 0, 599, 399], [20, 180, 160, 390]], device=predictor.device)
scaled = predictor.transform.apply_boxes_torch(boxes, image.shape[:2])
many, many_scores, many_logits = predictor.predict_torch(
    point_coords=None, point_labels=None, boxes=scaled, multimask_output=False
)
""",
    """
from {package}.utils.transforms import ResizeLongestSide
transform = ResizeLongestSide(sam.image_encoder.img_size)
def prepared(image):
    pixels = torch.as_tensor(transform.apply_image(image), device=sam.device)
    return pixels.permute(2, 0, 1).contiguous()
half = np.ascontiguousarray(image[:, 300:])
clicks = torch.as_tensor(transform.apply_coords(np.array([[[40, 50]], [[150, 300]]]), half.shape[:2]))
batched_input = [
    {{"image": prepared(image), "boxes": scaled, "original_size": image.shape[:2]}},
    {{"image": prepared(half), "original_size": half.shape[:2], "point_coords": clicks,
      "point_labels": torch.ones(2, 1)}},
]
batched_output = sam(batched_input, multimask_output=False)
""",
    """
embedding = predictor.get_image_embedding().cpu().numpy()
sizes = predictor.original_size, predictor.input_size, predictor.is_image_set
moved = predictor.transform.apply_coords(points, image.shape[:2])
predictor.reset_image()
""",
]


class Notebook:
    """Runs cells for one package, in one namespace."""

    def __init__(self, package: str, photo: Path, checkpoint: Path) -> None:
        self.package = package
        self.names: dict[str, Any] = {"photo": str(photo), "checkpoint": str(checkpoint), "model_type": "vit_t"}
        self.run([LOAD])

    def run(self, cells: list[str]) -> dict[str, Any]:
        for cell in cells:
            exec(cell.format(package=self.package), self.names)  # as a notebook does
        return self.names


@pytest.fixture(scope="module")
def notebooks(
    tmp_path_factory: pytest.TempPathFactory, coffee: np.ndarray, mobile_sam_path: Path, embedded_once: None
) -> tuple[Notebook, Notebook]:
    """One for segmint and one for the reference, on the same photograph; an encoder that both share encodes once."""
    photo = tmp_path_factory.mktemp("notebook") / "coffee.png"
    Image.fromarray(coffee).save(photo)
    ours = Notebook("segmint.compat", photo, mobile_sam_path)
    sam = ours.names["sam"]
    assert isinstance(sam, Sam)
    encoder = embed_once(sam.predictor())

    def build(checkpoint: str) -> torch.nn.Module:
        """The reference package has no MobileSAM: ours stands in for its image encoder."""
        reference: Any = reference_sam(load_sam(checkpoint))
        reference.image_encoder.encoder = encoder
        return reference

    registry: dict[str, Callable[..., Any]] = segment_anything.sam_model_registry
    registry["vit_t"] = build
    try:
        theirs = Notebook("segment_anything", photo, mobile_sam_path)
    finally:
        del registry["vit_t"]
    return ours, theirs


def test_the_cells_of_the_mask_generator(notebooks: tuple[Notebook, Notebook]) -> None:
    ours, theirs = (notebook.run(AUTOMATIC) for notebook in notebooks)
    assert ours["count"] == theirs["count"] >= 3
    assert ours["keys"] == theirs["keys"]
    assert len(theirs["masks_2"]) > len(theirs["masks"])
    for name in ("masks", "masks_2"):
        assert len(ours[name]) == len(theirs[name])
        for mine, other in zip(ours[name], theirs[name], strict=True):
            agree(mine, other)
    # Whole numbers, as the reference's are (but for crops without masks, which turn all of its boxes into floats).
    for key, value in theirs["masks"][0].items():
        assert type(ours["masks"][0][key]) is type(value)
        if isinstance(value, list):
            assert type(ours["masks"][0][key][0]) is type(value[0])


def agree(mine: dict[str, Any], other: dict[str, Any]) -> None:
    a, b = mine["segmentation"], other["segmentation"]
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert (a & b).sum() >= 0.99 * (a | b).sum()
    assert a.sum() == mine["area"]
    assert mine["bbox"] == pytest.approx(other["bbox"], abs=1)
    for key in ("point_coords", "crop_box"):
        assert mine[key] == other[key]
    for key in ("predicted_iou", "stability_score"):
        assert mine[key] == pytest.approx(other[key], abs=1e-3)


def test_the_cells_of_the_predictor(notebooks: tuple[Notebook, Notebook]) -> None:
    ours, theirs = (notebook.run(PREDICTOR) for notebook in notebooks)
    for name in ("three", "more", "less", "boxed", "flat", "without", "many"):
        same_masks(ours[name], theirs[name])
    assert theirs["three"].sum() != theirs["more"].sum() != theirs["less"].sum()
    for name in ("scores", "more_scores", "box_scores", "many_scores"):
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4)
        assert ours[name].dtype == theirs[name].dtype
    for name in ("logits", "more_logits", "many_logits", "raw"):
        assert ours[name].shape == theirs[name].shape
        np.testing.assert_allclose(ours[name], theirs[name], atol=5e-3)
    for mine, other in zip(ours["batched_output"], theirs["batched_output"], strict=True):
        assert mine.keys() == other.keys()
        same_masks(mine["masks"], other["masks"])
        torch.testing.assert_close(mine["iou_predictions"], other["iou_predictions"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(ours["embedding"], theirs["embedding"], atol=1e-4)
    np.testing.assert_allclose(ours["moved"], theirs["moved"])
    assert ours["sizes"] == theirs["sizes"] == ((400, 600), (683, 1024), True)
    assert not ours["predictor"].is_image_set


def same_masks(mine: Any, other: Any) -> None:
    assert type(mine) is type(other)
    a, b = np.asarray(mine), np.asarray(other)
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert (a != b).mean() < 1e-5  # pixels whose logit is 0 but for its last bits


def test_the_answers_may_take_part_in_training(notebooks: tuple[Notebook, Notebook]) -> None:
    """Tensors of inference mode could not."""
    predictor = notebooks[0].run([PREDICTOR[0]])["predictor"]
    weight = torch.ones(1, requires_grad=True)
    for tensor in (predictor.features, *predictor.predict_torch(None, None, torch.tensor([[10.0, 10, 90, 90]]))[1:]):
        (tensor * weight).sum().backward()
    assert weight.grad is not None
