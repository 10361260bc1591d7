"""The internal iterator over the blocks of an execution: each block once, in order, with its number of rows."""

import pyarrow as pa
import pytest
import ray.data

from segmint.infra.ray_blocks import iter_blocks
from segmint.infra.ray_session import Cluster

pytestmark = pytest.mark.ray


def test_blocks_come_in_order_with_their_numbers_of_rows(local_ray: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.data.DataContext.get_current().execution_options, "preserve_order", True)
    rows = ray.data.from_arrow(pa.table({"ordinal": list(range(11))})).repartition(target_num_rows_per_block=3)
    blocks = rows.map_batches(lambda table: table, batch_size=None, batch_format="pyarrow", num_cpus=0.5)
    counts, ordinals = [], []
    for reference, count in iter_blocks(blocks):
        counts.append(count)
        ordinals.append(ray.get(reference).column("ordinal").to_pylist())
    assert counts == [len(part) for part in ordinals]
    assert [each for part in ordinals for each in part] == list(range(11))
    assert len(counts) > 1
