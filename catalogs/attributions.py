"""Attribution: licenses that require it, URLs of license texts, and the file that credits each image's author."""

import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from segmint.catalogs.layout import image_name
from segmint.catalogs.licenses import canonical_identifier
from segmint.infra.errors import UsageError
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location

COLUMNS = ("image", "id", "image_id", "attribution", "provider", "license", "license_url", "source_url")
"""Columns of an attribution file. `image` is the image's name in the tar, and `image_id` is its name in the catalog."""

ATTRIBUTION_FAMILIES = (
    "CC-BY-",
    "DL-DE-BY-",
    "etalab-",
    "GFDL-",
    "LAL-",
    "NLOD-",
    "ODC-By-",
    "OGDL-Taiwan-",
    "OGL-",
)
"""Prefixes of SPDX identifiers. Licenses with these prefixes are for works and data, and require attribution."""

_CREATIVE_COMMONS = re.compile(r"CC-(BY(?:-NC)?(?:-SA|-ND)?|SA)-(\d\.\d)(?:-([A-Z]+))?")
_PUBLIC_DOMAIN = {"CC0-1.0": "zero/1.0", "CC-PDM-1.0": "mark/1.0"}
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+!|~&])")
# Characters that start a formula, including full-width forms, and characters that spreadsheets skip before a formula.
# Source: OWASP, "CSV Injection".
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_CHANGES = "The images were re-encoded; large ones were scaled down, and regions of some were made unrecognizable."

Row = Mapping[str, Any]


def asks_for_attribution(license: str | None) -> bool:
    """Return whether the license with this SPDX identifier requires attribution. An unknown `LicenseRef-…` doesn't."""
    identifier = canonical_identifier((license or "").strip())
    return identifier is not None and identifier.startswith(ATTRIBUTION_FAMILIES)


def license_url(license: str | None) -> str | None:
    """Return the URL of a license's text at Creative Commons or in SPDX's list, or None for a `LicenseRef-…`."""
    identifier = canonical_identifier((license or "").strip())
    if identifier is None or identifier.startswith("LicenseRef-"):
        return None
    if identifier in _PUBLIC_DOMAIN:
        return f"https://creativecommons.org/publicdomain/{_PUBLIC_DOMAIN[identifier]}/"
    match = _CREATIVE_COMMONS.fullmatch(identifier)
    if match is None:
        return f"https://spdx.org/licenses/{identifier}.html"
    parts = [part.lower() for part in match.groups() if part is not None]
    return f"https://creativecommons.org/licenses/{'/'.join(parts)}/"


def check_ending(uri: str) -> None:
    """Raise `UsageError` if an attribution file's extension doesn't select a format."""
    if not uri.lower().endswith(tuple(_WRITERS)):
        raise UsageError(f"expected a file name that ends in {', '.join(_WRITERS)}; got {uri!r}")


def write_attributions(rows: Iterable[Row], destination: Location) -> int:
    """Write a file with the author, license, and source of each image, and return the number of images.

    `rows` are rows of `images` with the columns id, image_id, attribution, provider, license, and source_url. They can
    be a stream. The file's extension selects CSV, JSON Lines, or Markdown. In CSV, text that a spreadsheet would run as
    a formula is prefixed with a single quote. Raises `UsageError` for any other extension.
    """
    check_ending(destination.uri)
    write = _WRITERS["." + destination.uri.lower().rpartition(".")[2]]
    with ScratchFolder() as folder:
        path = Path(folder) / "attributions"
        with path.open("w", encoding="utf-8", newline="") as file:
            count = write(map(_entry, rows), file)
        destination.put_file(path)
    return count


def write_attributions_csv(rows: Iterable[Row], file: TextIO) -> int:
    """Write attributions as CSV to a text file, and return the number of rows.

    The file must be open without newline translation.
    """
    return _write_csv(map(_entry, rows), file)


def _entry(row: Row) -> dict[str, Any]:
    entry = {**row, "image": image_name(row["id"]), "license_url": license_url(row["license"])}
    return {name: entry[name] for name in COLUMNS}


def _write_csv(entries: Iterable[Row], file: TextIO) -> int:
    line = io.StringIO(newline="")
    writer = csv.writer(line)  # quotes its line terminator's characters, which are \r and \n
    count = -1
    for row in itertools.chain([COLUMNS], ([_cell(value) for value in entry.values()] for entry in entries)):
        writer.writerow(row)
        file.write(line.getvalue().removesuffix("\r\n") + "\n")
        line.seek(0)
        line.truncate()
        count += 1
    return count


def _cell(value: Any) -> Any:
    """Convert a value for a cell. If a spreadsheet would run a text as a formula, prefix it with a single quote."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value


def _write_json_lines(entries: Iterable[Row], file: TextIO) -> int:
    return sum(1 for entry in entries if file.write(json.dumps(entry, ensure_ascii=False) + "\n"))


def _write_markdown(entries: Iterable[Row], file: TextIO) -> int:
    file.write(f"# Attributions\n\n{_CHANGES}\n\n")
    return sum(1 for entry in entries if file.write(f"- {_sentence(entry)}\n"))


def _sentence(entry: Row) -> str:
    """Format the title, author, source, and license of an image in the way that Creative Commons recommends."""
    title = _link(entry["image_id"], entry["source_url"])
    author = f" by {_plain(entry['attribution'])}" if entry["attribution"] else ""
    provider = f", from {_plain(entry['provider'])}" if entry["provider"] else ""
    license = _link(entry["license"] or "no license", entry["license_url"])
    return f"`{entry['image']}`: {title}{author}{provider}, {license}"


def _link(text: str, url: str | None) -> str:
    if url is None or not re.fullmatch(r"https?://[^\s<>\\]+", url):
        return _plain(text)
    return f"[{_plain(text)}](<{url}>)"


def _plain(text: str) -> str:
    """Escape a text from a catalog for Markdown, and replace its line breaks with spaces."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


_WRITERS: dict[str, Callable[[Iterable[Row], TextIO], int]] = {
    ".csv": _write_csv,
    ".jsonl": _write_json_lines,
    ".md": _write_markdown,
}
