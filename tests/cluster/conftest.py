"""Tests with the programs of a real cluster, from Debian's packages: `make test-cluster` installs them.

Where a program is missing, the tests are skipped with its name, unless `SEGMINT_REQUIRE_CLUSTER=1` is set, as by that
target: then they fail.
"""

import os
import shutil
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "prometheus", "promtool", "kubectl")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this folder is left out of `make test` and `make test-long`."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.long)


@pytest.fixture(autouse=True, scope="session")
def cluster_programs() -> None:
    """Skip, or fail where the run requires them, if a program is missing."""
    # Debian's daemons are not in the path of every user.
    os.environ["PATH"] = f"{os.environ['PATH']}{os.pathsep}/usr/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing and os.environ.get("SEGMINT_REQUIRE_CLUSTER") == "1":
        pytest.fail(f"not installed: {', '.join(missing)}")
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}; `make test-cluster` installs them")
