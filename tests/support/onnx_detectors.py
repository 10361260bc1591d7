"""Real ONNX networks of the detectors' signatures, which find magenta cells of 32 x 32 pixels."""

from pathlib import Path

import numpy as np
import onnx
from onnx import parser

from segmint.model.detectors.detection import STRIDES, YUNET_OUTPUTS

_HEAD = '<ir_version: 9, opset_import: ["" : 17]> detector '
_MAGENTA = """
    weights = Constant <value = float[1, 3, 1, 1] {0.00392156862745098, -0.00392156862745098, 0}> ()
    magenta = Conv (input, weights)
"""  # 1 where blue is 255 and green is 0


def yunet(
    path: Path,
    size: tuple[int, int] | None = None,
    *,
    scale: float = 1.0,
    side: float = 0.0,
    outputs: tuple[str, ...] = YUNET_OUTPUTS,
) -> Path:
    """YuNet's outputs: `cls_32` is the magenta share of each cell times `scale`, and no other stride finds anything.

    The box is the cell's, times exp(`side`). `size` is the input's only height and width.
    """
    shapes = "H, W" if size is None else f"{size[0]}, {size[1]}"
    text = [_MAGENTA]
    for stride in STRIDES:
        strong = scale if stride == 32 else 0.0
        text.append(f"""
    share_{stride} = AveragePool <kernel_shape = [{stride}, {stride}], strides = [{stride}, {stride}]> (magenta)
    strong_{stride} = Constant <value = float {{{strong}}}> ()
    scored_{stride} = Mul (share_{stride}, strong_{stride})
    one_{stride} = Constant <value = int64[3] {{1, -1, 1}}> ()
    cls_{stride} = Reshape (scored_{stride}, one_{stride})
    zero_{stride} = Sub (cls_{stride}, cls_{stride})
    full_{stride} = Constant <value = float {{1}}> ()
    obj_{stride} = Add (zero_{stride}, full_{stride})
    offset_{stride} = Constant <value = float[4] {{0.5, 0.5, {side}, {side}}}> ()
    bbox_{stride} = Add (zero_{stride}, offset_{stride})
    points_{stride} = Constant <value = float[10] {{0, 0, 0, 0, 0, 0, 0, 0, 0, 0}}> ()
    kps_{stride} = Add (zero_{stride}, points_{stride})
""")
    declared = ", ".join(f"float[B, N{index}, C{index}] {name}" for index, name in enumerate(outputs))
    return _saved(f"(float[1, 3, {shapes}] input) => ({declared}) {{{''.join(text)}}}", path)


def listed(
    path: Path,
    size: tuple[int, int] | None = None,
    *,
    kind: str = "float",
    box: tuple[float, float, float, float] = (0, 0, 32, 32),
    score: float = 0.9,
    rank: int = 2,
    columns: int = 6,
) -> Path:
    """One tensor with a row per magenta cell: `box` from the cell's corner, `score`, and further columns of ones."""
    shapes = "H, W" if size is None else f"{size[0]}, {size[1]}"
    row = ", ".join(map(str, (*box, score, *[1] * (columns - 5)))) if columns > 4 else ", ".join(map(str, box))
    moved = ", ".join(["32, 0", "0, 32"] * 2 + ["0, 0"] * (columns - 4))
    shape = "1, -1" if rank == 3 else "-1"
    text = f"""
    pixels = Cast <to = 1> (image)
    input = Identity (pixels)
    {_MAGENTA}
    share = AveragePool <kernel_shape = [32, 32], strides = [32, 32]> (magenta)
    half = Constant <value = float {{0.5}}> ()
    found = Greater (share, half)
    places = NonZero (found)
    order = Constant <value = int64[2] {{3, 2}}> ()
    corners = Gather (places, order)
    turned = Transpose <perm = [1, 0]> (corners)
    cells = Cast <to = 1> (turned)
    steps = Constant <value = float[{columns}, 2] {{{moved}}}> ()
    across = Transpose <perm = [1, 0]> (steps)
    starts = MatMul (cells, across)
    row = Constant <value = float[{columns}] {{{row}}}> ()
    rows = Add (starts, row)
    shape = Constant <value = int64[{rank}] {{{shape}, {columns}}}> ()
    boxes = Reshape (rows, shape)
"""
    declared = "float[B, N, C] boxes" if rank == 3 else "float[N, C] boxes"
    return _saved(f"({kind}[1, 3, {shapes}] image) => ({declared}) {{{text}}}", path)


def random_yunet(path: Path, seed: int) -> Path:
    """YuNet's outputs for any image: 1 x 1 convolutions with random weights over the mean of each cell."""
    random = np.random.default_rng(seed)
    text = []
    for stride in STRIDES:
        text.append(
            f"mean_{stride} = AveragePool <kernel_shape = [{stride}, {stride}], strides = [{stride}, {stride}]>"
        )
        text.append(" (input)\n")
        for name, width, spread in (("cls", 1, 0.02), ("obj", 1, 0.02), ("bbox", 4, 0.005), ("kps", 10, 0.01)):
            values = ", ".join(f"{value:.6f}" for value in random.normal(0, spread, 3 * width))
            last = "Sigmoid" if width == 1 else "Identity"
            text.append(f"""
    {name}_weights_{stride} = Constant <value = float[{width}, 3, 1, 1] {{{values}}}> ()
    {name}_map_{stride} = Conv (mean_{stride}, {name}_weights_{stride})
    {name}_rows_{stride} = Transpose <perm = [0, 2, 3, 1]> ({name}_map_{stride})
    {name}_shape_{stride} = Constant <value = int64[3] {{1, -1, {width}}}> ()
    {name}_flat_{stride} = Reshape ({name}_rows_{stride}, {name}_shape_{stride})
    {name}_{stride} = {last} ({name}_flat_{stride})
""")
    declared = ", ".join(f"float[B, N{index}, C{index}] {name}" for index, name in enumerate(YUNET_OUTPUTS))
    return _saved(f"(float[1, 3, H, W] input) => ({declared}) {{{''.join(text)}}}", path)


def fragile(path: Path) -> Path:
    """Finds nothing, and fails on an image with a magenta cell, whose row of 6 can't be rows of 7."""
    network = onnx.load(listed(path))
    shape = next(node for node in network.graph.node if node.output == ["shape"])
    shape.attribute[0].t.CopyFrom(onnx.helper.make_tensor("shape", onnx.TensorProto.INT64, [2], [-1, 7]))
    onnx.save(network, path)
    return path


def _saved(graph: str, path: Path) -> Path:
    network = parser.parse_model(_HEAD + graph)
    onnx.checker.check_model(network)
    onnx.save(network, path)
    return path
