"""Numerics: equal ones agree, and differences are listed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from segmint.catalogs.layout import fingerprint
from segmint.infra.assets.hashes import sha256_of
from segmint.infra.device import Compute
from segmint.infra.errors import UsageError
from segmint.operators.segment.mask_config import MasksConfig, ModelConfig
from segmint.operators.segment.numerics import Numerics, observe_numerics, resolve_numerics


@pytest.fixture(scope="module")
def here(mobile_sam_path: Path) -> Numerics:
    return observe_numerics(Compute("cpu", "fp32", 1), 4, 1, sha256_of(mobile_sam_path))


def test_numerics_name_this_machine_and_these_weights(here: Numerics) -> None:
    assert here.torch == torch.__version__
    assert here.device_kind == torch.backends.cpu.get_cpu_capability()
    assert here.weights_sha256.startswith("6dbb9052")


def test_every_field_is_in_the_fingerprint(here: Numerics) -> None:
    fingerprints = {here.fingerprint}
    for name, value in here.to_dict().items():
        other = replace(here, **{name: f"{value}x" if isinstance(value, str) else value + 1})
        fingerprints.add(other.fingerprint)
        assert here.differences(other).startswith(name)
    assert len(fingerprints) == len(here.to_dict()) + 1
    assert here.differences(replace(here)) == ""


def test_a_field_that_an_older_dataset_lacks_is_not_compared(here: Numerics) -> None:
    values = here.to_dict()
    values.pop("littlecms")
    older = Numerics.recorded(values)
    assert older.to_dict() == values
    assert older.fingerprint == fingerprint(values) != here.fingerprint
    assert here.differences(older) == older.differences(here) == ""
    assert replace(here, littlecms="x").differences(older) == ""
    assert replace(here, torch="x").differences(older).startswith("torch 'x' against")


def test_a_field_of_a_newer_dataset_is_refused_by_name(here: Numerics) -> None:
    with pytest.raises(UsageError, match="numerics have kernels, which segmint"):
        Numerics.recorded({**here.to_dict(), "kernels": "triton"})
    with pytest.raises(UsageError, match="lack device, threads"):
        Numerics.recorded({key: value for key, value in here.to_dict().items() if key not in ("device", "threads")})


@pytest.mark.parametrize(
    ("device", "masks", "expected"),
    [
        ("cpu", MasksConfig(), (8, 1)),
        ("cpu", MasksConfig(points_per_chunk=3), (3, 1)),
        ("cuda", MasksConfig(), (64, 7)),
        ("cuda", MasksConfig(crop_n_layers=0, points_per_chunk=16), (16, 1)),
    ],
)
def test_auto_values_suit_the_device(
    device: str, masks: MasksConfig, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    numerics = resolve_numerics(Compute(device, "fp32", 1), ModelConfig(), masks, "0" * 64)
    assert (numerics.points_per_chunk, numerics.crops_per_batch) == expected


@pytest.mark.parametrize(("wanted", "expected"), [("auto", "eager"), ("eager", "eager"), ("compiled", "compiled")])
def test_the_encoder_is_compiled_on_request(wanted: str, expected: str) -> None:
    model = ModelConfig.model_validate({"encoder": wanted})
    assert resolve_numerics(Compute("cpu", "fp32", 1), model, MasksConfig(), "0" * 64).encoder == expected
