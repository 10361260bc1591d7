"""Readers of the plate network's ONNX file: run by onnxruntime, or parsed for the same network in torch."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmint.model.detectors.plates import Network

_FLOAT = 1  # TensorProto.DataType

# The needed part of onnx.proto: message, field, number, kind, and the message that a field contains. Protocol buffer
# readers skip unknown fields.
_FIELDS = (
    ("TensorProto", "dims", 1, "REPEATED", "INT64", None),
    ("TensorProto", "data_type", 2, "OPTIONAL", "INT32", None),
    ("TensorProto", "name", 8, "OPTIONAL", "STRING", None),
    ("TensorProto", "raw_data", 9, "OPTIONAL", "BYTES", None),
    ("GraphProto", "initializer", 5, "REPEATED", "MESSAGE", "TensorProto"),
    ("ModelProto", "graph", 7, "OPTIONAL", "MESSAGE", "GraphProto"),
)


def onnx_network(path: Path, threads: int | None) -> Network:
    """Load the plate network as a function that runs on the CPU, regardless of torch's device.

    It keeps the memory of the largest input allocated, which saves a third of the time.
    """
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = options.enable_mem_pattern = True
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def network(batch: NDArray[np.float32]) -> tuple[Any, Any, Any]:
        loc, conf, landms = session.run(["loc", "conf", "landms"], {"image": batch})
        return loc, conf, landms

    return network


def read_weights(path: Path) -> dict[str, NDArray[np.float32]]:
    """Return the float32 arrays that an ONNX file stores inline, keyed by name.

    Raises `ValueError` if the file is not ONNX.
    """
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
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="segmint/onnx.proto", package="segmint.onnx", syntax="proto2")
    messages = {name: file.message_type.add(name=name) for name in dict.fromkeys(row[0] for row in _FIELDS)}
    for message, name, number, label, kind, held in _FIELDS:
        messages[message].field.add(
            name=name,
            number=number,
            label=getattr(field, f"LABEL_{label}"),
            type=getattr(field, f"TYPE_{kind}"),
            type_name=None if held is None else f".segmint.onnx.{held}",
        )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("segmint.onnx.ModelProto"))
