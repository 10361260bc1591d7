"""Detector files that aren't detectors are refused when they're loaded, with what was expected."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from segmint.model.detectors.detection import YUNET_OUTPUTS
from segmint.operators.prepare.onnx_file import load_detector_file
from tests.support.onnx_detectors import listed, yunet

Make = Callable[[Path], Path]


def text(path: Path) -> Path:
    path.write_text("weights")
    return path


def with_input(path: Path, shape: list[int | str]) -> Path:
    """A network that returns its input, (N, 3, H, W)."""
    dims = ", ".join(map(str, shape))
    graph = (
        f'<ir_version: 9, opset_import: ["" : 17]> g (float[{dims}] x) => (float[a, b, c, d] y) {{ y = Identity (x) }}'
    )
    onnx.save(onnx.parser.parse_model(graph), path)
    return path


def external(path: Path) -> Path:
    """A detector whose weights are in another file, which this file's hash doesn't cover."""
    network = onnx.load(listed(path))
    node = next(node for node in network.graph.node if node.output == ["weights"])
    weights = onnx.numpy_helper.to_array(node.attribute[0].t)
    network.graph.initializer.append(onnx.numpy_helper.from_array(weights, "weights"))
    network.graph.node.remove(node)
    onnx.save(network, path)
    load_detector_file(path, "face", None, "cpu", threads=1)  # it works with its weights inside
    onnx.save(network, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (path.parent / "weights.bin").stat().st_size == weights.nbytes
    return path


def swapped(path: Path) -> Path:
    """YuNet's outputs with boxes and scores of a stride swapped."""
    network = onnx.load(yunet(path))
    names = {"cls_16": "bbox_16", "bbox_16": "cls_16"}
    for node in network.graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(value, value) for value in values]
    onnx.save(network, path)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (text, "expected an ONNX file that contains its weights: .*protobuf parsing failed"),
        (external, r"expected an ONNX file that contains its weights: .*(weights\.bin|model_path\.empty)"),
        (lambda path: yunet(path, outputs=YUNET_OUTPUTS[:-1]), r"expected the outputs cls_8, .*got cls_8, .*, kps_16$"),
        (lambda path: yunet(path, outputs=("cls_8", "obj_8")), r"expected the outputs .*, got cls_8, obj_8$"),
        (lambda path: yunet(path, (100, 160)), r"multiples of 32, got input tensor\(float\) \[1, 3, 100, 160\]"),
        (lambda path: yunet(path, scale=float("nan")), "expected scores from 0 to 1, got nan"),
        (swapped, r"expected cls_16 \(1, 24, 1\) for an input of 96 x 64 pixels, got \(1, 24, 4\)"),
        (lambda path: listed(path, columns=4), r"expected one output \(N, 5 or more\) .*, got \(0, 4\)"),
        (
            lambda path: listed(path, kind="int32"),
            r"one input \(1, 3, H, W\), .*got image tensor\(int32\)",
        ),
        (lambda path: with_input(path, [1, 1, "h", "w"]), r"one input \(1, 3, H, W\).*, got x tensor\(float\) \[1, 1"),
        (lambda path: with_input(path, [1, 3, 64, "w"]), r"H and W fixed or free, got x tensor\(float\) \[1, 3, 64"),
        (lambda path: with_input(path, [1, 3, "h", "w"]), r"one output \(N, 5 or more\) .*, got \(1, 3, 64, 96\)"),
    ],
)
def test_a_file_that_is_no_detector_is_refused(tmp_path: Path, make: Make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_detector_file(make(tmp_path / "faces.onnx"), "face", None, "cpu", threads=1)


def test_boxes_of_objects_would_be_merged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="objects need a TorchScript file"):
        load_detector_file(listed(tmp_path / "objects.onnx"), "object", None, "cpu")
