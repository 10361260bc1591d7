"""Prompts of the catalog reach stages in pixels of the released image, and a frame that doesn't fit is a verdict."""

import io
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from skimage import data

from segmint.catalogs.findings import Reason, RejectedError
from segmint.catalogs.licenses import LicensePolicy
from segmint.catalogs.parquet import NORMALIZED, normalized_schema
from segmint.infra.storage.storage import Storage
from segmint.operators.images import released_prompts
from segmint.operators.prepare.deidentify import DeidentifyConfig, FacesConfig, PlatesConfig
from segmint.operators.prepare.ingest_config import IngestConfig
from segmint.operators.prepare.prepare import Prepare, PrepareConfig
from segmint.operators.prepare.release import ReleaseConfig
from segmint.operators.rows import PREPARED, PROMPTED, carried

NOTHING = DeidentifyConfig(faces=FacesConfig(detector="none"), plates=PlatesConfig(detector="none"))
POLICY = LicensePolicy(allow=frozenset({"CC0-1.0"}), require_redistributable=False, policy_date=date(2026, 1, 1))


def prompt(**changes: Any) -> dict[str, Any]:
    return {"box": None, "points": None, "point_labels": None, "label": None, "score": None, **changes}


def frame(width: float, height: float, *prompts: dict[str, Any]) -> dict[str, Any]:
    return {"width": width, "height": height, "prompts": list(prompts)}


BOX = prompt(box=[60.0, 40.0, 300.0, 200.0], label="cat", score=0.5)
POINTS = prompt(points=[[0.0, 0.0], [600.0, 400.0]], point_labels=[1, 0])


def test_prompts_are_scaled_and_keep_everything_else() -> None:
    (box, points) = released_prompts(frame(600, 400, BOX, POINTS), (600, 400), (300, 200))
    assert box == {**BOX, "box": [30.0, 20.0, 150.0, 100.0]}
    assert points == {**POINTS, "points": [[0.0, 0.0], [300.0, 200.0]]}
    assert released_prompts(frame(600, 400, BOX, POINTS), (600, 400), (600, 400)) == [BOX, POINTS]
    copy = frame(60, 40, prompt(box=[6.0, 4.0, 30.0, 20.0]))
    assert released_prompts(copy, (600, 400), (600, 400))[0]["box"] == pytest.approx(BOX["box"])
    shares = frame(1, 1, prompt(box=[0.1, 0.1, 0.5, 0.5]))
    assert released_prompts(shares, (600, 400), (300, 200))[0]["box"] == pytest.approx([30, 20, 150, 100])
    assert released_prompts(frame(600, 400), (600, 400), (300, 200)) == []
    phrase = prompt(label="red car")
    assert released_prompts(frame(1, 1, phrase, phrase), (600, 400), (300, 200)) == [phrase, phrase]


def test_prompts_slightly_outside_are_cut_at_the_border() -> None:
    box = prompt(box=[-5.0, 0.0, 610.0, 403.5], points=[[-6.0, 404.0]], point_labels=[1])
    (found,) = released_prompts(frame(600, 400, box), (600, 400), (300, 200))
    assert found == {**box, "box": [0.0, 0.0, 300.0, 200.0], "points": [[0.0, 200.0]]}


@pytest.mark.parametrize(
    ("entry", "source", "said"),
    [
        (frame(400, 600, BOX), (600, 400), "frame is 400 x 600, and the photograph 600 x 400: the sides are swapped"),
        (frame(1001, 1000), (1000, 1001), "the sides are swapped"),
        (frame(600, 407), (600, 400), "the shapes differ by over 1%"),
        (frame(600, 393), (600, 400), "the shapes differ by over 1%"),
        (
            frame(600, 400, POINTS, prompt(box=[0.0, 0.0, 607.0, 9.0])),
            (600, 400),
            "prompts.1 has [[0.0, 0.0], [607",
        ),
        (
            frame(600, 400, prompt(box=[0.0, -4.5, 6.0, 9.0])),
            (600, 400),
            "-4.5], [6.0, 4.5]]; expected at most",
        ),
        (frame(600, 400, prompt(box=[601.0, 0.0, 4.0, 9.0])), (600, 400), "has [[601.0, 0.0], [605.0, 9.0]]"),
        (
            frame(600, 400, prompt(points=[[1.0, 405.0]], point_labels=[1])),
            (600, 400),
            "prompts.0 has [[1.0, 405",
        ),
        (frame(1, 1, prompt(box=[0.5, 0.5, 40.0, 0.1])), (600, 400), "[40.5, 0.6]]; expected at most [1, 1]"),
    ],
)
def test_a_frame_that_does_not_fit_is_a_verdict(entry: dict[str, Any], source: tuple[int, int], said: str) -> None:
    with pytest.raises(RejectedError) as caught:
        released_prompts(entry, source, (300, 200))
    assert caught.value.reason == Reason.PROMPTS_MISFIT
    assert said in caught.value.detail


@pytest.mark.parametrize("size", [(600, 404), (600, 397), (601, 400), (60, 40), (75, 50)])
def test_a_frame_of_nearly_the_same_shape_fits(size: tuple[int, int]) -> None:
    assert released_prompts(frame(*size), (600, 400), (300, 200)) == []


@pytest.mark.usefixtures("processes")
def test_a_build_prepares_prompts_for_the_upright_photograph(tmp_path: Path) -> None:
    """The stored file lies on its side, so boxes in its frame are rejected."""
    photograph = Image.fromarray(data.chelsea())  # 451 x 300
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    stored = io.BytesIO()
    photograph.save(stored, "JPEG", exif=exif)
    (tmp_path / "c.jpg").write_bytes(stored.getvalue())
    upright = frame(300, 451, prompt(box=[30.0, 45.1, 150.0, 225.5], label="cat"))
    sideways = frame(451, 300, prompt(box=[45.1, 30.0, 225.5, 150.0], label="cat"))
    rows = []
    for ordinal, prompts in enumerate((upright, sideways, None)):
        base = {"ordinal": ordinal, "id": ordinal + 1, "image_id": str(ordinal), "license": "CC0-1.0"}
        rows.append({**base, "uri": str(tmp_path / "c.jpg"), "prompts": prompts})
    rows.append({**rows[0], "ordinal": 3, "id": 4, "license": None})
    shares = frame(1, 1, prompt(box=[0.1, 0.1, 0.5, 0.5], label="\u200bcat\n\0"))
    rows.append({**rows[0], "ordinal": 4, "id": 5, "image_id": "4", "prompts": shares})
    table = pa.Table.from_pylist(rows, normalized_schema(["prompts"]))
    config = PrepareConfig(IngestConfig(timeout_s=60), NOTHING, ReleaseConfig(short_side=150), None)
    stage = Prepare(config, Storage(), POLICY, "/catalog/catalog.jsonl")
    try:
        prepared = stage(table)
        bare = stage(table.select(NORMALIZED.names))
    finally:
        stage.close()

    assert prepared.schema.equals(PROMPTED)
    first, *others, last = prepared.to_pylist()
    assert (first["width"], first["height"]) == (150, 226)
    (found,) = first["prompts"]
    assert found["box"] == pytest.approx([15, 22.6, 75, 113])
    assert found["label"] == "cat"
    (found,) = last["prompts"]
    assert found["box"] == pytest.approx([15, 22.6, 75, 113]), "shares are those of the upright photograph"
    assert found["label"] == "\u200bcat\n\0"
    assert [(row["stage"], row["reason"]) for row in others] == [
        ("catalog", "prompts_misfit"),
        (None, None),
        ("catalog", "license_missing"),
    ]
    assert others[0]["detail"] == "the prompts' frame is 451 x 300, and the photograph 300 x 451: the sides are swapped"
    assert [row["prompts"] for row in others] == [None, None, None]
    assert np.array_equal(bare.column("release_sha256")[0], prepared.column("release_sha256")[0])
    assert bare.schema.equals(PREPARED)
    assert carried(prepared, bare, "prompts").column("prompts").equals(prepared.column("prompts"))
    assert carried(prepared, bare).schema.equals(PREPARED)
