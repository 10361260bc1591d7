"""ONNX files: networks on onnxruntime, the plate network's weights, and the files of the detectors."""

import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from segmint.infra.arrays import Floats32
from segmint.model.detectors.detection import STRIDES, YUNET_OUTPUTS, Detector, Kind, OnnxNetwork
from segmint.model.detectors.plates import Network, host_blob

_FLOAT = 1  # TensorProto.DataType
_INPUT_TYPES: dict[str, type[np.float32] | type[np.uint8]] = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}
_OUTPUTS = f"the outputs {', '.join(YUNET_OUTPUTS)} (YuNet), or one output (N, 5 or more): x0, y0, x1, y1, score"

# The needed part of onnx.proto, as a `FileDescriptorProto`. Protocol buffer readers skip unknown fields.
_ONNX_PROTO = """
name: "segmint/onnx.proto" package: "segmint.onnx" syntax: "proto2"
message_type {
  name: "TensorProto"
  field { name: "dims" number: 1 label: LABEL_REPEATED type: TYPE_INT64 }
  field { name: "data_type" number: 2 label: LABEL_OPTIONAL type: TYPE_INT32 }
  field { name: "name" number: 8 label: LABEL_OPTIONAL type: TYPE_STRING }
  field { name: "raw_data" number: 9 label: LABEL_OPTIONAL type: TYPE_BYTES }
}
message_type {
  name: "GraphProto"
  field {
    name: "initializer" number: 5 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: ".segmint.onnx.TensorProto"
  }
}
message_type {
  name: "ModelProto"
  field { name: "graph" number: 7 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".segmint.onnx.GraphProto" }
}
"""


def onnx_network(path: Path, threads: int | None) -> Network:
    """Load the plate network as a function that runs on the CPU, whatever torch's device is.

    The memory for the largest input so far stays allocated, which saves a third of the time.
    """
    session = _session(path.read_bytes(), threads)
    return lambda windows: session.run(["loc", "conf", "landms"], {"image": host_blob(windows)})


def detector_network(path: Path, threads: int | None) -> OnnxNetwork:
    """Load a detector's network to run on the CPU. Raise ValueError if `OnnxDetector` can't use it."""
    try:
        session = _session(path.read_bytes(), threads)
    except Exception as error:  # onnxruntime's errors only share this class
        raise ValueError(f"expected an ONNX file that contains its weights: {' '.join(str(error).split())}") from error
    inputs, outputs = session.get_inputs(), [each.name for each in session.get_outputs()]
    found = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
    shape = inputs[0].shape if len(inputs) == 1 and inputs[0].type in _INPUT_TYPES else []
    sides = [side if isinstance(side, int) else None for side in shape]  # free sides have a name or None
    are_usable = len(sides) == 4 and sides[0] in (1, None) and sides[1] in (3, None)
    if not are_usable or (sides[2] is None) != (sides[3] is None):
        raise ValueError(f"expected one input (1, 3, H, W), float or uint8, with H and W fixed or free, got {found}")
    is_yunet = set(outputs) == set(YUNET_OUTPUTS)
    if not is_yunet and len(outputs) != 1:
        raise ValueError(f"expected {_OUTPUTS}, got {', '.join(outputs)}")
    size = None if sides[2] is None or sides[3] is None else (sides[2], sides[3])
    if is_yunet and size is not None and any(side % STRIDES[-1] for side in size):
        raise ValueError(f"expected an input whose sides are multiples of {STRIDES[-1]}, got {found}")
    names = list(YUNET_OUTPUTS) if is_yunet else outputs
    return OnnxNetwork(
        lambda pixels: session.run(names, {inputs[0].name: pixels}), is_yunet, size, _INPUT_TYPES[inputs[0].type]
    )


def _session(model: bytes, threads: int | None) -> Any:
    """Create an onnxruntime session for the content of a file, which can't refer to other files."""
    import onnxruntime

    if threads is None:
        import torch

        threads = torch.get_num_threads()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = options.enable_mem_pattern = True
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Weights in another file wouldn't be covered by this file's hash.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def read_weights(path: Path) -> dict[str, Floats32]:
    """Return the float32 arrays stored inside an ONNX file, keyed by name. Raise `ValueError` for any other file."""
    from google.protobuf.message import DecodeError

    model = _model_class()()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise ValueError(f"{path} is not an ONNX file: {error}") from error
    return {
        each.name: np.frombuffer(each.raw_data, "<f4").reshape(tuple(each.dims))
        for each in model.graph.initializer
        if each.data_type == _FLOAT
    }


@cache
def _model_class() -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(_ONNX_PROTO, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("segmint.onnx.ModelProto"))


TORCHSCRIPT_ENDINGS = (".jit", ".ts", ".pt", ".pth", ".torchscript")
ONNX_ENDING = ".onnx"
DETECTOR_ENDINGS = (*TORCHSCRIPT_ENDINGS, ONNX_ENDING)
"""File name endings that detector files may have."""

DETECTOR_FILES = f"a TorchScript or ONNX file ({', '.join(DETECTOR_ENDINGS)})"
"""Description of detector files for messages."""


def is_onnx(name: str | Path) -> bool:
    """Return whether a path or URI names an ONNX file. A `#` with a hash may follow the name."""
    return str(name).partition("#")[0].endswith(ONNX_ENDING)


def file_format(name: str | Path) -> str:
    """Return the name of a detector file's format, for messages."""
    return "ONNX" if is_onnx(name) else "TorchScript"


def contract(name: str | Path) -> str:
    """Describe the input and output that a detector file with this name must have, for messages."""
    if is_onnx(name):
        return (
            "an ONNX network that takes one BGR image (1, 3, H, W), 0 to 255, and returns YuNet's outputs or one "
            "tensor (N, 5 or more): x0, y0, x1, y1, score"
        )
    return (
        "a TorchScript module that takes one BGR image (3, H, W) uint8 and returns boxes (N, 4), labels, scores (N,) "
        "and sizes"
    )


def load_detector_file(
    path: Path, kind: Kind, score: float | None, device: str, threads: int | None = None
) -> Detector:
    """Load a detector file. `score` is the minimum score of a detection; by default, the format determines it.

    A TorchScript module runs on torch's `device`. An ONNX network runs on the CPU with `threads` threads, by default
    torch's number of threads. Raises RuntimeError or ValueError if the file isn't a detector of that kind.
    """
    if not is_onnx(path):
        from segmint.model.detectors.torchscript import TorchScriptDetector

        return TorchScriptDetector(path, kind, score, device)
    if kind == "object":
        raise ValueError("objects need a TorchScript file, because boxes of ONNX networks are merged")
    from segmint.model.detectors.detection import OnnxDetector

    try:
        return OnnxDetector(detector_network(path, threads), kind, score, path.name)
    except Exception as error:  # onnxruntime's errors only share this class
        raise ValueError(str(error)) from error
