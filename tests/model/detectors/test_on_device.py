"""The detectors on a pretended CUDA device: nothing mixes devices, and they find what they find on the CPU."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from facenet_pytorch import MTCNN

from segmint.infra.assets import resolve
from segmint.model.detectors import cascade
from segmint.model.detectors.cascade import CascadeDetector
from segmint.model.detectors.detection import Detection
from segmint.model.detectors.plate_network import PlateNetworkOnDevice
from segmint.model.detectors.plates import PlateDetector
from segmint.operators.prepare.onnx_file import read_weights
from tests.support.pretended_cuda import PretendedCuda

pytestmark = pytest.mark.usefixtures("one_thread")


def alike(found: list[Detection], expected: list[Detection]) -> bool:
    return len(found) == len(expected) and all(
        np.allclose(ours.box, theirs.box, atol=0.01) and abs(ours.score - theirs.score) < 1e-3
        for ours, theirs in zip(found, expected, strict=True)
    )


@pytest.mark.usefixtures("weights")
def test_faces(astronaut: np.ndarray) -> None:
    image = cv2.resize(astronaut, (200, 200), interpolation=cv2.INTER_AREA)
    expected = CascadeDetector(MTCNN(keep_all=True).eval()).detect(image)
    with PretendedCuda() as device:
        networks = MTCNN(keep_all=True).eval()
        device.moved(networks)
        detector = CascadeDetector(networks, device="cuda")
        assert (detector.strip, detector.batch) == (cascade.CUDA_STRIP, cascade.CUDA_BATCH)
        found = detector.detect(image)
    assert len(expected) == 1
    assert alike(found, expected)
    assert sum(device.launches.values()) > 0


@pytest.mark.usefixtures("weights")
def test_plates(photos: Path) -> None:
    image = np.ascontiguousarray(cv2.imread(str(photos / "plate_car_1.png"))[:, :, ::-1])
    weights = read_weights(resolve("clp"))
    expected = PlateDetector(PlateNetworkOnDevice(weights, "cpu")).detect(image)
    with PretendedCuda() as device:
        network = PlateNetworkOnDevice(weights, "cpu")
        device.moved(network.network)
        network.device, network.mean = torch.device("cuda"), device.to_device(network.mean)
        found = PlateDetector(network, batch_pixels=10**7).detect(image)
    assert len(expected) == 1
    assert alike(found, expected)
    assert sum(device.launches.values()) > 0
