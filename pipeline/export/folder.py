"""The output folder of an export: its list of files, and checks for leftover files and for changes of the dataset."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.manifest import read_dataset_id
from segmint.catalogs.dataset.outputs import FILES_LIST, note_output
from segmint.catalogs.dataset.versions.digest import short_digest
from segmint.catalogs.dataset.versions.record import VersionName
from segmint.catalogs.layout import canonical_json
from segmint.infra.assets.cache import sha256_of
from segmint.infra.errors import UnfinishedError, UsageError
from segmint.infra.storage.location import Location
from segmint.infra.wording import counted, some

FOLDERS = frozenset({"annotations", "data", "fields", "images", "labels", "masks"})
"""Subfolders that exports write to."""


class OutputFolder:
    """Folder for files derived from a dataset.

    The dataset records the folder before the first file is written. A takedown therefore lists the folder even if the
    export is still running or was interrupted.

    `segmint-files.jsonl` lists the files with their SHA-256. Until the export is complete, this list only contains its
    first line, which identifies the export. Memory grows with the number of files that an interrupted run left in the
    folder.
    """

    def __init__(
        self,
        dataset: Location,
        command: str,
        output: Location,
        version: VersionName,
        scratch: Path,
        commits: Mapping[int, int] | None = None,
    ) -> None:
        """Record the folder in the dataset and list its existing files. The list is kept in the folder `scratch`.

        `commits` maps each shard to its generation at the start of the export (default: now).

        Raises `UsageError`, before anything is written, if the folder contains files from an export of another dataset
        or version, or from another command.
        """
        self._dataset, self._command, self.location = dataset, command, output
        self._commits = CommitLog(dataset).committed() if commits is None else commits
        about = {
            "command": command,
            "dataset_digest": f"sha256:{version.digest}",
            "dataset_id": read_dataset_id(dataset),
        }
        self._list, self._listed = scratch / FILES_LIST, 0
        self._list.write_bytes(canonical_json(about))
        self._left = {entry.name for entry in output.walk()}
        if FILES_LIST in self._left:
            with (output / FILES_LIST).open() as stream:
                if stream.readline(1 << 16) != self._list.read_bytes():
                    raise UsageError(_of_another(output, version))
        elif left := sorted(name for name in self._left if "/" in name and _top(name) in FOLDERS):
            raise UsageError(self._not_ours(left))
        note_output(dataset, command, output, {}, complete=False)
        if FILES_LIST not in self._left and not (output / FILES_LIST).put_file_if_absent(self._list):
            raise UsageError(_of_another(output, version))
        self._folders: Counter[str] = Counter()  # number of files of this run per subfolder

    def wrote(self, name: str, file: Path) -> None:
        """List a file by its path relative to the folder.

        Call this once for each file that this run writes or finds unchanged.
        """
        self._left.discard(name)
        if "/" in name:
            self._folders[_top(name)] += 1
        row = {"path": name, "bytes": file.stat().st_size, "sha256": sha256_of(file)}
        with self._list.open("ab") as rows:
            rows.write(canonical_json(row))
        self._listed += 1

    def complete(self, name: str, file: Path) -> None:
        """Check the folder before its last file is written, add that file to the list, and write the list.

        Raises `UsageError` if a subfolder that tools read as a whole contains files that this export didn't write,
        because these files may show images that were taken down. Raises `UnfinishedError` if files were added or
        deleted in the meantime, or if a shard was replaced since the start.
        """
        if "/" in name:
            self._folders[_top(name)] += 0  # check this subfolder for foreign files, even if it's otherwise empty
        if left := sorted(each for each in self._left - {name} if _top(each) in self._folders):
            raise UsageError(self._not_ours(left))
        others = (entry.name for entry in self.location.walk() if entry.name != name)
        there = Counter(_top(each) for each in others if _top(each) in self._folders)
        if there != self._folders:
            raise UnfinishedError(
                f"{self.location} has {counted(there.total(), 'file')} in its folders, but this export wrote "
                f"{self._folders.total():,}. Another run is writing there, or files were deleted. Delete it or choose "
                "another folder, then export again."
            )
        now = CommitLog(self._dataset).committed()
        if changed := [str(shard) for shard, generation in self._commits.items() if now.get(shard) != generation]:
            raise UnfinishedError(
                f"{self._dataset} was corrected during the export (shards: {some(changed)}), so images may have been "
                f"taken down or redacted. Delete {self.location} or choose another folder, then export again."
            )
        self.wrote(name, file)
        (self.location / FILES_LIST).put_file(self._list)
        files, listed = {name: sha256_of(file)}, sha256_of(self._list)
        note_output(self._dataset, self._command, self.location, files, listed, self._listed)

    def _not_ours(self, names: list[str]) -> str:
        return (
            f"{self.location} contains files that aren't part of this export, from another run or an earlier state of "
            f"the dataset: {some(names)}. Delete them, or choose another folder."
        )


def _of_another(output: Location, version: VersionName) -> str:
    return (
        f"{output} contains an export of another dataset, of another version, or with other options, according to "
        f"{FILES_LIST}. This dataset's digest is {short_digest(version.digest)}. Delete the folder, or choose another."
    )


def _top(name: str) -> str:
    return name.partition("/")[0]
