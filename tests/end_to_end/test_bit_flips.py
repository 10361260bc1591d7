"""One changed bit in any file is found by the audit; repair restores the file, or the audit still names it."""

import contextlib
import os
import random
import shutil
from pathlib import Path

import pytest

from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.catalogs.dataset.tombstones import TakedownRequest
from segmint.catalogs.dataset.versions import put_version
from segmint.infra.errors import SegmintError
from segmint.pipeline.corrections.repair import repair
from segmint.pipeline.corrections.takedown import takedown
from segmint.pipeline.quality.audit.integrity import audit_integrity
from tests.support.locations import location_of

BITS = int(os.environ.get("SEGMINT_FLIPS", "6"))
"""Of each file."""

MADE_AGAIN = ("summaries/", "outputs/", "id.json")
"""What the audit does not need: sums that are made again when damaged, and notes of what was made elsewhere."""


@pytest.fixture
def dataset(small_dataset: Path, tmp_path: Path) -> Path:
    """A copy of the small real dataset with a takedown and two recorded versions."""
    folder = Path(shutil.copytree(small_dataset, tmp_path / "dataset"))
    put_version(location_of(folder), "build")
    some_id = next(iter(_image_ids(folder)))
    takedown(location_of(folder), TakedownRequest(ids=(some_id,)), "asked by its owner")
    return folder


def _image_ids(folder: Path) -> list[str]:
    return [str(sample.row["image_id"]) for sample in open_dataset(str(folder))]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def is_found(folder: Path) -> bool:
    try:
        return audit_integrity(location_of(folder), sample=0).findings.total > 0
    except SegmintError:
        return True


@pytest.mark.long
def test_every_changed_bit_is_found_and_undone_or_named(dataset: Path) -> None:
    whole = contents(dataset)
    assert not is_found(dataset)
    missed, hidden, restored = [], [], 0
    for name in sorted(whole):
        if name.startswith(MADE_AGAIN):
            continue
        data = whole[name]
        for bit in random.Random(name).sample(range(len(data) * 8), min(BITS, len(data) * 8)):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            (dataset / name).write_bytes(changed)
            if not is_found(dataset):
                missed.append(f"{name}: bit {bit}")
            with contextlib.suppress(SegmintError):  # it says what it cannot read
                repair(location_of(dataset))
            now = contents(dataset)
            if now == whole:
                restored += 1
            else:
                if not is_found(dataset):
                    hidden.append(f"{name}: bit {bit}: {[n for n in {*now, *whole} if now.get(n) != whole.get(n)]}")
                shutil.rmtree(dataset)
                for path, before in whole.items():
                    (dataset / path).parent.mkdir(parents=True, exist_ok=True)
                    (dataset / path).write_bytes(before)
    assert (missed, hidden) == ([], [])
    assert restored >= BITS, "nothing was restored: this shows nothing"
