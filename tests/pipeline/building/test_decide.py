"""An opt-out of one copy refuses all copies: whatever names them, and whatever was refused or read before."""

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segmint.catalogs.licenses import LicensePolicy
from segmint.catalogs.source.files import NormalizedRows
from segmint.catalogs.source.normalize import normalize
from segmint.infra.storage.storage import Storage
from segmint.operators.curate import CurateConfig, CurateTask, InspectImages, InspectionConfig, part_name
from segmint.operators.prepare.ingest import IngestConfig
from segmint.pipeline.building.curate import InspectionRun
from segmint.pipeline.building.decide import decide, new_attributions, read_features
from tests.support.builds import write_catalog
from tests.support.locations import location_of
from tests.support.signed_images import data_mining


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, coffee: np.ndarray) -> Path:
    """A picture, a larger copy, one whose metadata forbids training, and another picture."""
    folder = tmp_path_factory.mktemp("photos")
    picture = Image.fromarray(coffee)
    picture.save(folder / "one.jpg")
    picture.resize((900, 600)).save(folder / "large.jpg")
    picture.save(folder / "reserved.jpg", quality=70, xmp=data_mining("DMI-PROHIBITED-AIMLTRAINING"))
    picture.rotate(180).save(folder / "other.jpg")
    (folder / "cut.jpg").write_bytes((folder / "reserved.jpg").read_bytes()[:-1000])
    return folder


def decided(folder: Path, tmp_path: Path, *rows: dict[str, Any]) -> dict[int, tuple[str, str]]:
    catalog = write_catalog(folder / "catalog.jsonl", [{"license": "CC0-1.0", **row} for row in rows])
    normalized = normalize(location_of(catalog), tmp_path / "catalog.parquet")
    parts = location_of(tmp_path / "parts")
    look = InspectionConfig(IngestConfig(), mirror=False, opt_outs=True, scorers=())
    looker = InspectImages(CurateTask(look, Storage(), str(catalog), parts))
    with NormalizedRows(location_of(normalized.path)) as source:
        (done,) = looker(source.read(0, len(rows))).to_pylist()
        looker.close()
        assert done["fault"] is None
        features = read_features(parts, len(rows), CurateConfig())
        policy = LicensePolicy(frozenset({"CC0-1.0"}), False, date(2026, 1, 1))
        decision = decide(source, normalized.path, parts, features, CurateConfig(), policy)
    return {ordinal: (str(reason), detail) for ordinal, (reason, detail) in decision.refused.items()}


SETTLED = {"refused_reason": "duplicate_image", "refused_detail": "it looks like row 1, which is kept"}


@pytest.mark.usefixtures("processes")
def test_a_settled_copy_that_opts_out_refuses_the_kept_one(folder: Path, tmp_path: Path) -> None:
    rows = {"uri": "large.jpg"}, {"uri": "one.jpg", "opt_out": True, **SETTLED}, {"uri": "other.jpg"}
    assert decided(folder, tmp_path, *rows) == {0: ("opted_out", "it looks like row 2, which is opted out")}


@pytest.mark.usefixtures("processes")
def test_so_does_one_whose_metadata_forbids_training(folder: Path, tmp_path: Path) -> None:
    rows = {"uri": "large.jpg"}, {"uri": "reserved.jpg", **SETTLED}
    assert decided(folder, tmp_path, *rows) == {0: ("opted_out", "it looks like row 2, which is opted out")}


@pytest.mark.usefixtures("processes")
def test_a_settled_copy_that_is_read_for_its_opt_out_alone_is_never_kept(folder: Path, tmp_path: Path) -> None:
    assert decided(folder, tmp_path, {"uri": "one.jpg"}, {"uri": "large.jpg", **SETTLED}) == {}


@pytest.mark.usefixtures("processes")
def test_an_opt_out_goes_along_an_image_id(folder: Path, tmp_path: Path) -> None:
    rows = [{"uri": name, "image_id": "x"} for name in ("other.jpg", "one.jpg", "nowhere.jpg")]
    found = decided(folder, tmp_path, rows[0], {**rows[1], "opt_out": True}, rows[2], {"uri": "large.jpg"})
    same = ("opted_out", "it has the image_id of row 2, which is opted out")
    assert found[0] == found[2] == same
    assert found[3] == ("opted_out", "it looks like row 2, which is opted out")


@pytest.mark.usefixtures("processes")
def test_so_does_one_in_the_metadata_of_a_row_with_an_earlier_image_id(folder: Path, tmp_path: Path) -> None:
    rows = {"uri": "other.jpg", "image_id": "x"}, {"uri": "reserved.jpg", "image_id": "x"}, {"uri": "one.jpg"}
    found = decided(folder, tmp_path, *rows)
    assert found[0] == ("opted_out", "it has the image_id of row 2, which is opted out")
    assert found[1][1].startswith("the image's metadata forbids training with it: plus:DataMining is DMI-PROHIBITED")
    assert found[2] == ("opted_out", "it looks like row 2, which is opted out")


@pytest.mark.usefixtures("processes")
def test_an_opt_out_of_a_picture_that_cannot_be_decoded_counts(folder: Path, tmp_path: Path) -> None:
    found = decided(folder, tmp_path, {"uri": "cut.jpg", "image_id": "x"}, {"uri": "other.jpg", "image_id": "x"})
    assert found[0][1].startswith("the image's metadata forbids training with it: plus:DataMining is DMI-PROHIBITED")
    assert found[1] == ("opted_out", "it has the image_id of row 1, which is opted out")


def test_credits_without_room_are_counted(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"license": "CC-BY-4.0", "uri": f"{n}.jpg", "attribution": who} for n, who in enumerate(("A", "Bo", "Cy"))]
    rows += [{**rows[2], "uri": "3.jpg"}, {**rows[2], "uri": "4.jpg", "attribution": "Di", "license": "CC0-1.0"}]
    catalog = normalize(location_of(write_catalog(tmp_path / "c.jsonl", rows)), tmp_path / "catalog.parquet")
    copies = {0: [1, 2, 3, 4]}
    with NormalizedRows(location_of(catalog.path)) as source:
        assert new_attributions(source, copies) == {0: "A; Bo; Cy"}
        assert new_attributions(source, {2: [3, 4]}) == {}
        monkeypatch.setattr("segmint.pipeline.building.decide.MOST_CREDITED", 3)
        more = "and 1 more, in the catalog's rows that are refused as copies of row 1"
        assert new_attributions(source, copies) == {0: f"A; Bo; {more}"}


@pytest.mark.usefixtures("processes")
def test_a_part_of_one_run_is_read_by_it_where_there_is_no_other(folder: Path, tmp_path: Path) -> None:
    parts = location_of(tmp_path / "parts")
    decided(folder, tmp_path, {"uri": "one.jpg"})
    (parts / part_name(0, suspect=True)).put((parts / part_name(0)).read())
    (parts / part_name(0)).delete()
    assert read_features(parts, 1, CurateConfig()).pixels.tolist() == [600 * 400]
    assert InspectionRun().missing(parts, 1) == [0]
    assert InspectionRun(suspects={0}).missing(parts, 1) == []


@pytest.mark.usefixtures("processes")
def test_an_unread_row_protects_the_bytes_that_the_catalog_gives(folder: Path, tmp_path: Path) -> None:
    digest = location_of(folder / "one.jpg").sha256()
    gone = {"uri": "nowhere.jpg", "sha256": digest, "opt_out": True}
    found = decided(folder, tmp_path, {"uri": "one.jpg"}, gone, {"uri": "large.jpg"}, {"uri": "other.jpg"})
    assert sorted(found) == [0, 1, 2]
    assert found[0] == ("opted_out", "it has the bytes of row 2, which is opted out")
    assert found[2] == ("opted_out", "it looks like row 1, which is opted out")


@pytest.mark.usefixtures("processes")
def test_an_unread_row_protects_its_uri(folder: Path, tmp_path: Path) -> None:
    rows = [{"uri": "one.jpg", "image_id": name} for name in "ab"]
    found = decided(folder, tmp_path, rows[0], {**rows[1], "sha256": "0" * 64, "opt_out": True})
    assert found[0] == ("opted_out", "it has the uri of row 2, which is opted out")


@pytest.mark.usefixtures("processes")
def test_an_unread_row_of_the_bytes_of_a_refused_copy_is_refused(folder: Path, tmp_path: Path) -> None:
    twin = {"uri": "nowhere.jpg", "sha256": location_of(folder / "large.jpg").sha256()}
    found = decided(folder, tmp_path, {"uri": "reserved.jpg"}, {"uri": "large.jpg"}, twin)
    assert found[1] == ("opted_out", "it looks like row 1, which is opted out")
    assert found[2] == ("opted_out", "it has the bytes of row 2, which is opted out")
