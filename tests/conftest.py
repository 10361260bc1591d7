"""What every test may ask for: photographs, reference results, weights. Nothing here stands in for a real part."""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from segmint.infra.device import fix_products
from tests.support.photographs import photograph

fix_products()  # before a test multiplies matrices

# A shell that runs the tests in the background has them, and all they start, ignore interrupts: tests that interrupt a
# process would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes is the machine's affair: a deadline would fail tests where others compute beside.
settings.register_profile("segmint", deadline=None)
settings.load_profile("segmint")

pytest_plugins = [
    "tests.support.parallel",  # first, for the others import it
    "tests.support.browser",
    "tests.support.built_fixtures",
    "tests.support.cuda",
    "tests.support.fast",
    "tests.support.small_dataset_fixtures",
    "tests.support.report_fixtures",
    "tests.support.ray_fixtures",
    "tests.support.s3_fixtures",
    "tests.support.summary",
    "tests.support.train_fixtures",
]


def pytest_collection_finish() -> None:
    """Keep the garbage collector from the thousands of collected tests: to look at them takes most of a second."""
    gc.freeze()


def pytest_unconfigure() -> None:
    """Give the objects back: DuckDB's, if never collected, are listed as leaks below the summary."""
    gc.unfreeze()


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: it names a folder that this test needs")
    folder = Path(value)
    if not folder.is_dir():
        pytest.fail(f"{variable} is {value!r}, which is no folder")
    return folder


@pytest.fixture(scope="session")
def photos() -> Path:
    """The folder of test photographs (`SEGMINT_TEST_PHOTOS`); skips by name without it."""
    return _folder("SEGMINT_TEST_PHOTOS")


@pytest.fixture(scope="session")
def reference_results() -> Path:
    """The folder of recorded reference results (`SEGMINT_TEST_REFERENCE`); skips by name without it."""
    return _folder("SEGMINT_TEST_REFERENCE")


@pytest.fixture(scope="session")
def crds() -> Path:
    """The folder of KubeRay's custom resource definitions (`SEGMINT_CRDS`); skips by name without it."""
    return _folder("SEGMINT_CRDS")


@pytest.fixture(scope="session")
def mobile_sam_path(weights: None) -> Path:
    """MobileSAM's published checkpoint, verified by its hash."""
    from segmint.infra.assets import resolve

    return resolve("mobile_sam")


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    """scikit-image's astronaut: one face, (512, 512, 3) uint8 RGB."""
    return photograph("astronaut")


@pytest.fixture(scope="session")
def coffee() -> np.ndarray:
    """scikit-image's coffee cup: no face and no plate, (400, 600, 3) uint8 RGB."""
    return photograph("coffee")


@pytest.fixture(scope="module")
def embedded_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """MobileSAM encodes a picture once in a test run, for tests of what comes after the encoder."""
    from tests.support.embedded_once import encoding_once

    with encoding_once(tmp_path_factory):
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread for torch: small convolutions are many times slower on threads that wait for each other's core."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def read_rgb(path: Path) -> np.ndarray:
    """Pixels of an upright photograph, (H, W, 3) uint8 RGB."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
