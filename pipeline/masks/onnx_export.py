"""Export of SAM's weights to ONNX for programs without torch, with the source's hash in the metadata."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segmint.infra.assets import resolve, sha256_of
from segmint.infra.device import resolve_compute
from segmint.infra.errors import UsageError
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location, put_new_file, refuse_existing
from segmint.infra.uris import LOCAL, local_path, scheme
from segmint.infra.version import VERSION
from segmint.model.onnx_export import export_decoder, export_encoder
from segmint.model.sam.load import inspect_checkpoint
from segmint.operators.segment.models import load_model

DATA_ENDING = ".data"

MAX_FILE_BYTES = 2_000_000_000
"""Maximum size of an ONNX file, below the format's limit of 2 GiB. Only ViT-H's image encoder exceeds this size."""


Part = Literal["decoder", "encoder"]


@dataclass(frozen=True)
class OnnxExport:
    """Result of an export. `data` is the weights file next to `output`, or None if `output` contains the weights."""

    output: str
    data: str | None
    bytes: int
    part: Part
    model_type: str
    weights_sha256: str

    def lines(self) -> list[str]:
        files = self.output if self.data is None else f"{self.output} and {self.data}"
        size = f"{self.bytes / 1e6:,.1f} MB"
        return [f"{self.part} of {self.model_type} (SHA-256 {self.weights_sha256[:12]}…) → {files}, {size}"]


def export(weights: str, output: Location, part: Part, single_mask: bool = False) -> OnnxExport:
    """Write a part of the SAM in `weights` as ONNX. `weights` is a known name, a path, or a URI.

    With `single_mask`, the decoder returns one mask. Raises `UsageError` if `output` exists or is a folder, or if the
    weights don't belong to a SAM.
    """
    if output.uri.endswith("/") or (scheme(output.uri) == LOCAL and local_path(output.uri).is_dir()):
        raise UsageError(f"-o {output} is a folder: expected a file, such as {output / 'decoder.onnx'}")
    data = Location(output.storage, output.uri + DATA_ENDING)
    for file in (output, data):
        refuse_existing(file)
    path = resolve(weights, storage=output.storage)
    # While parameters require gradients, tracing keeps all activations in memory.
    sam = load_model(path, resolve_compute("cpu", "fp32")).requires_grad_(False)
    architecture, depth = inspect_checkpoint(path)
    metadata = {
        "part": part,
        "model_type": architecture,
        "decoder_layers": str(depth),
        "weights_sha256": sha256_of(path),
        "segmint_version": VERSION,
    }
    with ScratchFolder() as folder:
        exported, described = Path(folder, "exported.onnx"), Path(folder, "described", output.name)
        if part == "decoder":
            export_decoder(sam, exported, single_mask)
        else:
            export_encoder(sam, exported)
        described.parent.mkdir()
        beside = _describe(exported, described, data.name, metadata)
        size = 0
        for file in (data, output) if beside else (output,):
            local = described.parent / file.name
            put_new_file(file, local)
            size += local.stat().st_size
    return OnnxExport(str(output), str(data) if beside else None, size, part, architecture, metadata["weights_sha256"])


def _describe(exported: Path, described: Path, data_name: str, metadata: dict[str, str]) -> bool:
    """Copy a graph and add `metadata`. Return whether the copy's weights are in a separate file, `data_name`."""
    import onnx

    model = onnx.load(exported)
    onnx.helper.set_model_props(model, metadata)
    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > MAX_FILE_BYTES
    onnx.save_model(model, described, save_as_external_data=large, location=data_name)
    return large
