"""Loading of detector files: TorchScript modules, and ONNX networks on onnxruntime."""

from pathlib import Path

from segmint.model.detectors.detection import Detector, Kind

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
    from segmint.model.detectors.onnx import OnnxDetector
    from segmint.operators.prepare.onnx_file import detector_network

    try:
        return OnnxDetector(detector_network(path, threads), kind, score, path.name)
    except Exception as error:  # onnxruntime's errors only share this class
        raise ValueError(str(error)) from error
