"""Thousands of changed images: each ends in a verdict or a released image, and none but a HEIC ends its child.

More of them: `SEGMINT_FUZZ_IMAGES=200000 SEGMINT_FUZZ_SEED=7 .venv/bin/python -m pytest -m long` with this file.
"""

import functools
import os
import re
from collections.abc import Callable

import pytest
import simplejpeg

from segmint.infra.storage.storage import Storage
from segmint.operators.child import Children
from segmint.operators.prepare.deidentify import DeidentifyConfig, FacesConfig, PlatesConfig
from segmint.operators.prepare.ingest import IngestConfig
from segmint.operators.prepare.prepare import PrepareConfig, PreparedImage, RefusedError, build_worker, prepare_image
from segmint.operators.prepare.release import CropLayers, ReleaseConfig
from tests.support.image_mutants import mutants

CONFIG = PrepareConfig(
    ingest=IngestConfig(min_short_side=16, max_pixels=10_000_000, timeout_s=30),
    deidentify=DeidentifyConfig(faces=FacesConfig(detector="none"), plates=PlatesConfig(detector="none")),
    release=ReleaseConfig(short_side=64),
    crops=CropLayers(2, 512 / 1500),
)


def odd_ends(run: Callable[[bytes], PreparedImage], count: int, seed: int) -> tuple[list[str], int]:
    """Prepare `count` changed images; return the ends that are neither a verdict nor an image, and the images."""
    odd, accepted = [], 0
    for number, mutant in enumerate(mutants(count, seed)):
        try:
            prepared = run(mutant.data)
            height, width, *_ = simplejpeg.decode_jpeg_header(prepared.release)
            if (width, height) != (prepared.width, prepared.height):
                odd.append(f"{number}: {mutant.how}: released as {width} x {height}")
            accepted += 1
        except RefusedError as verdict:
            if not 0 < len(verdict.detail) < 300 or not verdict.detail.isprintable():
                odd.append(f"{number}: {mutant.how}: {verdict.detail!r}")
        except Exception as error:  # noqa: BLE001 - this is what the test looks for
            odd.append(f"{number}: {mutant.how}: {type(error).__name__}: {error}")
    return odd, accepted


def test_changed_images_end_in_a_verdict_or_an_image() -> None:
    odd, accepted = odd_ends(functools.partial(prepare_image, config=CONFIG, detectors=()), 30, seed=1)
    assert odd == []
    assert 2 < accepted < 20


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_many_changed_images_end_in_a_verdict_or_an_image() -> None:
    count, seed = (
        int(os.environ.get(f"SEGMINT_FUZZ_{name}", default)) for name, default in (("IMAGES", 20_000), ("SEED", 2))
    )
    with Children(
        functools.partial(build_worker, CONFIG, Storage(), None), timeout_s=30, memory_limit=4 << 30
    ) as children:
        odd, _ = odd_ends(children.run, count, seed)
    # A few HEICs crash libheif. A build tries them once more and then rejects them with this reason.
    assert [each for each in odd if not re.search(": heic: .*: killed_worker: ", each)] == []
