"""A build of broken, odd and hostile images finishes; each is in the dataset, or refused for the right reason.

Every stage is the real one except `segment`, which only decodes: behind `prepare` each image is a JPEG.
"""

import os
from pathlib import Path

import duckdb
import pytest

from tests.support.bad_images import POISON, ExpectedVerdict, samples, write_bad_catalog
from tests.support.builds import NO_DETECTORS, ROOT, segmint, write_config

pytestmark = pytest.mark.ray

ODD = {
    *("plain.jpg", "portrait.jpg", "cmyk.jpg", "rotated_gps.jpg", "sixteen_bit.tif", "palette_alpha.png"),
    *("one_bit.png", "still.gif", "a name, spaces & Ünïcödé 写真 %41.jpg", "right_hash.jpg"),
}
"""Images that are accepted here. Tests of `prepare` have them all."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[ExpectedVerdict], str]:
    """The dataset, the expected result of each row, and the command's output."""
    folder = tmp_path_factory.mktemp("bad")
    chosen = [sample for sample in samples() if sample.reason is not None or sample.name in ODD]
    expected = write_bad_catalog(folder / "photos", chosen)
    config = write_config(
        folder / "build.yaml",
        folder / "photos" / "catalog.jsonl",
        folder / "dataset",
        images_per_shard=25,
        deidentify=NO_DETECTORS,
        rows_per_block=16,
    )
    path = os.pathsep.join(filter(None, [str(POISON), str(ROOT), os.environ.get("PYTHONPATH")]))
    printed = segmint("build", config, timeout=600, module="tests.support.two_masks", PYTHONPATH=path)
    return folder / "dataset", expected, printed


def test_each_row_is_in_the_dataset_or_refused_for_the_right_reason(
    built: tuple[Path, list[ExpectedVerdict], str],
) -> None:
    dataset, expected, _ = built
    accepted = duckdb.sql(f"select ordinal, image_id from '{dataset}/images/*.parquet'").fetchall()
    refused = duckdb.sql(f"select ordinal, image_id, stage, reason from '{dataset}/rejects/*.parquet'").fetchall()
    fates = {ordinal: (image_id, None, None) for ordinal, image_id in accepted}
    fates.update({ordinal: (image_id, stage, reason) for ordinal, image_id, stage, reason in refused})
    assert len(accepted) + len(refused) == len(fates) == len(expected)
    wanted = {
        ordinal: (row.image_id, None if row.reason is None else row.stage, row.reason and str(row.reason))
        for ordinal, row in enumerate(expected)
    }
    assert fates == wanted


def test_at_least_twenty_kinds_are_refused_or_repaired(built: tuple[Path, list[ExpectedVerdict], str]) -> None:
    _, expected, printed = built
    assert len(expected) >= 60
    reasons = {str(row.reason) for row in expected if row.reason is not None}
    assert len(reasons) >= 10
    assert all(reason in printed for reason in reasons)
    assert sum(row.reason is None for row in expected) >= 10


def test_details_hold_no_image_bytes(built: tuple[Path, list[ExpectedVerdict], str]) -> None:
    dataset, _, _ = built
    details = duckdb.sql(f"select detail from '{dataset}/rejects/*.parquet'").fetchall()
    assert all(0 < len(detail) < 500 and detail.isprintable() for (detail,) in details)
