"""MobileSAM, ours and in the segment-anything package, with one photograph encoded once."""

from pathlib import Path

import numpy as np
import pytest
from segment_anything import SamPredictor

from benchmarks.masks.reference import reference_sam
from segmint.model.sam.load import load_sam
from segmint.model.sam.predictor import Embedding, Predictor
from tests.support.embedded_once import encoding_once


@pytest.fixture(scope="session")
def predictor(mobile_sam_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """MobileSAM on the CPU, which encodes an image once in a test run."""
    with encoding_once(tmp_path_factory):
        return Predictor(load_sam(mobile_sam_path))


@pytest.fixture(scope="session")
def cup(coffee: np.ndarray) -> np.ndarray:
    """A part of the coffee photograph, small so that masks are: (150, 200, 3) uint8 RGB."""
    return np.ascontiguousarray(coffee[100:400:2, 100:500:2])


@pytest.fixture(scope="session")
def embedding(predictor: Predictor, cup: np.ndarray) -> Embedding:
    """The cup's embedding."""
    return predictor.embed(cup)


@pytest.fixture(scope="session")
def reference(predictor: Predictor, embedding: Embedding) -> SamPredictor:
    """The package's predictor with the same weights and the same embedding."""
    theirs = SamPredictor(reference_sam(predictor.sam))
    theirs.features, theirs.is_image_set = embedding.features, True
    theirs.input_size, theirs.original_size = embedding.input_size, embedding.frame_size
    return theirs
