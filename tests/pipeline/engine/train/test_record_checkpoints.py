"""Checkpoints: the same bytes for the same state, put once, and none that is damaged is used."""

import os
import resource

import pytest
import torch

from segmint.infra.errors import SegmintError, UnfinishedError
from segmint.pipeline.engine.train.record import (
    DamagedCheckpointError,
    list_checkpoints,
    load_state,
    prune,
    put_checkpoint,
)
from segmint.pipeline.engine.train.trainer import Evaluation
from tests.support.locations import location_of


def state(value: float) -> dict[str, object]:
    weights = {"a.weight": torch.full((3, 4), value), "b.bias": torch.arange(5.0)}
    optimizer = torch.optim.AdamW([torch.nn.Parameter(tensor.clone()) for tensor in weights.values()])
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {"weights": weights, "optimizer": optimizer.state_dict()}


def put(folder, step: int, value: float = 1.0):
    return put_checkpoint(
        location_of(folder),
        state(value),
        run="0123456789ab",
        step=step,
        evaluations=(Evaluation(step=step, images=1, masks=2, one_click=0.5, oracle=0.75),),
        skipped={"empty masks": 1},
        listed=({"reason": "empty masks", "image": 3},),
        numerics=({"device": "AVX2", "threads": 1},),
    )


def test_a_state_is_read_as_it_was_put_and_has_one_name(tmp_path):
    checkpoint = put(tmp_path / "a", 7)
    assert put(tmp_path / "a", 7) == checkpoint == put(tmp_path / "b", 7)
    assert put(tmp_path / "b", 8, 2.0).file != checkpoint.file
    (found,) = list_checkpoints(location_of(tmp_path / "a"))
    assert found == checkpoint
    read = load_state(location_of(tmp_path / "a"), found)
    expected = state(1.0)
    assert torch.equal(read["weights"]["a.weight"], expected["weights"]["a.weight"])
    assert str(read["optimizer"]) == str(expected["optimizer"])


def test_another_run_in_the_same_place_is_noticed(tmp_path):
    put(tmp_path, 7)
    with pytest.raises(
        UnfinishedError, match=r"already contains another checkpoint of step 7, so another run is writing"
    ):
        put(tmp_path, 7, 2.0)
    (found,) = list_checkpoints(location_of(tmp_path))
    assert load_state(location_of(tmp_path), found)["weights"]["a.weight"][0, 0] == 1


def test_damaged_checkpoints_are_refused(tmp_path):
    folder = location_of(tmp_path)
    first, second = put(tmp_path, 1), put(tmp_path, 2, 2.0)
    (tmp_path / first.file).write_bytes((tmp_path / second.file).read_bytes())
    with pytest.raises(DamagedCheckpointError, match="doesn't match the SHA-256"):
        load_state(folder, first)
    (tmp_path / second.file).unlink()
    with pytest.raises(DamagedCheckpointError, match="is gone"):
        load_state(folder, second)
    (tmp_path / "step-000002.json").write_text('{"step": 2}')
    (tmp_path / "step-000003.json").write_text("{")
    assert list_checkpoints(folder) == [first]


def test_other_steps_and_states_without_a_name_are_deleted(tmp_path):
    checkpoints = [put(tmp_path, step, float(step)) for step in (1, 2, 3)]
    (tmp_path / "step-000002-0123456789ab.pt").write_bytes(b"of a run that was killed")
    (tmp_path / "mine.txt").write_text("stays")
    (tmp_path / "step-000004-0123456789ab.pt").write_bytes(b"another process is about to put its JSON")
    old = tmp_path / "step-000005-0123456789ab.pt"
    old.write_bytes(b"of a run that was killed long ago")
    os.utime(old, (1e9, 1e9))
    prune(location_of(tmp_path), {2})
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted(
        [
            checkpoints[0].file,
            checkpoints[2].file,
            "step-000001.json",
            "step-000003.json",
            "step-000004-0123456789ab.pt",
            "mine.txt",
        ]
    )


def test_a_full_disk_is_a_clear_error_and_leaves_no_checkpoint(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with pytest.raises(SegmintError, match=r"can't write the checkpoint.*Free space"):
            put(tmp_path, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list_checkpoints(location_of(tmp_path)) == []
