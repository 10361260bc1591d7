"""Digests are equal only where every one of them is."""

from benchmarks.gpu.bits import compare


def process(*digests: str, threads: tuple[str, ...] = ("a",)) -> dict[str, list[dict[str, str]]]:
    return {"runs": [{"dog": one} for one in digests], "threads": [{"dog": one} for one in threads]}


def test_runs_threads_and_processes_are_compared() -> None:
    assert compare([process("a", "a"), process("a")])["same"]
    differing = compare([process("a", "b"), process("a")])
    assert (differing["runs_same"], differing["processes_same"], differing["same"]) == (False, True, False)
    assert not compare([process("a", threads=("a", "b"))])["threads_same"]
    assert not compare([process("a", threads=("b", "b"))])["threads_same"]
    assert not compare([process("a"), process("b", threads=("b",))])["processes_same"]
