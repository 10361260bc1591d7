"""JSON arrays written as their items come, so that memory does not grow with their number."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO


class JsonItems:
    """What stands between the brackets of a JSON array, gathered in a file: an item a line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.count = 0
        path.write_text("", encoding="utf-8")

    def extend(self, values: Iterable[Any]) -> None:
        """Appends items. Raises `ValueError` for NaN and infinities, which JSON has not."""
        with self._path.open("a", encoding="utf-8") as file:
            for value in values:
                file.write(",\n" if self.count else "")
                file.write(json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False))
                self.count += 1

    def copy_into(self, target: TextIO) -> None:
        """Writes the array, brackets included, to an open file."""
        target.write("[\n")
        with self._path.open(encoding="utf-8") as file:
            shutil.copyfileobj(file, target, 1 << 16)
        target.write("\n]")
