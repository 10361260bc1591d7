"""Unmodified `segmint build`, except that stubs replace the two stages that process pixels.

    python benchmarks/building/stubbed_build.py CONFIG ACCOUNTING [--shards A:B] [--photographs]

Reads the configuration, builds, and writes the accounting as JSON. Logs go to standard error. With `--photographs`, the
prepare stage is real, and only the model is a stub.
"""

import argparse
import json
import sys
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.building.stubs import StubbedPrepare, StubbedSegment  # noqa: E402
from segmint.catalogs.layout import parse_shards  # noqa: E402
from segmint.pipeline.build import run_build  # noqa: E402
from segmint.pipeline.config.config import load_config  # noqa: E402


def main() -> None:
    """Build what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("accounting", type=Path)
    parser.add_argument("--shards", type=parse_shards)
    parser.add_argument("--photographs", action="store_true")
    arguments = parser.parse_args()
    stubs: dict[str, type] = {"Segment": StubbedSegment}
    if not arguments.photographs:
        stubs["Prepare"] = StubbedPrepare
    with mock.patch.multiple("segmint.pipeline.build", **stubs):
        accounting = run_build(load_config(arguments.config), shards=arguments.shards)
    arguments.accounting.write_text(json.dumps(accounting.to_dict(), default=list) + "\n")


if __name__ == "__main__":
    main()
