"""Masks drawn inside their box against the whole frame upscaled by the predictor."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from packaging.version import Version

from segmint.model.automatic.candidates import stability_scores
from segmint.model.automatic.crops import box_of
from segmint.model.automatic.rle import Rle, decode, encode
from segmint.model.sam.geometry import SAM1, Geometry
from segmint.model.sam.load import Sam, load_sam
from segmint.model.sam.mask_decoder import MaskDecoder, PromptEncoder
from segmint.model.sam.predictor import Embedding, Predictor
from segmint.model.sam.preprocess import resized_size
from segmint.pipeline.engine.annotate import drawing
from segmint.pipeline.engine.annotate.decoder import mask_logits
from segmint.pipeline.engine.annotate.drawing import ExactRows, draw_mask

FRAMES = [((1024, 683), (1500, 1000)), ((683, 1024), (427, 640)), ((1024, 1024), (333, 333)), ((500, 1024), (61, 125))]


@pytest.fixture(scope="module")
def predictor(mobile_sam_path: Path) -> Predictor:
    """A predictor; only its upscaling is used."""
    return Predictor(load_sam(mobile_sam_path))


def blobs(seed: int, level: float, side: int = 256) -> torch.Tensor:
    """Smooth random logits (side, side)."""
    coarse = torch.randn(1, 1, 9, 9, generator=torch.Generator().manual_seed(seed)) * 12 + level
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")[0, 0]


@pytest.mark.parametrize(("filled", "frame"), FRAMES)
@pytest.mark.parametrize("level", [-12.0, 0.0, 15.0, -200.0])
def test_pixels_are_the_predictors(
    predictor: Predictor, filled: tuple[int, int], frame: tuple[int, int], level: float
) -> None:
    embedding = Embedding(torch.zeros(1, 256, 64, 64), filled, frame)
    for seed in range(3):
        logits = blobs(seed, level)
        upscaled = predictor.upscale(logits[None, None], embedding)[0]
        wanted = (upscaled[0] > 0).numpy()
        drawn = draw_mask(predictor, embedding, logits)
        assert (decode(Rle(frame, drawn.counts)) == wanted).all()
        assert drawn.area == np.count_nonzero(wanted)
        if drawn.area:
            x0, y0, x1, y1 = box_of(wanted)
            assert drawn.bbox == (x0, y0, x1 - x0, y1 - y0)
            assert drawn.stability == pytest.approx(float(stability_scores(upscaled, 1.0)[0]), abs=1e-4)


@pytest.mark.parametrize(("filled", "frame"), [*FRAMES, ((683, 1024), (1500, 2250))])
def test_pixels_all_but_zero_are_the_predictors(
    predictor: Predictor, filled: tuple[int, int], frame: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding = Embedding(torch.zeros(1, 256, 64, 64), filled, frame)
    monkeypatch.setattr(drawing, "DIFFERENCE", 2.0**-14)  # so that many pixels are in doubt
    rows: list[int] = []
    real = ExactRows.row

    def row(self: ExactRows, logits: torch.Tensor, number: int) -> NDArray[np.float32]:
        rows.append(number)
        return real(self, logits, number)

    monkeypatch.setattr(ExactRows, "row", row)
    for seed in range(2):
        logits = blobs(seed, 0.0)
        upscaled = predictor.upscale(logits[None, None], embedding)[0, 0]
        settled = len(rows)
        assert draw_mask(predictor, embedding, logits).counts == encode((upscaled > 0).numpy()).counts
        for number in rows[settled:]:
            exact = drawing.axes_of(SAM1, filled, frame).exact
            assert exact is not None
            assert np.array_equal(real(exact, logits, number), upscaled[number].numpy())
    assert bool(rows) == (frame != (61, 125))  # where torch has another kernel


@pytest.mark.parametrize("geometry", [Geometry(512), Geometry(448, 14, "stretched")])
def test_pixels_of_other_geometries_are_the_predictors(geometry: Geometry) -> None:
    side = geometry.image_size
    filled = resized_size(300, 200, side) if geometry.placement == "padded" else (side, side)
    encoder = torch.nn.Conv2d(3, 256, geometry.patch_size, geometry.patch_size)
    predictor = Predictor(Sam(encoder, PromptEncoder(geometry), MaskDecoder(1)))
    embedding = Embedding(torch.zeros(1, 256, 32, 32), filled, (300, 200))
    logits = blobs(1, 0.0, 128)
    wanted = (predictor.upscale(logits[None, None], embedding)[0, 0] > 0).numpy()
    assert draw_mask(predictor, embedding, logits).counts == encode(wanted).counts

    again = mask_logits(encode(wanted), embedding, geometry)
    assert again.shape == (1, 1, 128, 128)
    share = filled[0] * filled[1] / side**2 * wanted.mean()
    assert float(again.sigmoid().mean()) == pytest.approx(share, abs=2e-3)


def test_a_mask_with_many_pixels_all_but_zero_is_left_to_the_predictor(predictor: Predictor) -> None:
    embedding = Embedding(torch.zeros(1, 256, 64, 64), (1024, 1024), (512, 512))
    logits = blobs(1, 0.0)
    logits[100:140, 100:140] = 0.0  # where sums in another order may have either sign
    with pytest.raises(drawing.DoubtfulError):
        drawing.draw_border(logits, embedding, SAM1)
    wanted = (predictor.upscale(logits[None, None], embedding)[0, 0] > 0).numpy()
    assert (decode(Rle((512, 512), draw_mask(predictor, embedding, logits).counts)) == wanted).all()


@pytest.mark.parametrize(("given", "wanted"), [(256, 1024), (683, 1500), (1024, 333), (768, 3000), (1000, 667)])
def test_a_steps_rows_have_the_bits_of_all_rows_at_once(given: int, wanted: int) -> None:
    step = drawing.Step.make(given, wanted)
    if step is None and Version(torch.__version__).release < (2, 15):
        pytest.skip("torch before 2.15 has other weights for this size, so the predictor draws its masks")
    assert step is not None
    rows = torch.randn(given, 300, generator=torch.Generator().manual_seed(3)) * 20
    whole = torch.nn.functional.interpolate(rows[None, None], (wanted, 700), mode="bilinear")[0, 0]
    for row in range(0, wanted, 7):
        pair = rows[[step.before[row], step.after[row]]]
        assert torch.equal(step.row(pair, row, 700), whole[row]), row
