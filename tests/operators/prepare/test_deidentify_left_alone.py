"""Regions that a person wants left alone: the list, and what it does to a photograph with a real face."""

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmint.catalogs.dataset.regions import write_regions
from segmint.catalogs.findings import Reason
from segmint.infra.errors import UsageError
from segmint.operators.images import decode_jpeg
from segmint.operators.prepare.deidentify import (
    DeidentifyConfig,
    LeftAloneEntry,
    PlatesConfig,
    build_detectors,
    count_unmatched,
    read_left_alone,
)
from segmint.operators.prepare.ingest import IngestConfig
from segmint.operators.prepare.prepare import PrepareConfig, PreparedImage, RefusedError, prepare_image
from segmint.operators.prepare.release import ReleaseConfig
from tests.support.locations import location_of

FACES = DeidentifyConfig(plates=PlatesConfig(detector="none"), orientations=(0,))
CONFIG = PrepareConfig(IngestConfig(), FACES, ReleaseConfig(short_side=400), crops=None)
DIGEST = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def photograph(astronaut: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(astronaut).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def redacted(photograph: bytes, weights: None) -> PreparedImage:
    return prepare_image(photograph, CONFIG, build_detectors(FACES))


def entry_for(image: bytes, prepared: PreparedImage, **changes: object) -> LeftAloneEntry:
    (region,) = prepared.regions
    value = {"x": region.x, "y": region.y, "w": region.w, "h": region.h, "decided_by": "Ada", **changes}
    return LeftAloneEntry.model_validate({"sha256": hashlib.sha256(image).hexdigest(), **value})


def prepare(image: bytes, *entries: LeftAloneEntry) -> PreparedImage:
    listed = {entry.sha256: tuple(each for each in entries if each.sha256 == entry.sha256) for entry in entries}
    return prepare_image(image, replace(CONFIG, left_alone=listed), build_detectors(FACES))


@pytest.mark.usefixtures("weights")
def test_a_face_that_a_person_decided_on_stays_visible(photograph: bytes, redacted: PreparedImage) -> None:
    entry = entry_for(photograph, redacted, decided_on="2026-11-20")
    left = prepare(photograph, entry, entry_for(photograph, redacted, x=0, y=0))
    (region,), (before,) = left.left_alone, redacted.regions
    assert (region.kind, region.source, region.decided_by, region.decided_on) == ("face", "mtcnn", "Ada", "2026-11-20")
    assert (region.x, region.y, region.w, region.h) == (before.x, before.y, before.w, before.h)
    assert (left.regions, left.redacted_share) == ((), 0.0)
    assert redacted.redacted_share > 0.01
    plain = prepare_image(photograph, CONFIG, ())
    assert left.release == plain.release != redacted.release


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("change", [{"sha256": DIGEST}, {"x": 0, "y": 0}, {"w": 3000, "h": 3000}])
def test_no_other_photograph_and_no_other_place_is_left_alone(
    photograph: bytes, redacted: PreparedImage, change: dict[str, object]
) -> None:
    left = prepare(photograph, entry_for(photograph, redacted, **change))
    assert (left.release, left.regions, left.left_alone) == (redacted.release, redacted.regions, ())


@pytest.mark.usefixtures("weights")
def test_an_image_of_which_too_much_is_redacted_is_refused(photograph: bytes, redacted: PreparedImage) -> None:
    share = redacted.redacted_share
    image = decode_jpeg(redacted.release)
    plain = decode_jpeg(prepare_image(photograph, CONFIG, ()).release)
    changed = (np.abs(image.astype(int) - plain).max(axis=2) > 8).mean()
    assert changed * 0.5 < share < changed * 1.5

    def limited(maximum: float) -> PrepareConfig:
        return replace(CONFIG, deidentify=FACES.model_copy(update={"max_redacted_share": maximum}))

    detectors = build_detectors(FACES)
    assert prepare_image(photograph, limited(share), detectors).release == redacted.release
    with pytest.raises(
        RefusedError, match=r"% of the image is redacted, over deidentify\.max_redacted_share"
    ) as caught:
        prepare_image(photograph, limited(share * 0.99), detectors)
    assert (caught.value.stage, caught.value.reason) == ("deidentify", Reason.MOSTLY_REDACTED)


ROW = {"sha256": DIGEST, "x": 1, "y": 2, "w": 3, "h": 4, "decided_by": "Ada"}


def test_a_list_is_read_by_photograph(tmp_path: Path) -> None:
    file = location_of(tmp_path / "list.jsonl")
    write_regions(file, [ROW, {**ROW, "x": 5, "decided_by": "Bo", "decided_on": "2026-11-20"}])
    (first, second) = read_left_alone(file)[DIGEST]
    assert (first.x, first.h, first.decided_on) == (1, 4, None)
    assert (second.x, second.decided_by, str(second.decided_on)) == (5, "Bo", "2026-11-20")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": DIGEST[1:]}, "row 1, sha256: String should match pattern"),
        ({"x": -1}, "row 1, x: Input should be greater than or equal to 0, got -1"),
        ({"w": 0}, "row 1, w: Input should be greater than or equal to 1"),
        ({"decided_by": ""}, "row 1, decided_by: "),
        ({"decided_on": "soon"}, "row 1, decided_on: "),
    ],
)
def test_a_wrong_list_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    file = location_of(tmp_path / "list.jsonl")
    write_regions(file, [{**ROW, **change}])
    with pytest.raises(UsageError, match=message):
        read_left_alone(file)
    write_regions(file, [{name: ROW[name] for name in ROW if name not in change}])
    if "decided_on" not in change:
        with pytest.raises(UsageError, match=f"row 1, {next(iter(change))}: Field required"):
            read_left_alone(file)


def test_entries_that_hold_for_nothing_are_counted() -> None:
    box = {"x": 10, "y": 10, "w": 20, "h": 20}
    entries = [LeftAloneEntry.model_validate({"sha256": DIGEST, **box, "decided_by": "Ada"})]
    entries += [entries[0].model_copy(update={"x": 50}), entries[0].model_copy(update={"sha256": DIGEST[::-1]})]
    listed = {DIGEST: tuple(entries[:2]), DIGEST[::-1]: (entries[2],)}
    assert count_unmatched(listed, [{"source_sha256": DIGEST, "left_alone": [box]}]) == (1, 1)
    assert count_unmatched(listed, []) == (3, 0)
