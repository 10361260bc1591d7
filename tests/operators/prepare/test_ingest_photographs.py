"""Photographs that people name: the decoders that can crash have a process for themselves."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmint.catalogs.findings import Reason, RejectedError
from segmint.operators.prepare.ingest import decode_photograph, ingest
from segmint.operators.prepare.ingest_config import ANY_SIZE
from tests.support.deadly import deadly_heic

ROOT = Path(__file__).parents[3]
HEIC = ROOT / "tests" / "support" / "heic"


def test_a_deadly_heic_is_refused_and_the_next_is_decoded(tmp_path: Path, coffee: np.ndarray) -> None:
    with pytest.raises(RejectedError) as verdict:
        decode_photograph(deadly_heic())
    assert verdict.value.reason is Reason.KILLED_WORKER
    turned = (HEIC / "turned_6.heic").read_bytes()
    assert np.array_equal(decode_photograph(turned), ingest(turned, ANY_SIZE).image)
    Image.fromarray(coffee).save(tmp_path / "cup.png")
    assert np.array_equal(decode_photograph((tmp_path / "cup.png").read_bytes()), coffee)
    with pytest.raises(RejectedError, match="holds no bytes"):
        decode_photograph(b"")


def test_a_process_that_decoded_a_heic_ends_and_its_forks_decode_too() -> None:
    script = (
        "import multiprocessing, sys\nfrom segmint.operators.prepare.ingest import decode_photograph\n"
        "data = open(sys.argv[1], 'rb').read()\nshape = decode_photograph(data).shape\n"
        "fork = multiprocessing.get_context('fork').Process(target=decode_photograph, args=(data,))\n"
        "fork.start()\nfork.join()\nassert fork.exitcode == 0\nassert decode_photograph(data).shape == shape\n"
    )
    words = [sys.executable, "-c", script, str(HEIC / "photograph.heic")]
    assert subprocess.run(words, cwd=ROOT, timeout=60).returncode == 0
