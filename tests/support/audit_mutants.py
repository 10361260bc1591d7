"""Faults that `make mutants` plants in the audit of hidden bytes."""

from tests.support.mutant import Mutant

AUDIT_MUTANTS = (
    Mutant(
        "bytes before a Parquet footer are not found",
        "operators/audit/parquet_parts.py",
        "    if position != end:\n",
        "    if position > end:\n",
        "tests/operators/audit/test_parquet_parts.py",
    ),
    Mutant(
        "other pages than the rows' are not found",
        "operators/audit/parquet_parts.py",
        "elif pages != other_pages:",
        "elif False:",
        "tests/operators/audit/test_parquet_parts.py",
    ),
    Mutant(
        "other texts in Parquet are not found",
        "operators/audit/parquet_parts.py",
        "not (len(value) <= _SHORT or value in texts)",
        "False",
        "tests/operators/audit/test_parquet_parts.py",
    ),
    Mutant(
        "the end of a tar is not compared",
        "operators/audit/tar.py",
        "if rest != bytes(zeros):",
        "if not rest:",
        "tests/pipeline/quality/audit/test_canonical.py",
    ),
    Mutant(
        "a tar's headers are not compared",
        "operators/audit/tar.py",
        "if same and stream.take() != expected:",
        "if stream.take() == b'':",
        "tests/pipeline/quality/audit/test_canonical.py",
    ),
    Mutant(
        "markers in image data are not found",
        "operators/audit/tar.py",
        "if values[1:][values[:-1] == 0xFF].any()",
        "if False",
        "tests/pipeline/quality/audit/test_canonical.py",
    ),
    Mutant(
        "a few bytes after image data are not found",
        "operators/audit/tar.py",
        '    raise ValueError("bytes after the last block of the image data")\n',
        "    return size\n",
        "tests/operators/audit/test_tar.py",
    ),
    Mutant(
        "spaces in a manifest are not found",
        "pipeline/quality/audit/canonical.py",
        "return form is not None and canonical_json(value) == data and (",
        "return form is not None and (",
        "tests/pipeline/quality/audit/test_canonical.py",
    ),
)
