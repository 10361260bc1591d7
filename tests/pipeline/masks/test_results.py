"""Results as sequences, and their methods to plot, save, cut out, and convert masks."""

import json
import math
import pickle
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from PIL import Image
from pycocotools import mask as coco

from segmint.model.automatic.rle import Funnel, MaskRecord, encode
from segmint.model.sam import predictor as sam_predictor
from segmint.operators.overlay import draw_overlay
from segmint.pipeline.masks.generator import Predictor
from segmint.pipeline.masks.results import ImageError, ImageMasks, PredictedMasks

pytestmark = pytest.mark.usefixtures("embedded_once")

mpl.use("Agg")

HEIGHT, WIDTH = 60, 90
PHOTO = np.arange(HEIGHT * WIDTH * 3, dtype=np.uint32).reshape(HEIGHT, WIDTH, 3).astype(np.uint8) | np.uint8(1)
POINT, OTHER = [290, 60], [220, 200]


def record(rows: slice, columns: slice, hole: bool = False) -> MaskRecord:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[rows, columns] = True
    if hole:
        mask[20, 30] = False
    x0, y0, x1, y1 = columns.start, rows.start, columns.stop - 1, rows.stop - 1
    box = (float(x0), float(y0), float(x1 - x0), float(y1 - y0))
    return MaskRecord(encode(mask), int(mask.sum()), box, 0.9, 0.95, (0.0, 0.0, 90.0, 60.0), (30.0, 20.0), 1)


RESULT = ImageMasks(
    (record(slice(10, 40), slice(20, 50), hole=True), record(slice(5, 6), slice(7, 9))), Funnel(), PHOTO
)


@pytest.fixture(scope="module")
def predictor(weights: None) -> Predictor:
    return Predictor(device="cpu")


def test_a_result_is_a_sequence_of_its_masks() -> None:
    assert len(RESULT) == 2
    assert list(RESULT) == list(RESULT.records)
    assert RESULT[-1] is RESULT.records[1]
    assert RESULT[:1] == RESULT.records[:1]
    assert RESULT.masks.shape == (2, HEIGHT, WIDTH)
    assert [int(mask.sum()) for mask in RESULT.masks] == [each.area for each in RESULT]
    nothing = ImageMasks((), Funnel(), PHOTO)
    assert not nothing
    assert nothing.masks.shape == (0, HEIGHT, WIDTH)


def test_a_plot_is_what_show_draws() -> None:
    (drawn,) = RESULT.plot(title="two").images
    assert np.array_equal(drawn.get_array(), draw_overlay(PHOTO, RESULT.records))
    assert pyplot.gca().get_title() == "two"
    pyplot.close("all")


def test_saved_masks_are_the_documents_of_a_dataset(tmp_path: Path) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "cup.png")
    named = ImageMasks(RESULT.records, Funnel(), tmp_path / "cup.png")
    for result, name in ((RESULT, "image"), (named, "cup.png")):
        document = json.loads(result.save(tmp_path / "x.masks.json").read_bytes())
        assert document["image"] == document["image"] | {"width": WIDTH, "height": HEIGHT, "file_name": name}
        counts = [each["segmentation"]["counts"] for each in document["annotations"]]
        assert counts == [each.segmentation.counts for each in RESULT]
        assert [each["point_coords"] for each in document["annotations"]] == [[[30.0, 20.0]]] * 2
        assert document["outputs"] == [1, 1]
    drawing = Image.open(named.save(str(tmp_path / "x.PNG")))
    assert np.array_equal(drawing, draw_overlay(PHOTO, RESULT.records))
    with pytest.raises(ValueError, match=r"x\.jpg: expected a name that ends in \.json for the masks, or \.png"):
        RESULT.save(tmp_path / "x.jpg")


def test_a_cutout_is_the_object_alone() -> None:
    found = RESULT.cutout(0)
    assert (found.mode, found.size) == ("RGBA", (30, 30))
    pixels, mask = np.asarray(found), RESULT.masks[0][10:40, 20:50]
    assert np.array_equal(pixels[..., 3], mask * 255)
    assert np.array_equal(pixels[mask][:, :3], PHOTO[10:40, 20:50][mask])
    assert not pixels[~mask].any()  # what was around the object isn't in the file
    assert RESULT.cutout(1).size == (2, 1)
    with pytest.raises(IndexError):
        RESULT.cutout(2)


def test_an_image_that_changed_or_is_unknown_is_told(tmp_path: Path) -> None:
    Image.fromarray(PHOTO[:30]).save(tmp_path / "cup.png")
    with pytest.raises(ImageError, match=r"cup\.png is 90 x 30 pixels, but its masks are 90 x 60"):
        ImageMasks(RESULT.records, Funnel(), tmp_path / "cup.png").cutout(0)
    with pytest.raises(ImageError, match="these masks have no image"):
        ImageMasks(RESULT.records, Funnel(), None).save(tmp_path / "x.png")
    with pytest.raises(ImageError, match="not enough memory"):  # else it would look like an image without masks
        ImageMasks((), Funnel(), PHOTO, "not enough memory").save(tmp_path / "x.json")


def test_supervision_gets_boxes_masks_and_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make test-interop` passes the same masks to the real package."""
    stand_in = ModuleType("supervision")
    stand_in.Detections = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "supervision", stand_in)
    found = RESULT.to_supervision()
    assert found.xyxy.tolist() == [[20, 10, 49, 39], [7, 5, 8, 5]]
    assert np.array_equal(found.mask, RESULT.masks)
    assert found.confidence == pytest.approx([0.9, 0.9])
    assert found.class_id.tolist() == [0, 0]
    assert found.data["stability_score"].tolist() == [0.95, 0.95]
    assert ImageMasks((), Funnel(), PHOTO).to_supervision().xyxy.shape == (0, 4)
    compact = SimpleNamespace(from_coco_rle=lambda rles, corners, size: (coco.decode(rles), corners, size))
    stand_in.CompactMask = compact  # type: ignore[attr-defined]
    masks, corners, size = RESULT.to_supervision().mask
    assert np.array_equal(masks.transpose(2, 0, 1), RESULT.masks)
    assert (corners.tolist(), size) == (found.xyxy.tolist(), PHOTO.shape[:2])


def test_a_prediction_has_the_best_mask_of_each_prompt(
    predictor: Predictor, coffee: np.ndarray, tmp_path: Path
) -> None:
    Image.fromarray(coffee).save(tmp_path / "coffee.png")
    embedding = predictor.embed(tmp_path / "coffee.png")
    assert embedding.source == tmp_path / "coffee.png"
    points = torch.tensor([[POINT, OTHER], [OTHER, [0, 0]]], dtype=torch.float64)
    labels = np.array([[1, 0], [1, -1]])
    found = predictor.predict(embedding, points=points, labels=labels)
    plain = sam_predictor.Predictor.predict(predictor, embedding, points=points, labels=labels)
    assert torch.equal(found.low_res_logits, plain.low_res_logits)
    assert torch.equal(found.predicted_iou, plain.predicted_iou)
    every = (predictor.upscale(plain.low_res_logits, embedding) > 0).numpy()
    assert np.array_equal(found.all_masks, every)
    copied = pickle.dumps(found)
    assert np.array_equal(pickle.loads(copied).all_masks, every)
    assert len(copied) < 2 * found.low_res_logits.numpy().nbytes
    best = plain.predicted_iou.argmax(dim=1).tolist()
    assert np.array_equal(found.masks, every[[0, 1], best])
    assert [each.predicted_iou for each in found] == pytest.approx(plain.predicted_iou.max(dim=1).values.tolist())
    assert all(0.5 < each.stability_score <= 1 for each in found)
    document = json.loads(found.save(tmp_path / "clicks.json").read_bytes())
    assert [each["point_coords"] for each in document["annotations"]] == [[POINT, OTHER], [OTHER]]
    assert found.cutout(0).size == (found[0].bbox[2] + 1, found[0].bbox[3] + 1)
    assert "coffee.png" in found._repr_html_()


def test_a_prompt_may_come_with_the_image_itself_and_points_are_foreground(
    predictor: Predictor, coffee: np.ndarray, tmp_path: Path
) -> None:
    found = predictor.predict(coffee, points=[POINT])
    expected = predictor.predict(predictor.embed(coffee), points=[POINT], labels=[1])
    assert isinstance(found, PredictedMasks)
    assert torch.equal(found.low_res_logits, expected.low_res_logits)
    assert found.masks[0][60, 290]
    box = predictor.predict(torch.from_numpy(coffee.copy()), boxes=[172, 15, 410, 305], multimask=False)
    assert math.isnan(box[0].point_coords[0])
    assert json.loads(box.save(tmp_path / "box.json").read_text())["annotations"][0]["point_coords"] == []
    assert box.all_masks.shape == (1, 1, 400, 600)
    assert np.array_equal(box.image, coffee)
