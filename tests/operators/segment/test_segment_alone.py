"""A suspect alone in a worker: the control image passes, and a fault is not taken for lack of memory."""

import os
import signal
import time
from typing import Any

import pytest
import ray

from segmint.infra.assets import resolve, sha256_of
from segmint.infra.device import Compute
from segmint.infra.ray_session import Cluster
from segmint.model.automatic.settings import MaskSettings
from segmint.operators.images import decode_jpeg
from segmint.operators.rows import PREPARED, PROMPTED, is_live, to_table
from segmint.operators.segment.numerics import observe_numerics
from segmint.operators.segment.segment import SegmentSettings
from segmint.operators.segment.segment_alone import SegmentAlone, control_image, control_table

TIMEOUT_S = 300.0


def settings() -> SegmentSettings:
    masks = MaskSettings.sa1b(points_per_side=1, crop_n_layers=0, points_per_chunk=1)
    return SegmentSettings(
        masks, "mobile_sam", observe_numerics(Compute("cpu", "fp32", 1), 1, 1, sha256_of(resolve("mobile_sam")))
    )


@pytest.mark.usefixtures("weights")
def test_the_control_row_is_a_prepared_row_that_every_worker_can_segment() -> None:
    table = control_table()
    assert table.schema == PROMPTED
    (row,) = table.to_pylist()
    assert is_live(row)
    assert decode_jpeg(row["release"]).shape == control_image().shape == (192, 256, 3)
    alone = SegmentAlone(settings(), TIMEOUT_S)
    assert alone.has_memory_for(table)
    with pytest.raises(OSError, match="cannot identify"):
        alone.has_memory_for(to_table([{"release": b"no JPEG"}], PREPARED))


class UnloadedTrial(SegmentAlone):
    """A trial without a model, which gets the signals that stop processes."""

    def __init__(self) -> None:
        pass

    def stop(self) -> str:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(os.getpid(), number)
        time.sleep(0.2)
        return self.node()


@pytest.mark.ray
def test_a_trial_outlives_the_signals_that_stop_processes(local_ray: Cluster) -> None:
    actor: Any = ray.remote(num_cpus=0)(UnloadedTrial).remote()
    node = ray.get(actor.node.remote(), timeout=60)
    assert ray.get(actor.stop.remote(), timeout=60) == node
