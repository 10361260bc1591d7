"""The NEON back end, run by an emulator of ARM's instructions: the bits of this CPU's kernels, from every operation."""

import ctypes
import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

from segmint.model.kernels.cpu import build, calls
from segmint.model.kernels.cpu.library import Kernels
from tests.model.kernels.cpu import test_calls_border as test_border
from tests.model.kernels.cpu import test_calls_decoding as test_decoding
from tests.model.kernels.cpu import test_calls_drawing as test_drawing
from tests.support.cpu_kernels import every_set, numbers, sources_with_fault

pytestmark = pytest.mark.long

COMPILER, EMULATOR, SYSTEM = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"
HERE = Path(__file__).parent
WORDS = 7

SIZES: dict[int, int] = {}
"""Bytes of the arrays that a kernel gets, by their addresses."""

OPERATIONS = (
    *("load", "broadcast", "+", "-", "*", "/", "fma", "min", "max", "absolute", "root", "whole", "above", "at_most"),
    *("pick", "times_power_of_2", "pick_places"),
)
"""In the order of `operations.cpp`."""

SPECIAL = (
    *(0.0, -0.0, np.nan, np.inf, -np.inf, 1.0, -1.0, 0.5, 2.5, -2.5, -0.75, 3.4028235e38, -3.4028235e38),
    *(2.0**-126, -(2.0**-126), 2.0**-149, 2.0**23 + 1, -(2.0**31), 2.0**64, 1 / 3),
)


@dataclass(frozen=True, kw_only=True)
class Emulated(Kernels):
    """Kernels whose calls the emulator runs, with copies of the arguments."""

    path: Path
    replay: Path

    def function(self, name: str, result: Any = None) -> Any:
        sizes = {"measure": sizes_of_measuring, "draw_mask": sizes_of_drawing}.get(name)

        def call(*arguments: Any) -> int:
            if sizes:
                SIZES.update(sizes(*arguments))
            return self.call(f"segmint_{name}_{self.instruction_set}", *arguments)

        return call

    def call(self, symbol: str, *arguments: Any) -> int:
        """Call a function with ctypes arguments, and copy its output into the arrays."""
        call = Call(arguments)
        file = self.path.with_suffix(".call")
        file.write_bytes(call.content())
        run(EMULATOR, "-L", SYSTEM, str(self.replay), str(self.path), symbol, str(file))
        return call.take_output(file.read_bytes())


class Call:
    """The memory of a call as `replay.cpp` reads it."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.blocks: list[tuple[int, bytes]] = [(0, b"")]  # address, or 0 for arguments and structures
        self.pointers: list[tuple[int, int, int]] = []
        words, number = [], 0.0
        for argument in arguments:
            if isinstance(argument, ctypes.c_float):
                number = argument.value
            elif isinstance(argument, (ctypes.c_int32, ctypes.c_int64)):
                words.append(argument.value)
            else:
                self.add(getattr(argument, "_obj", argument), block=0, offset=8 * len(words))
                words.append(0)
        words += [0] * (WORDS - len(words))
        self.blocks[0] = (0, struct.pack(f"<{WORDS}qf4xq", *words, number, 0))

    def add(self, target: Any, block: int, offset: int) -> None:
        """Add the array or the structures that a pointer in a block points to, and what these point to."""
        if isinstance(target, ctypes.c_void_p):
            if target.value:
                self.pointers.append((block, offset, len(self.blocks)))
                self.blocks.append((target.value, ctypes.string_at(target.value, SIZES[target.value])))
            return
        number = len(self.blocks)
        self.pointers.append((block, offset, number))
        self.blocks.append((0, bytes(target)))
        for index, each in enumerate(target if isinstance(target, ctypes.Array) else [target]):
            for name, kind in each._fields_:
                if kind is ctypes.c_void_p:
                    at = index * ctypes.sizeof(each) + getattr(type(each), name).offset
                    self.add(ctypes.c_void_p(getattr(each, name)), number, at)

    def content(self) -> bytes:
        sizes = [len(content) for _, content in self.blocks]
        head = [len(self.blocks), len(self.pointers), *sizes, *(part for each in self.pointers for part in each)]
        return struct.pack(f"<{len(head)}q", *head) + b"".join(content for _, content in self.blocks)

    def take_output(self, content: bytes) -> int:
        """Copy the arrays' new contents to their addresses, and return the function's result."""
        at = 8 * (2 + len(self.blocks) + 3 * len(self.pointers))
        result = int(struct.unpack_from("<q", content, at + 8 * (WORDS + 1))[0])
        for address, before in self.blocks:
            after = content[at : at + len(before)]
            if address and after != before:
                ctypes.memmove(address, after, len(after))
            at += len(before)
        return result


def sizes_of_measuring(
    logits: Any, masks: Any, side: Any, down: Any, across: Any, _: Any, found: Any
) -> dict[int, int]:
    sizes = {logits.value: masks.value * side.value**2 * 4, found.value: masks.value * 7 * 8}
    return sizes | sizes_of_axis(pointed_at(down), side.value) | sizes_of_axis(pointed_at(across), side.value)


def sizes_of_drawing(window: Any, down: Any, across: Any, _: Any, box: Any, pixels: Any) -> dict[int, int]:
    part = pointed_at(window)
    x0, y0, x1, y1 = (ctypes.c_int64 * 4).from_address(box.value)
    sizes = {part.logits: part.rows * part.columns * 4, box.value: 32, pixels.value: (y1 - y0 + 1) * (x1 - x0 + 1)}
    sizes |= sizes_of_axis(pointed_at(down), part.top + part.rows)
    return sizes | sizes_of_axis(pointed_at(across), part.left + part.columns)


def pointed_at(reference: Any) -> Any:
    """Return the structure that `ctypes.byref` points at."""
    return reference._obj  # noqa: SLF001 - ctypes has no other way back


def sizes_of_axis(axis: Any, logits: int) -> dict[int, int]:
    return {axis.places: axis.padded * 4, axis.weights: axis.padded * 12, axis.starts: (logits + 1) * 4}


def pointer(array: NDArray[Any]) -> Any:
    """An array's address as an argument; its size is noted."""
    SIZES[array.ctypes.data] = array.nbytes
    return ctypes.c_void_p(array.ctypes.data)


@pytest.fixture(autouse=True)
def noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Note the sizes of all tensors that are passed to a kernel."""
    address = calls.address

    def note(tensor: Tensor | None) -> Any:
        if tensor is not None:
            SIZES[tensor.data_ptr()] = tensor.nbytes
        return address(tensor)

    for module in (calls, calls):
        monkeypatch.setattr(module, "address", note)


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


@pytest.fixture(scope="module")
def replayer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that calls functions, for ARM; skips without a cross compiler or an emulator."""
    for program, package in ((COMPILER, "g++-aarch64-linux-gnu"), (EMULATOR, "qemu-user")):
        if not shutil.which(program):
            pytest.skip(f"{program} isn't installed. Install the Debian package {package}")
    target = tmp_path_factory.mktemp("replay") / "replay"
    run(COMPILER, "-std=c++17", "-O1", str(HERE / "replay.cpp"), "-ldl", "-o", str(target))
    return target


def built(folder: Path, replayer: Path, sources: Path, only: str | None = None) -> Emulated:
    """The kernels for NEON in a library for ARM, built from `sources` with the flags of every build."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", COMPILER)
        build.build(folder / build.LIBRARY, sources, only=only, machine="aarch64")
    return Emulated(every_set()[0].library, "neon", path=folder / build.LIBRARY, replay=replayer)


@pytest.fixture(scope="module")
def neon(replayer: Path, tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    return built(tmp_path_factory.mktemp("neon"), replayer, build.FOLDER)


def one_nan(found: NDArray[np.float32]) -> NDArray[np.uint32]:
    """The bits of floats, with the same ones for every NaN."""
    return np.where(np.isnan(found), np.float32(np.nan), found).view(np.uint32)


def operands() -> tuple[NDArray[np.float32], ...]:
    """Three arrays of (N, 16): all triples of special numbers, and numbers of many sizes."""
    triples = np.stack(np.meshgrid(SPECIAL, SPECIAL, SPECIAL)).reshape(3, -1, 16).astype(np.float32)
    more = numbers(1, 3, 512, 16) * np.exp2(np.round(numbers(2, 3, 512, 16) * 12))
    return tuple(np.concatenate([triples, more], axis=1))


def operations_of(call: Callable[..., Any]) -> dict[str, NDArray[np.uint32]]:
    """Results of each operation, by its name."""
    x, y, z = operands()
    results, transposed = np.zeros((len(x), len(OPERATIONS), 16), np.float32), np.zeros((16, 21), np.float32)
    rows = np.concatenate([x.ravel(), numbers(3, 64)])
    call(*map(pointer, (rows, y, z)), ctypes.c_int64(len(x)), *map(pointer, (results, transposed)))
    by_name = {name: one_nan(results[:, number]) for number, name in enumerate(OPERATIONS)}
    return {**by_name, "transpose": one_nan(transposed)}


def operations_here(name: str, folder: Path) -> dict[str, NDArray[np.uint32]]:
    """Those of an instruction set of this CPU."""
    target = folder / f"{name}.so"
    compile_operations(build.compiler(), build.INSTRUCTION_SETS[name], build.FOLDER, target)
    return operations_of(ctypes.CDLL(str(target)).operations)


def operations_of_neon(sources: Path, replayer: Path, folder: Path) -> dict[str, NDArray[np.uint32]]:
    target = folder / "neon.so"
    compile_operations(COMPILER, build.INSTRUCTION_SETS["neon"], sources, target)
    kernels = Emulated(every_set()[0].library, "neon", path=target, replay=replayer)
    return operations_of(lambda *arguments: kernels.call("operations", *arguments))


def compile_operations(compiler: str, flags: tuple[str, ...], sources: Path, target: Path) -> None:
    program = str(HERE / "operations.cpp")
    run(compiler, *build.FLAGS, *flags, f"-I{sources}", program, *build.LINK, "-o", str(target), "-lm")


def differing(found: dict[str, NDArray[np.uint32]], expected: dict[str, NDArray[np.uint32]]) -> set[str]:
    return {name for name in expected if not np.array_equal(found[name], expected[name])}


def test_every_operation_gives_the_same_bits(replayer: Path, tmp_path: Path) -> None:
    expected = operations_here("scalar", tmp_path)
    for kernels in every_set():
        assert differing(operations_here(kernels.instruction_set, tmp_path), expected) == set(), kernels.instruction_set
    assert differing(operations_of_neon(build.FOLDER, replayer, tmp_path), expected) == set()


RESULTS = {
    "border": (test_border.result_of, test_border.HASH),
    "drawing": (test_drawing.result_of, test_drawing.HASH),
    "decoding": (test_decoding.result_of, test_decoding.HASH),
}


@pytest.mark.parametrize("kernel", RESULTS)
@pytest.mark.parametrize("instruction_set", ["scalar", "neon"])
def test_the_emulated_kernels_give_the_stored_hashes(kernel: str, instruction_set: str, neon: Emulated) -> None:
    result_of, expected = RESULTS[kernel]
    assert result_of(replace(neon, instruction_set=instruction_set)) == expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(value: float, neon: Emulated) -> None:
    logits = test_border.stored_logits()
    logits[4, 63, 63] = value
    with pytest.raises(ValueError, match="mask 4 of 6 has logits that are not finite"):
        calls.measure(neon, logits, test_border.axis(100), test_border.axis(90), 1.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_drawing_of_values_that_are_not_finite_gives_the_same_bits(value: float, neon: Emulated) -> None:
    case = test_drawing.Case(7, 2, added=False)
    case.drawn[5, 3] = case.coefficients[4, 700] = value
    found, expected = (one_nan(case.draw(kernels).numpy()) for kernels in (neon, every_set()[0]))
    assert np.array_equal(found, expected)
    assert np.isnan(found.view(np.float32)).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_decoding_of_values_that_are_not_finite_gives_the_same_bits(value: float, neon: Emulated) -> None:
    case = test_decoding.Case(7, 4, steps=2)
    case.own[2, 3, 40] = case.keys[5, 0, 0] = case.coefficients[1, 9, 70] = value
    found, expected = (
        [one_nan(each.contiguous().numpy()) for each in case.take(kernels)] for kernels in (neon, every_set()[0])
    )
    assert [np.array_equal(*pair) for pair in zip(found, expected, strict=True)] == [True] * 4
    assert [np.isnan(each.view(np.float32)).any() for each in found] == [True] * 4


def test_the_library_for_arm_supports_its_own_instruction_sets(neon: Emulated) -> None:
    names = {name: np.frombuffer(f"{name}\0".encode(), np.uint8) for name in build.INSTRUCTION_SETS}
    found = {name: neon.call("segmint_supports", pointer(text)) & 0xFF for name, text in names.items()}
    assert found == {"scalar": 1, "avx2": 0, "avx512": 0, "neon": 1}
    assert set(build.sets_of("aarch64")) == {"scalar", "neon"}


@pytest.mark.parametrize(
    ("old", "new", "operations"),
    [
        ("vfmaq_f32(c.v[i],", "vmlaq_f32(c.v[i],", {"fma"}),
        ("vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i])", "vminq_f32(a.v[i], b.v[i])", {"min"}),
        ("vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i])", "vmaxnmq_f32(a.v[i], b.v[i])", {"max"}),
        ("vrndq_f32(", "vrndnq_f32(", {"whole"}),
        ("vcleq_f32(a.v[i], b.v[i])", "vmvnq_u32(vcgtq_f32(a.v[i], b.v[i]))", {"at_most"}),
        ("vshlq_n_u32(bits, 8)", "vshlq_n_u32(bits, 4)", {"above", "at_most"}),
        ("vld1q_u8(bytes), vld1q_u8(bytes + 16)}}", "vld1q_u8(bytes), vld1q_u8(bytes)}}", {"pick"}),
        ("vdupq_n_s32(127)", "vdupq_n_s32(126)", {"times_power_of_2"}),
        ("vtrn2q_f32(even, odd)", "vtrn2q_f32(odd, even)", {"transpose"}),
        ("vld1q_s32(places + 4 * i)", "vld1q_s32(places)", {"pick_places"}),
    ],
)
def test_the_comparison_reveals_a_fault_in_one_operation(
    old: str, new: str, operations: set[str], replayer: Path, tmp_path: Path
) -> None:
    sources = sources_with_fault("lanes16.h", old, new, tmp_path)
    found = operations_of_neon(sources, replayer, tmp_path)
    assert differing(found, operations_here("scalar", tmp_path)) == operations


@pytest.mark.parametrize(
    ("old", "new", "kernels"),
    [
        ("vfmaq_f32(c.v[i],", "vmlaq_f32(c.v[i],", {"border", "drawing", "decoding"}),
        ("vtrn2q_f32(even, odd)", "vtrn2q_f32(odd, even)", {"decoding"}),
        ("vshlq_n_u32(bits, 12)", "vshlq_n_u32(bits, 8)", {"border"}),
    ],
    ids=["products not fused", "a transposed lane in the wrong order", "a mask with the wrong lanes"],
)
def test_the_hashes_reveal_a_fault(old: str, new: str, kernels: set[str], replayer: Path, tmp_path: Path) -> None:
    faulty = built(tmp_path, replayer, sources_with_fault("lanes16.h", old, new, tmp_path), only="neon")
    assert {name for name, (result_of, expected) in RESULTS.items() if changed(result_of, faulty, expected)} == kernels


def changed(result_of: Callable[[Kernels], str], kernels: Kernels, expected: str) -> bool:
    """Whether the hash is another one, or the kernels refuse the input or contradict each other."""
    try:
        return result_of(kernels) != expected
    except (RuntimeError, ValueError):
        return True
