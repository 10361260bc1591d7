"""What commands write about a dataset goes outside of it, or where a takedown finds it."""

from pathlib import Path

import pytest

from segmint.catalogs.dataset.outputs import refuse_inside
from segmint.infra.errors import UsageError
from tests.support.locations import location_of


def test_a_target_in_the_dataset_is_refused_but_for_the_report(dataset: str, tmp_path: Path) -> None:
    location = location_of(dataset)
    (tmp_path / "link").symlink_to(dataset)
    for target in (f"{dataset}/pages", f"{tmp_path}/link/a.csv", f"{dataset}/report/../a.csv", dataset):
        with pytest.raises(UsageError, match=r"-o: .* is inside the dataset .*, where a takedown would not find it"):
            refuse_inside(location, location_of(target), "-o")
    for target in (f"{dataset}/report", f"{dataset}/report/deep/a.csv", f"{dataset}-pages", str(tmp_path / "a.csv")):
        refuse_inside(location, location_of(target), "-o")


def test_data_that_segmint_did_not_write_has_no_takedowns(tmp_path: Path) -> None:
    refuse_inside(location_of(tmp_path), location_of(tmp_path / "pages"), "-o")
