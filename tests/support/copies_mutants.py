"""Faults in recognizing copies of pictures, for `make mutants`."""

from tests.support.mutant import Mutant

COPIES_MUTANTS = (
    Mutant(
        "a pixel that two cells share counts for one of them",
        "operators/similar/hashes.py",
        "parts * whole - cut[:-1] + cut[1:]",
        "parts * whole",
        "tests/operators/similar/test_hashes.py",
    ),
    Mutant(
        "averages are rounded down",
        "operators/similar/hashes.py",
        "(2 * scale * sums + values.size)",
        "(2 * scale * sums)",
        "tests/operators/similar/test_hashes.py",
    ),
    Mutant(
        "a picture turned by 90 degrees is hashed as turned by 270",
        "operators/similar/hashes.py",
        "[frame * across, frame.T * down, frame * across * down, frame.T * across]",
        "[frame * across, frame.T * across, frame * across * down, frame.T * down]",
        "tests/operators/similar/test_hashes.py",
    ),
    Mutant(
        "images without structure look alike",
        "operators/audit/similar_images.py",
        " & (hashes != NO_HASH)",
        "",
        "tests/operators/audit/test_similar_images.py",
    ),
)
