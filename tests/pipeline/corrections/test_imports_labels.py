"""Labels that go out in each format and come back by an import."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from segmint.catalogs.dataset.reader import Dataset
from segmint.pipeline.corrections.import_merge import ImportMode
from segmint.pipeline.corrections.imports import ImportRequest, detect_format, import_masks
from segmint.pipeline.export.export import ExportOptions, export_dataset
from segmint.pipeline.export.formats import MAIN_FILES, Format
from segmint.pipeline.quality.audit.integrity import audit_integrity
from tests.support.described_rows import accepted_row, described, rejected_row
from tests.support.imported import masks_of
from tests.support.label_studio import answered
from tests.support.locations import location_of
from tests.support.mask_labels import MODEL, labels_of, named
from tests.support.protocol import DatasetPath, begin, two_shards, write


@pytest.fixture
def place() -> Iterator[DatasetPath]:
    """Two shards of three rows whose masks have no labels."""
    with two_shards() as place:
        yield place


@pytest.fixture
def labeled(tmp_path: Path) -> DatasetPath:
    """The same dataset with labels."""
    labeled = DatasetPath(str(tmp_path / "labeled"))
    begin(labeled)
    for first in (0, 3):
        rows = [accepted_row(first), accepted_row(first + 1), rejected_row(first + 2)]
        for row in rows[:2]:
            named(row["masks"], row["ordinal"])
        write(labeled, first // 3, rows=described(rows))
    return labeled


def submit(tasks: Path) -> None:
    """Let a person accept the tasks of an export in Label Studio."""
    tasks.write_text(json.dumps(answered(json.loads(tasks.read_text()))))


@pytest.mark.parametrize(
    "format", [Format.COCO, Format.LVIS, Format.CVAT, Format.GEOJSON, Format.HF, Format.LABEL_STUDIO]
)
def test_every_label_survives(format: Format, labeled: DatasetPath, place: DatasetPath, tmp_path: Path) -> None:
    out = location_of(tmp_path / "out")
    export_dataset(labeled.location, ExportOptions(format, with_images=False), out)
    file = out if format in (Format.GEOJSON, Format.HF) else out / MAIN_FILES[format]
    if format is Format.LABEL_STUDIO:
        submit(tmp_path / "out" / MAIN_FILES[format])
    request = ImportRequest(file, detect_format(file), ImportMode.REPLACE)
    assert import_masks(place.location, request).listed.masks["same"] == 8
    expected = labels_of(Dataset.open(labeled.location))
    assert labels_of(Dataset.open(place.location)) == expected
    assert len(set(expected.values()) - {None}) == 5
    for mask in masks_of(place, 0):
        assert (mask["label_score"], mask["label_source"]) == (None, mask["label"] and "import")
    assert list(audit_integrity(place.location).findings) == []
    # The dataset's own export changes nothing, but a person who submitted its tasks has confirmed the model's labels.
    before = masks_of(labeled, 3)
    sources = {mask["label_source"] for mask in before}
    assert import_masks(labeled.location, request).listed.images == (4 if format is Format.LABEL_STUDIO else 0)
    if format is Format.LABEL_STUDIO:
        assert sources - {mask["label_source"] for mask in masks_of(labeled, 3)} == {MODEL}
    else:
        assert masks_of(labeled, 3) == before
