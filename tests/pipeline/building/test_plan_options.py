import math
from typing import Any

import pytest

from segmint.infra.errors import UsageError
from segmint.pipeline.building.plan import PlanOptions


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sample": 0}, "--sample is 0"),
        ({"gpus": 0}, "--gpus is 0"),
        ({"price": -1.0}, "--price is -1"),
        ({"price": math.nan}, "--price is nan"),
        ({"share": 1.5}, "--share is 1.5"),
        ({"share": 0.0}, "--share is 0"),
        ({"flops": math.inf}, "--flops is inf"),
        ({"cores": 0}, "--cores is 0"),
        ({"gpu": "Voodoo"}, "--gpu Voodoo: expected one of A100, B200, .*also pass its peak"),
        ({"share": 0.5, "sample": 3}, "--share assumes what --sample measures"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        PlanOptions(**options)
