"""A folder of masks knows the settings that it was begun with."""

import json
import re

import pytest

from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.operators.segment.mask_config import MasksConfig
from segmint.pipeline.masks.images import Photograph, Photographs
from segmint.pipeline.masks.options import MasksOptions
from segmint.pipeline.masks.outputs import RECORD, digest_of, open_folder, plan_outputs

SETTINGS = MasksOptions().settings("1" * 64)


def reservation(folder, settings=SETTINGS, overwrite=False):
    outputs = plan_outputs(Photographs((Photograph("a/x.jpg", "x.jpg"),), is_one=False), str(folder))
    there = [str(path) for path in folder.glob("*")]
    open_folder(Location(Storage(), str(folder)), outputs, there, settings, overwrite=overwrite)


def test_the_first_run_records_settings_and_the_next_goes_on(tmp_path):
    folder = tmp_path / "new" / "out"
    reservation(folder)
    recorded = json.loads((folder / RECORD).read_text())
    assert recorded == {"sha256": digest_of(SETTINGS), "settings": SETTINGS}
    (folder / "x.json").write_text("{}")
    reservation(folder)
    assert json.loads((folder / RECORD).read_text()) == recorded


def test_other_settings_and_weights_are_refused_by_name_unless_overwritten(tmp_path):
    reservation(tmp_path)
    before = (tmp_path / RECORD).read_bytes()
    other = MasksOptions(MasksConfig(points_per_side=8)).settings("2" * 64)
    with pytest.raises(UsageError) as refused:
        reservation(tmp_path, other)
    assert re.search(r"masks\.points_per_side: 32 before, 8 now", str(refused.value))
    assert re.search(r'weights_sha256: "1+" before, "2+" now', str(refused.value))
    assert str(refused.value).count(" before, ") == 2
    assert "--overwrite" in str(refused.value)
    assert (tmp_path / RECORD).read_bytes() == before

    reservation(tmp_path, other, overwrite=True)
    reservation(tmp_path, other)
    with pytest.raises(UsageError, match="points_per_side: 8 before, 32 now"):
        reservation(tmp_path)


def test_masks_of_unknown_settings_and_a_broken_record_are_refused(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(UsageError, match="so their settings are unknown"):
        reservation(tmp_path)
    assert not (tmp_path / RECORD).exists()
    (tmp_path / RECORD).write_text("{}")
    with pytest.raises(UsageError, match="is damaged or wasn't written by this command"):
        reservation(tmp_path)
    reservation(tmp_path, overwrite=True)
    reservation(tmp_path)
