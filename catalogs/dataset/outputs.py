"""Files that commands write about a dataset: where they may go, and which of those in it nobody knows."""

import re

from segmint.catalogs.dataset.manifest import manifest_generations, parse_manifest_name
from segmint.catalogs.dataset.tombstones import TOMBSTONES
from segmint.catalogs.layout import (
    COMMITS,
    REPORT,
    SHARDS_INDEX,
    SUMMARIES,
    is_part_path,
    parse_commit_name,
    parse_data_path,
)
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.stores import TEMPORARY_PREFIX
from segmint.infra.uris import base_name, is_below

_JSON = re.compile(rf"(?:{TOMBSTONES}/[0-9a-f]{{12}}|{SUMMARIES}/\d{{6,}}-[0-9a-f]{{12}})\.json")


def refuse_inside(dataset: Location, target: Location, option: str) -> None:
    """Raise `UsageError` if `target`, given as `option`, is in the dataset but not in its `report/`.

    A takedown removes `report/` and knows no other place in the dataset where a command may have named an image.
    """
    allowed = not is_below(target.uri, dataset.uri) or is_below(target.uri, (dataset / REPORT).uri)
    if not allowed and manifest_generations(dataset):
        raise UsageError(
            f"{option}: {target} is inside the dataset {dataset}, where a takedown would not find it: choose a place "
            f"outside, or in {dataset / REPORT}"
        )


def unknown_files(dataset: Location) -> list[str]:
    """Return the paths of all files and links in a dataset that segmint did not put there, sorted; none is opened.

    What has only older versions left in its bucket counts, too. `report/` is left out.
    """
    return [path for path in dataset.walk_ever() if not _is_known(path)]


def _is_known(path: str) -> bool:
    folder, _, name = path.rpartition("/")
    if not folder:
        known = path == SHARDS_INDEX or parse_manifest_name(path) is not None
    elif folder == COMMITS:
        known = parse_commit_name(name) is not None
    else:
        known = parse_data_path(path) is not None or is_part_path(path) or _JSON.fullmatch(path) is not None
    return known or path.partition("/")[0] == REPORT or base_name(path).startswith(TEMPORARY_PREFIX)
