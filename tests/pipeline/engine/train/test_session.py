"""What two processes that train the same run leave of one another's checkpoints."""

from pathlib import Path
from typing import Any

import torch

from segmint.catalogs.lineage import TrainingRound
from segmint.infra.device import Compute
from segmint.pipeline.engine.train.checkpoints import CHECKPOINTS, list_checkpoints
from segmint.pipeline.engine.train.evaluation import Evaluation
from segmint.pipeline.engine.train.record import TrainingRunRecord
from segmint.pipeline.engine.train.session import TrainingSession
from segmint.pipeline.engine.train.settings import DatasetKeys, TrainConfig
from tests.support.locations import location_of


class StubTrainer:
    """As much of a trainer as a checkpoint holds."""

    def __init__(self, value: float) -> None:
        self._value = value

    def state(self) -> dict[str, Any]:
        return {"weights": {"a": torch.tensor([self._value])}, "optimizer": {}}


def test_a_process_that_is_behind_leaves_later_checkpoints_alone(tmp_path: Path) -> None:
    config = TrainConfig(datasets=(DatasetKeys(uri=str(tmp_path / "d")),), output=str(tmp_path / "o"))
    parent = TrainingRound(weights="0" * 64, name="mobile_sam")
    run = TrainingRunRecord(code_version="1", config={}, parent=parent, lineage=(parent,))
    output, compute = location_of(tmp_path / "o"), Compute("cpu", "fp32", 1)
    session = TrainingSession(config, run, (), output, output / "cache", tmp_path, "", print, compute=compute)

    def save(step: int, *one_clicks: float) -> list[int]:
        measured = [
            Evaluation(step=50 * place, images=1, masks=1, one_click=value, oracle=value)
            for place, value in enumerate(one_clicks)
        ]
        session._save(StubTrainer(step), step, measured)  # type: ignore[arg-type]
        return [each.step for each in list_checkpoints(output / CHECKPOINTS)]

    assert save(50, 0.5, 0.6) == [50]
    assert save(150, 0.5, 0.6, 0.55, 0.9) == [50, 150]
    assert save(100, 0.5, 0.6, 0.55) == [50, 100, 150]
    assert save(200, 0.5, 0.6, 0.55, 0.9, 0.1) == [150, 200]
