"""Numerics: equal ones agree, and whatever differs is named."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from infra.assets import sha256_of
from infra.device import Compute
from operators.numerics import Numerics, observe_numerics


@pytest.fixture(scope="module")
def here(mobile_sam_path: Path) -> Numerics:
    return observe_numerics(Compute("cpu", "fp32", 1), 4, sha256_of(mobile_sam_path))


def test_numerics_name_this_machine_and_these_weights(here: Numerics) -> None:
    assert here.torch == torch.__version__
    assert here.device_kind == torch.backends.cpu.get_cpu_capability()
    assert here.weights_sha256.startswith("6dbb9052")


def test_every_field_is_in_the_fingerprint(here: Numerics) -> None:
    fingerprints = {here.fingerprint}
    for name, value in vars(here).items():
        other = replace(here, **{name: f"{value}x" if isinstance(value, str) else value + 1})
        fingerprints.add(other.fingerprint)
        assert here.differences(other).startswith(name)
    assert len(fingerprints) == len(vars(here)) + 1
    assert here.differences(replace(here)) == ""
