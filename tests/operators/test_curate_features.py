"""Parts of features: the same bytes whatever wrote them, none for a fault, and rows that cannot be read are kept."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from segmint.catalogs.parquet import STAGED
from segmint.infra.storage.errors import StorageFaultError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.operators.curate import FEATURES, CurateTask, InspectImages, InspectionConfig, is_skipped, part_name
from segmint.operators.prepare.ingest import IngestConfig
from tests.support.locations import location_of
from tests.support.signed_images import data_mining, image


def rows(*columns: dict[str, Any], first: int = 0) -> pa.Table:
    usual = {**dict.fromkeys(STAGED.names), "image_id": "x", "license": "CC0-1.0"}
    filled = [{**usual, "ordinal": first + n, "id": first + n + 1, **row} for n, row in enumerate(columns)]
    return pa.Table.from_pylist(filled, schema=STAGED)


@pytest.fixture(scope="module")
def actor(processes: None, tmp_path_factory: pytest.TempPathFactory, coffee: np.ndarray) -> Iterator[InspectImages]:
    folder = tmp_path_factory.mktemp("catalog")
    Image.fromarray(coffee).save(folder / "coffee.jpg")
    (folder / "junk.jpg").write_bytes(b"junk")
    (folder / "cut.jpg").write_bytes(image("JPEG", data_mining("DMI-PROHIBITED"))[:-1000])
    config = InspectionConfig(IngestConfig(), mirror=True, opt_outs=True, scorers=())
    looker = InspectImages(CurateTask(config, Storage(), str(folder / "c.parquet"), location_of(folder / "parts")))
    yield looker
    looker.close()


def test_a_part_holds_what_was_seen_of_each_row(actor: InspectImages, coffee: np.ndarray) -> None:
    table = rows(
        {"uri": "coffee.jpg"},
        {"uri": "junk.jpg"},
        {"uri": "nowhere.jpg"},
        {"uri": "coffee.jpg", "refused_reason": "unfit"},
        {"uri": "coffee.jpg", "duplicate_of": 0},
        {"uri": "coffee.jpg", "refused_reason": "opted_out"},
        {"uri": "coffee.jpg", "sha256": "0" * 64},
        {"uri": "coffee.jpg", "refused_reason": "duplicate_image"},
        {"uri": "coffee.jpg", "duplicate_of": 0, "opt_out": True},
        {"uri": "cut.jpg"},
    )
    (done,) = actor(table).to_pylist()
    file = actor.task.folder / part_name(0)
    assert (done["first"], done["fault"]) == (0, None)
    data = file.read()
    table_back = pq.read_table(pa.BufferReader(data))
    assert table_back.schema.equals(FEATURES)
    found = table_back.to_pylist()
    unread = [None, "not_an_image", "not_found", None, None, None, "hash_mismatch", None, None, "truncated"]
    assert [row["unread"] for row in found] == unread
    assert (found[0]["width"], found[0]["height"], len(found[0]["thumbnail"])) == (600, 400, 64 * 64)
    assert found[0]["sha256"] == found[5]["sha256"]
    assert [row["opt_out"] is not None for row in found] == [False] * 9 + [True]
    assert all(found[0]["hashes"])

    actor(table)
    assert file.read() == data, "the same part again is no fault"


def test_what_an_earlier_curation_refused_is_read_only_for_opt_outs() -> None:
    for row in ({"duplicate_of": None, "refused_reason": "unfit"}, {"duplicate_of": 3, "refused_reason": None}):
        assert (is_skipped(row, opt_outs=True), is_skipped(row, opt_outs=False)) == (False, True)
        assert not is_skipped({**row, "opt_out": True}, opt_outs=False)


def test_an_image_that_the_child_dies_on_is_a_fault_and_at_the_second_time_one_of_this_run(
    actor: InspectImages, tmp_path: Path
) -> None:
    reserved = PngInfo()
    reserved.add_itxt("XML:com.adobe.xmp", data_mining("DMI-PROHIBITED").decode())
    Image.new("RGB", (4000, 3000)).save(tmp_path / "large.png", pnginfo=reserved)
    (tmp_path / "junk.jpg").write_bytes(b"junk")
    parts = location_of(tmp_path / "parts")
    task = dataclasses.replace(actor.task, catalog_uri=str(tmp_path / "c.parquet"), folder=parts)
    table = rows({"uri": "large.png"}, {"uri": "junk.jpg"}, first=256)
    names = []
    for again in (False, True):
        starved = InspectImages(
            dataclasses.replace(task, memory_limit=16 << 20, again=frozenset({256} if again else {0}))
        )
        (done,) = starved(table).to_pylist()
        starved.close()
        assert (done["fault"] is None, done["suspect"]) == (again, True)
        assert again or "row 256 (image_id 'x', uri 'large.png'): curate: SuspectError: out_of_memory" in done["fault"]
        names.append([entry.name for entry in parts.list()])
    assert names == [[], [part_name(256, suspect=True)]]
    found = pq.read_table(pa.BufferReader((parts / part_name(256, suspect=True)).read()))
    assert found["unread"].to_pylist() == ["out_of_memory", "not_an_image"]
    assert [sentence is not None for sentence in found["opt_out"].to_pylist()] == [True, False]


def test_a_fault_writes_no_part_and_another_part_of_that_name_is_one(
    actor: InspectImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(row: Any) -> bytes:
        raise StorageFaultError("the store is on fire")

    with monkeypatch.context() as patch:
        patch.setattr(actor.reader, "read", fault)
        (done,) = actor(rows({"uri": "coffee.jpg"}, first=512)).to_pylist()
    assert done["fault"].startswith("row 512 (image_id 'x', uri 'coffee.jpg'): curate: StorageFaultError: the store")
    part: Location = actor.task.folder / part_name(512)
    assert not part.exists()
    part.put_if_absent(b"other")
    (done,) = actor(rows({"uri": "coffee.jpg"}, first=512)).to_pylist()
    assert done["fault"] == "the part exists with other bytes: another machine decodes an image to other pixels"
