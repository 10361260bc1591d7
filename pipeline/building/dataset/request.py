"""Request of `segmint build PHOTOGRAPHS -o DATASET`, and the checks of it that need neither a scan nor a configuration.

This module imports little, so that a wrong command gets its answer at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segmint.catalogs.endings import IMAGE_ENDINGS
from segmint.catalogs.layout import MANIFEST
from segmint.catalogs.licenses import validate_identifier
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import ALLOWED_SCHEMES, LOCAL, base_name, is_below, local_path, parent, redact, scheme

_YAML = (".yaml", ".yml")
_CATALOGS = (".parquet", ".jsonl", ".ndjson", ".csv", ".gz")
_EXAMPLE = "-o dataset --license CC0-1.0"


@dataclass(frozen=True)
class BuildRequest:
    """A build of the photographs below a folder or prefix, which may have only the licenses in `allow`.

    `license` is asserted for photographs without a statement of their own. `output` doesn't end with a slash.
    """

    photographs: str
    output: str
    license: str | None
    allow: tuple[str, ...]
    overrides: tuple[str, ...] = ()

    @property
    def config_file(self) -> str:
        """Path or URI of the configuration, beside the dataset."""
        return f"{self.output}-build.yaml"

    @property
    def catalogs(self) -> str:
        """Beginning of the path or URI of the request's catalogs, beside the dataset. The rest is a file's hash."""
        return f"{self.output}-catalog-"


def names_configuration(source: str, *, flagged: bool) -> bool:
    """Return whether the argument of `segmint build` names a configuration, and not photographs.

    `flagged` tells whether options for photographs are given. Without them, any file may be a configuration, except a
    photograph or a catalog.
    """
    name = source.lower()
    if name.endswith(_YAML) or flagged:
        return name.endswith(_YAML)
    if name.endswith(IMAGE_ENDINGS + _CATALOGS) or _refuses(source):
        return False
    if scheme(source) != LOCAL:
        return Location(Storage(), source).exists()
    return local_path(source).exists() and not local_path(source).is_dir()


def parse_request(
    photographs: str, output: str | None, license: str | None, allow: Sequence[str], overrides: Sequence[str]
) -> BuildRequest:
    """Return the request that these arguments describe. Raises `UsageError` if nothing can be built from it."""
    _check_source(photographs)
    if output is None:
        raise UsageError(
            f"-o is missing: name a folder for the dataset, as in `segmint build {photographs} {_EXAMPLE}`. If "
            f"{photographs} should be a configuration, its name must end in .yaml"
        )
    _check_output(photographs, output)
    asserted = None if license is None else validate_identifier(license)
    allowed = {validate_identifier(each) for each in (*allow, *([license] if license is not None else []))}
    if not allowed:
        raise UsageError(
            "no license is allowed, so nothing was built. If you know the license of the photographs, assert it, as in "
            "--license CC0-1.0. If each photograph's sidecar file states its license (photo.jpg.license), name the "
            "ones to allow, as in --allow CC-BY-4.0"
        )
    plain = output if output.endswith("://") else output.rstrip("/")
    request = BuildRequest(photographs, plain, asserted, tuple(sorted(allowed)), tuple(overrides))
    if not overrides:  # they may contain the options of the stores
        check_stores(request, Storage())
    return request


def check_stores(request: BuildRequest, storage: Storage) -> None:
    """Raise `UsageError` if there are no files to scan, or if the output has a dataset that isn't of a request."""
    dataset = Location(storage, request.output)
    if not Location(storage, request.config_file).exists() and (dataset / MANIFEST).exists():
        raise UsageError(
            f"{dataset} already contains a dataset, but {request.config_file} doesn't exist, so it wasn't built by this "
            "command: run `segmint build` with the dataset's configuration, or choose another -o"
        )
    if next(Location(storage, request.photographs).walk(), None) is None:
        raise UsageError(f"there are no files below {request.photographs}: expected a folder or prefix with photographs")


def _refuses(uri: str) -> bool:
    head, separator, _ = uri.partition("://")
    return bool(separator) and head.lower() not in ALLOWED_SCHEMES


def _check_source(source: str) -> None:
    if _refuses(source):
        raise UsageError(
            f"{redact(source)}: builds don't download photographs. Copy them to a folder or a store first: expected a "
            f"local folder, or one of {', '.join(f'{each}://' for each in sorted(ALLOWED_SCHEMES - {LOCAL}))}"
        )
    if source.lower().endswith(_CATALOGS):
        raise UsageError(
            f"{source} is a catalog: write a configuration for it with `segmint init --catalog {source}`, or name the "
            "folder of the photographs instead"
        )
    if scheme(source) != LOCAL:
        return
    path = local_path(source)
    if path.is_file():
        kind = "a photograph: name its folder" if source.lower().endswith(IMAGE_ENDINGS) else "a file"
        raise UsageError(f"{source} is {kind}: expected a folder of photographs, or a configuration (.yaml)")
    if not path.exists():
        raise UsageError(f"no such file or folder: {source}: expected a folder of photographs, or a configuration")


def _check_output(photographs: str, output: str) -> None:
    if base_name(output) in ("", ".", "..") or parent(output).rstrip("/") == output.rstrip("/"):
        raise UsageError(f"-o {output}: expected a folder or prefix with a name of its own, such as {output}/dataset")
    if output.lower().endswith(_YAML):
        raise UsageError(f"-o {output} names the dataset's folder, not the configuration, which is written beside it")
    if is_below(output, photographs) or is_below(photographs, output):
        raise UsageError(
            f"-o {output} and the photographs in {photographs} are inside one another, so a later scan would find the "
            "dataset's own files: choose a dataset outside the folder of the photographs"
        )
    local = scheme(photographs) == LOCAL
    if local and scheme(output) != LOCAL:
        raise UsageError(
            f"the photographs in {photographs} are local files, which the catalog of a dataset in a store, {output}, "
            "cannot name: choose a local -o, or copy the photographs to the store"
        )
    if scheme(output) == LOCAL and local_path(output).is_file():
        raise UsageError(f"-o {output} is a file: expected a folder for the dataset")
    if local and not is_below(photographs, parent(str(local_path(output).absolute()))):
        beside = Path(local_path(photographs).resolve()).parent / base_name(output)
        raise UsageError(
            f"the photographs in {photographs} are outside the folder of {output}, so the dataset would publish their "
            f"absolute paths: choose a dataset beside the photographs or above them, such as -o {beside}"
        )
