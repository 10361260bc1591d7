"""Request of `segmint build PHOTOGRAPHS -o DATASET`, and the checks of it that need neither a scan nor a configuration.

This module imports little, so that a wrong command gets its answer at once.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from segmint.catalogs.layout import IMAGE_ENDINGS, MANIFEST
from segmint.catalogs.licenses import validate_identifier
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import LOCAL, absolute, base_name, is_below, local_path, parent, redact, scheme

NOTHING_BUILT = "If nothing was built yet, you can also delete"
"""Beginning of the advice on a configuration that an earlier command wrote."""

_YAML = (".yaml", ".yml")
_CATALOGS = (".parquet", ".jsonl", ".ndjson", ".csv", ".gz")


@dataclass(frozen=True)
class BuildRequest:
    """A build of the photographs below a folder or prefix, which may have only the licenses in `allow`.

    `license` is asserted for photographs that don't state one. `output` is absolute and doesn't end with a
    slash. `overrides` are those of `--set`.
    """

    photographs: str
    output: str
    license: str | None
    allow: tuple[str, ...]
    overrides: tuple[str, ...] = ()

    @property
    def head(self) -> str:
        """First line of the configuration: the command that writes it, without its overrides."""
        words = ["segmint", "build", self.photographs, "-o", self.output]
        for each in self.allow:
            words += ["--license" if each == self.license else "--allow", each]
        return f"# {shlex.join(words)}"

    @property
    def config_file(self) -> str:
        """Path or URI of the configuration, beside the dataset."""
        return f"{self.output}-build.yaml"

    @property
    def catalogs(self) -> str:
        """Beginning of the names of catalogs, beside the dataset. A file's hash and its extension follow."""
        return f"{self.output}-catalog"


def names_configuration(source: str, *, flagged: bool) -> bool:
    """Return whether the argument of `segmint build` names a configuration, and not photographs.

    `flagged` tells whether an option for photographs is given. Without one, a local configuration may have any name,
    except that of a photograph or a catalog.
    """
    name = source.lower()
    if flagged or name.endswith((*_YAML, *_CATALOGS, *IMAGE_ENDINGS)) or "://" in name:
        return name.endswith(_YAML)
    return not local_path(source).is_dir()


def parse_request(
    photographs: str, output: str | None, license: str | None, allow: Sequence[str], overrides: Sequence[str]
) -> BuildRequest:
    """Return the request that these arguments describe. Raises `UsageError` if nothing can be built from it."""
    _check_source(photographs)
    if output is None:
        raise UsageError(
            f"-o is missing: name the dataset's folder, as in `segmint build {photographs} -o dataset --license "
            "CC0-1.0`. The name of a configuration must end in .yaml"
        )
    photographs, output = (absolute(each).rstrip("/") for each in (photographs, output))
    _check_output(photographs, output)
    asserted = None if license is None else validate_identifier(license)
    allowed = {validate_identifier(each) for each in allow} | {asserted} - {None}
    if not allowed:
        raise UsageError(
            "no license is allowed, so nothing was built. If you know the photographs' license, assert it: --license "
            "CC0-1.0. If sidecar files such as photo.jpg.license state their licenses, allow them: --allow CC-BY-4.0"
        )
    request = BuildRequest(photographs, output, asserted, tuple(sorted(map(str, allowed))), tuple(overrides))
    if not overrides:  # otherwise, these may contain the options of the stores
        check_stores(request, Storage())
    return request


def check_stores(request: BuildRequest, storage: Storage) -> None:
    """Raise `UsageError` if there are no files to scan, or if another command started to build the output."""
    dataset, file = Location(storage, request.output), Location(storage, request.config_file)
    if file.exists():
        head = file.read().partition(b"\n")[0].decode(errors="replace")
        if head != request.head:
            raise UsageError(
                f"{file} was written by another command: {head.removeprefix('# ')}\nRepeat that command, or choose "
                f"another -o. {NOTHING_BUILT} {file}"
            )
    elif (dataset / MANIFEST).exists():
        raise UsageError(
            f"{dataset} already contains a dataset, but {file} doesn't exist: choose another -o, or run `segmint "
            "build` with the configuration that the dataset was built with"
        )
    if next(Location(storage, request.photographs).walk(), None) is None:
        raise UsageError(f"there are no files below {request.photographs}: name the photographs' folder or prefix")


def _check_source(source: str) -> None:
    name = source.lower()
    if name.partition("://")[0] in ("http", "https"):
        raise UsageError(
            f"{redact(source)}: builds don't download photographs. Copy them to a local folder, or to a store such as "
            "s3://, az://, or gs://"
        )
    if name.endswith(_CATALOGS):
        raise UsageError(
            f"{source} is a catalog: name the photographs' folder, or write a configuration for the catalog with "
            f"`segmint init --catalog {source}`"
        )
    if scheme(source) == LOCAL and not local_path(source).is_dir():
        found = "isn't a folder" if local_path(source).exists() else "doesn't exist"
        raise UsageError(f"{source} {found}: expected a folder of photographs, or a configuration (.yaml)")


def _check_output(photographs: str, output: str) -> None:
    if parent(output) == output or base_name(output) == ".." or output.lower().endswith(_YAML):
        example = f"{output.rstrip('/.')}/dataset"
        raise UsageError(f"-o {output}: expected a folder or prefix for the dataset, such as {example}")
    if is_below(output, photographs) or is_below(photographs, output):
        raise UsageError(
            f"-o {output} and {photographs} are inside one another, so a scan would find the dataset's own files: "
            "choose a dataset outside the photographs' folder"
        )
    folder = parent(output)
    if scheme(photographs) == LOCAL and not is_below(photographs, folder):
        beside = local_path(photographs).resolve().parent / base_name(output)
        raise UsageError(
            f"{photographs} is outside {folder}. A dataset publishes the paths of local photographs, relative to the "
            f"folder that contains it: choose one beside or above the photographs, such as -o {beside}, or copy them"
        )
