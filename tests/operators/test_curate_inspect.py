"""What is seen in an image's bytes at a reduced scale, with scorers."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segmint.catalogs.findings import Reason
from segmint.infra.errors import UsageError
from segmint.infra.storage.storage import Storage
from segmint.operators.curate import InspectionConfig, ScorerConfig, UndecodedError, build_looker, inspect_image
from segmint.operators.prepare.ingest import IngestConfig, ingest
from tests.support.bad_images import encode
from tests.support.signed_images import data_mining, image


class RednessScorer(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image[0].float().mean()


class WordsScorer(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> str:
        return "many"


def scorer(path: Path, module: torch.nn.Module) -> ScorerConfig:
    torch.jit.script(module).save(path)
    return ScorerConfig(name="red", file=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest(), max=100)


def test_a_large_jpeg_is_looked_at_at_a_reduced_scale(tmp_path: Path, astronaut: np.ndarray) -> None:
    large = Image.fromarray(astronaut).resize((3000, 2400))
    data = encode(large, "JPEG", exif=_turned())
    config = InspectionConfig(IngestConfig(), False, False, (scorer(tmp_path / "red.pt", RednessScorer()),))
    look = build_looker(config, Storage(), None)(data)
    assert (look.width, look.height) == (2400, 3000)
    assert look.scores[0] == pytest.approx(float(np.asarray(large)[..., 0].mean()), abs=2)
    assert look.thumbnail.shape == (64, 64)
    reduced = ingest(data, IngestConfig(), 512)
    assert (reduced.source_width, reduced.source_height) == (2400, 3000)
    assert reduced.image.shape == (750, 600, 3)
    whole = Image.fromarray(ingest(data, IngestConfig()).image).resize((600, 750), Image.Resampling.BOX)
    assert np.abs(np.asarray(whole, np.int16) - reduced.image).mean() < 3


@pytest.mark.parametrize("opt_outs", [True, False])
def test_metadata_of_what_cannot_be_decoded_is_read(opt_outs: bool) -> None:
    data = image("JPEG", data_mining("DMI-PROHIBITED"))[:-1000]
    with pytest.raises(UndecodedError) as caught:
        inspect_image(data, InspectionConfig(IngestConfig(), False, opt_outs, ()))
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.reason, again.detail) == (Reason.TRUNCATED, caught.value.detail)
    expected = "the image's metadata forbids training with it: plus:DataMining is DMI-PROHIBITED"
    assert again.opt_out == (expected if opt_outs else None)


def test_a_scorer_that_gives_no_number_is_refused(tmp_path: Path) -> None:
    config = InspectionConfig(IngestConfig(), False, False, (scorer(tmp_path / "words.pt", WordsScorer()),))
    with pytest.raises(UsageError, match=r"curate.scorers, red: .* doesn't return a number for a gray image: expected"):
        build_looker(config, Storage(), None)


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()
