"""Output folder of an evaluation. Existing files are never overwritten."""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow as pa

from segmint.catalogs.dataset.outputs import note_output, refuse_inside
from segmint.catalogs.parquet import RowGroupWriter
from segmint.infra.assets.cache import sha256_of
from segmint.infra.log import without_secrets
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location, put_new_file, refuse_existing
from segmint.infra.storage.storage import Storage
from segmint.pipeline.engine.evaluate.truth import Truth

RESULTS, ANSWER, PAGE, TABLES = "results.parquet", "evaluation.json", "index.html", "tables.md"


class OutputFolder(AbstractContextManager["OutputFolder"]):
    """Output of an evaluation, which collects rows in a local file and stores all files at the end. A context manager.

    Without a `folder`, nothing is written. Raises `UsageError` if one of the files already exists, or if the folder is
    inside a dataset among the `truths`, where a takedown wouldn't find the files.
    """

    def __init__(self, folder: str | None, storage: Storage, truths: Sequence[Truth], schema: pa.Schema) -> None:
        self._folder = None if folder is None else Location(storage, folder)
        self._datasets: list[Location] = []
        if self._folder is not None:
            self._datasets = [truth.dataset for truth in truths if truth.dataset is not None]
            for dataset in self._datasets:
                refuse_inside(dataset, self._folder, "-o")
            for name in (RESULTS, ANSWER, PAGE, TABLES):
                refuse_existing(self._folder / name)
        self._scratch = ScratchFolder()
        self._path = Path(self._scratch.name) / RESULTS
        self._writer = RowGroupWriter(self._path, schema)
        self._schema = schema

    @property
    def wanted(self) -> bool:
        """True if there is a folder to write to."""
        return self._folder is not None

    @property
    def page(self) -> str:
        """Path of the page, or an empty string without a folder."""
        return "" if self._folder is None else str(self._folder / PAGE)

    def add(self, table: pa.Table) -> None:
        """Add rows in the schema."""
        if self._folder is not None:
            self._writer.add(table.cast(self._schema).combine_chunks().to_batches())

    def put(self, answer: Mapping[str, Any], page: str, tables: str) -> None:
        """Record the files in each dataset among the truths, and then store them, with the JSON result last.

        `tables` contains the tables as Markdown.
        """
        if self._folder is None:
            return
        self._writer.__exit__(None, None, None)
        text = json.dumps(without_secrets(answer), indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n"
        files = {RESULTS: self._path}
        for name, content in ((PAGE, page), (TABLES, tables), (ANSWER, text)):
            files[name] = self._path.with_name(name)
            files[name].write_text(content, encoding="utf-8")
        hashes = {name: sha256_of(path) for name, path in files.items()}
        for dataset in self._datasets:
            note_output(dataset, "evaluate", self._folder, hashes)
        for name, path in files.items():
            put_new_file(self._folder / name, path)

    def __exit__(self, *_: object) -> None:
        self._scratch.cleanup()
