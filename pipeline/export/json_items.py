"""JSON arrays written item by item, so that memory does not grow with their number."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO


class JsonItems:
    """The items of a JSON array, collected in a file, one per line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.count = 0
        path.write_text("", encoding="utf-8")

    def extend(self, values: Iterable[Any]) -> None:
        """Append items; raises `ValueError` for NaN and infinities, which JSON does not have."""
        with self._path.open("a", encoding="utf-8") as file:
            for value in values:
                file.write(",\n" if self.count else "")
                file.write(json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False))
                self.count += 1

    def copy_into(self, target: TextIO) -> None:
        """Write the array, brackets included, to an open file."""
        target.write("[\n")
        with self._path.open(encoding="utf-8") as file:
            shutil.copyfileobj(file, target, 1 << 16)
        target.write("\n]")
