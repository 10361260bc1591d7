"""Names of the decoder's outputs are only used for weights whose outputs were measured."""

import json
from dataclasses import asdict

from segmint.infra.assets import ASSETS
from segmint.pipeline.serving.images import MEASURED
from tests.support.builds import ROOT


def test_the_orders_are_those_that_were_measured() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "output_order.json").read_text())["weights"]
    recorded = {sha256: {key: found[key] for key in ("points", "rising")} for sha256, found in results.items()}
    assert {sha256: asdict(order) for sha256, order in MEASURED.items()} == recorded
    assert MEASURED.keys() <= {asset.sha256 for asset in ASSETS.values()}
    for order in MEASURED.values():
        assert order.points >= 500
        assert order.rising / order.points > 0.9
