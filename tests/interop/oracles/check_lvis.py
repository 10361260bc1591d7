"""Figures of `lvis` 0.5.3 on the drawn set, compared with the stored ones; `--write` stores them."""

import json
import sys
from pathlib import Path

import numpy as np

np.float = float  # lvis 0.5.3 uses the name that numpy removed
from lvis import LVIS, LVISEval, LVISResults  # noqa: E402

from tests.support.lvis_set import draw_lvis_set, in_one_category, write_lvis_set  # noqa: E402

STORED = Path(__file__).parents[2] / "pipeline/engine/evaluate/lvis_figures.json"


def figures(folder: Path) -> dict[str, dict[str, float]]:
    """Return the federated scores of the results, and the class-agnostic average recall of up to 1,000 of them."""
    truth, results = write_lvis_set(folder)
    federated = LVISEval(str(truth), str(results))
    federated.run()
    # `use_cats = 0` finds no masks at all in lvis 0.5.3, whose lookup ignores the categories that it iterates over.
    document, boxless = in_one_category(*draw_lvis_set())
    (folder / "one.json").write_text(json.dumps(document))
    ground = LVIS(str(folder / "one.json"))
    agnostic = LVISEval(ground, LVISResults(ground, boxless, max_dets=1000))
    agnostic.evaluate()
    agnostic.accumulate()
    recall = agnostic.eval["recall"][:, 0]
    return {
        "federated": {name: float(value) for name, value in federated.results.items()},
        "class-agnostic AR@1000": dict(zip(agnostic.params.area_rng_lbl, recall.mean(axis=0).tolist(), strict=True)),
    }


def main() -> None:
    """Compare, or store with --write."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        found = figures(Path(folder))
    if "--write" in sys.argv:
        STORED.write_text(json.dumps(found, indent=2) + "\n")
    stored = json.loads(STORED.read_text())
    assert stored == found, f"lvis 0.5.3 has {found}, but {STORED} {stored}"
    print(f"lvis 0.5.3: {sum(map(len, found.values()))} figures are those in {STORED.name}")


main()
