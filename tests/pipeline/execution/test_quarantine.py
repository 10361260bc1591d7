"""Suspects alone: one that is segmented is cleared, and the next window's rows have what is known."""

from pathlib import Path

import pytest

from segmint.catalogs.reasons import Reason, RejectedError
from segmint.infra.ray_session import Cluster
from segmint.infra.row_ledger import BarredRowError, Visit
from segmint.infra.storage.storage import Storage
from segmint.operators.rows import faulted, rejected
from segmint.pipeline.config.config import load_config
from segmint.pipeline.dataset.dataset import OpenDataset, open_or_create
from segmint.pipeline.execution.quarantine import ControlFailedError, Quarantine, Trials
from segmint.pipeline.execution.stages import lay_out
from tests.support.builds import write_catalog, write_config, write_photographs

pytestmark = pytest.mark.ray


def open_quarantine(folder: Path, cluster: Cluster) -> tuple[Quarantine, OpenDataset]:
    """The quarantine of a dataset of four photographs in two shards."""
    names = write_photographs(folder, 4)
    catalog = write_catalog(folder / "catalog.jsonl", [{"uri": name, "license": "CC0-1.0"} for name in names])
    config = load_config(
        str(
            write_config(
                folder / "build.yaml",
                catalog,
                folder / "dataset",
                images_per_shard=2,
                masks={"points_per_side": 1, "crop_n_layers": 0},
                deidentify={"faces": {"detector": "none"}, "plates": {"detector": "none"}},
            )
        )
    )
    dataset = open_or_create(config, Storage())
    return Quarantine(lay_out(config, dataset, cluster), start_timeout_s=120), dataset


def test_a_suspect_that_is_segmented_alone_is_cleared(local_ray: Cluster, tmp_path: Path) -> None:
    quarantine, dataset = open_quarantine(tmp_path, local_ray)
    rows, ledger = quarantine.open_window(dataset.read_rows([0, 1]))
    assert "reason" not in rows.column_names
    Visit(ledger._book).begin(2)  # a stay that never ends, as in a worker that dies
    with ledger.visit() as visit, pytest.raises(BarredRowError):
        visit.begin(2)
    assert ledger.suspects() == [2]
    assert quarantine.try_suspects(dataset.spans([0, 1])) == Trials(verdicts=0, held_back={})
    assert quarantine.open_window(rows)[0].equals(rows)


def test_the_rows_of_the_next_window_have_what_is_known(local_ray: Cluster, tmp_path: Path) -> None:
    quarantine, dataset = open_quarantine(tmp_path, local_ray)
    quarantine._known = {
        1: rejected({}, "segment", RejectedError(Reason.KILLED_WORKER, "it ends its worker")),
        2: faulted({}, "segment", ControlFailedError("no worker lives")),
    }
    rows, _ = quarantine.open_window(dataset.read_rows([0, 1]))
    found = [(row["ordinal"], row["stage"], row["reason"], row["fault"]) for row in rows.to_pylist()]
    assert found == [
        (0, None, None, None),
        (1, "segment", "killed_worker", None),
        (2, None, None, "segment: ControlFailedError: no worker lives"),
        (3, None, None, None),
    ]


def test_a_suspect_is_tried_with_the_window_that_its_row_is_in(local_ray: Cluster, tmp_path: Path) -> None:
    quarantine, dataset = open_quarantine(tmp_path, local_ray)
    quarantine._known = {2: faulted({}, "segment", ControlFailedError("no worker lives"))}
    quarantine.open_window(dataset.read_rows([0]))
    assert quarantine.try_suspects(dataset.spans([0])) == Trials(verdicts=0, held_back={})
    assert list(quarantine._known) == [2]
