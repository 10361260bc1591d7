"""The plate network's file: onnxruntime and the same network in torch give the same numbers."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmint.infra.assets import resolve
from segmint.model.detectors.plate_network import PlateNetwork, PlateNetworkOnDevice
from segmint.operators.prepare.onnx_file import onnx_network, read_weights

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return read_weights(resolve("clp"))


def test_in_torch_the_plate_network_is_that_of_onnxruntime_to_1e_4(
    photos: Path, weights: dict[str, np.ndarray]
) -> None:
    """On two tiles of odd sides, one with a plate, as a batch in torch."""
    with Image.open(photos / "plate_car_1.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    tiles = [pixels[:331, :517], pixels[-331:, -517:]]
    reference, network = onnx_network(resolve("clp"), 1), PlateNetworkOnDevice(weights, "cpu")
    answers = network(tiles)
    assert answers[1][:, :, 1].max() > 0.5, "else there is no plate"
    for place, tile in enumerate(tiles):
        for ours, theirs in zip(answers, reference([tile]), strict=True):
            assert ours[place].shape == theirs[0].shape
            assert np.abs(ours[place] - theirs[0]).max() < 1e-4


def test_every_array_of_the_file_is_used_once(weights: dict[str, np.ndarray]) -> None:
    network = PlateNetwork()
    network.load(weights)
    assert len(list(network.parameters())) == len(weights)
    assert sum(each.numel() for each in network.parameters()) == sum(each.size for each in weights.values())


def test_arrays_of_another_network_are_refused(weights: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"592 of the plate network has shape \(1,\)"):
        PlateNetwork().load({**weights, "592": np.zeros(1, np.float32)})


def test_a_file_that_is_not_onnx_is_named(tmp_path: Path) -> None:
    path = tmp_path / "clp_det.onnx"
    path.write_bytes(b"\xff" * 40)
    with pytest.raises(ValueError, match=r"clp_det\.onnx is not an ONNX file"):
        read_weights(path)
