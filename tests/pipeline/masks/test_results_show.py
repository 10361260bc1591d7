"""`show` draws masks of every kind where they are; pictures of results are pictures."""

import base64
import io
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image

from segmint.catalogs.dataset.reader import MaskAnnotation, Sample
from segmint.infra.arrays import Pixels
from segmint.model.automatic.rle import Funnel, MaskRecord, decompress, encode
from segmint.operators.overlay import draw_overlay
from segmint.pipeline.masks.results import ImageMasks, MissingMatplotlibError, show

mpl.use("Agg")

GRAY = np.full((60, 90, 3), 128, np.uint8)
MASK = np.zeros((60, 90), bool)
MASK[10:40, 20:50] = True
BOX = (20.0, 10.0, 29.0, 29.0)
RECORD = MaskRecord(encode(MASK), 900, BOX, 0.9, 0.95, (0.0, 0.0, 90.0, 60.0), (30.0, 20.0))
COUNTS = RECORD.segmentation.counts
ANNOTATION = MaskAnnotation(1, (60, 90), COUNTS, 900, BOX, None, None, BOX, ())


def drawn(*arguments: object, **keys: object) -> Pixels:
    (picture,) = show(*arguments, **keys).images  # type: ignore[arg-type]
    return np.asarray(picture.get_array())


@pytest.fixture(autouse=True)
def _closed():
    yield
    pyplot.close("all")


@pytest.mark.parametrize(
    "masks",
    [
        RECORD,
        [RECORD],
        ANNOTATION,
        MASK,
        MASK[None].astype(np.uint8),
        [{"segmentation": MASK}],
        {"segmentation": {"size": [60, 90], "counts": COUNTS}},
        {"segmentation": {"size": [60, 90], "counts": COUNTS.encode()}},
        {"segmentation": {"size": [60, 90], "counts": decompress(COUNTS).tolist()}},
        ImageMasks((RECORD,), Funnel(), GRAY),
    ],
    ids=lambda masks: type(masks).__name__,
)
def test_a_mask_of_any_kind_is_drawn_where_it_is(masks: object) -> None:
    assert np.array_equal(drawn(GRAY, masks), draw_overlay(GRAY, [RECORD]))


def test_a_result_and_a_sample_bring_their_masks() -> None:
    assert np.array_equal(drawn(ImageMasks((RECORD,), Funnel(), GRAY)), draw_overlay(GRAY, [RECORD]))
    buffer = io.BytesIO()
    Image.fromarray(GRAY).save(buffer, format="JPEG", quality=100)
    sample = Sample({"id": 1}, [ANNOTATION], buffer.getvalue())
    assert np.array_equal(drawn(sample), draw_overlay(sample.image, [RECORD]))


def test_prompts_are_drawn_over_the_image() -> None:
    found = drawn(GRAY, points=[[70, 30], [10, 50]], labels=[1, 0], boxes=[5, 5, 80, 55])
    assert tuple(found[30, 70]) == (60, 220, 60)
    assert tuple(found[50, 10]) == (235, 60, 60)
    assert found[5, 40].min() > 200


def test_the_figure_has_the_images_shape_and_says_how_many_masks() -> None:
    axes = show(GRAY, [RECORD, MASK])
    assert axes.get_title() == "2 masks"
    width, height = axes.figure.get_size_inches()
    assert width / height == pytest.approx(90 / 60)
    mine = pyplot.subplots()[1]
    assert show(GRAY, title="a cup", ax=mine) is mine
    assert mine.get_title() == "a cup"


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (MASK[:, :80], "mask 0 is 80 x 60 pixels, but the image is 90 x 60"),
        ([RECORD, np.full((60, 90), 0.5)], r"mask 1 is an array \(60, 90\) of float64: expected a record"),
        (["a"], "mask 0 is an array"),
        (7, "the masks are a int"),
        ([{"area": 3}], "mask 0 is a NoneType"),
    ],
)
def test_what_is_no_mask_is_refused_with_what_was_given(masks: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        show(GRAY, masks)


def test_wrong_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"points have the shape \(3,\): expected \(N, 2\)"):
        show(GRAY, points=[1, 2, 3])
    with pytest.raises(ValueError, match="got 2 labels for 1 points"):
        show(GRAY, points=[1, 2], labels=[1, 0])
    with pytest.raises(ValueError, match="boxes contain NaN or infinity"):
        show(GRAY, boxes=[0, 0, np.nan, 3])


def test_prompts_far_outside_of_padding_and_none_at_all_are_fine() -> None:
    def drawn(**prompts: Any) -> np.ndarray:
        axes = show(GRAY, **prompts)
        pyplot.close(axes.figure)
        return np.asarray(axes.images[0].get_array())

    for prompts in ({"points": [], "boxes": []}, {"points": [[9, 9]], "labels": [-1]}, {"points": [[1e30, 5]]}):
        assert np.array_equal(drawn(**prompts), GRAY)
    assert not np.array_equal(drawn(points=[[9, 9]], labels=[0]), GRAY)


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingMatplotlibError, match=r"pip install 'segmint\[notebook\]'"):
        show(GRAY, MASK)


def picture_in(text: str) -> Image.Image:
    (data,) = re.findall(r'src="data:image/\w+;base64,([^"]+)"', text)
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_a_result_in_a_notebook_is_the_image_with_its_masks(tmp_path: Path) -> None:
    result = ImageMasks((RECORD,), Funnel(), GRAY)
    picture = np.asarray(picture_in(result._repr_html_()).convert("RGB")).astype(int)
    assert picture.shape == GRAY.shape
    assert np.abs(picture - draw_overlay(GRAY, [RECORD])).mean() < 5
    assert "1 mask of array (60, 90, 3)" in result._repr_html_()
    large = np.zeros((2000, 1000, 3), np.uint8)
    assert picture_in(ImageMasks((), Funnel(), large)._repr_html_()).size == (384, 768)
    failed = ImageMasks((), Funnel(), "<b>.jpg", "<b>.jpg is not there")
    assert "&lt;b&gt;.jpg is not there" in failed._repr_html_()
    gone = ImageMasks((RECORD,), Funnel(), tmp_path / "gone.png")
    assert "gone.png does not exist" in gone._repr_html_()
    Image.fromarray(large).save(tmp_path / "gone.png")
    assert "pixels, but its masks are" in gone._repr_html_()


def test_a_record_in_a_notebook_is_its_mask() -> None:
    assert np.array_equal(np.asarray(picture_in(RECORD._repr_html_())), MASK)
    assert "area=900" in RECORD._repr_html_()
