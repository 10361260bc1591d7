"""The output folder of an export, with checks for leftover files and for changes of the dataset."""

from collections import Counter
from collections.abc import Container, Mapping

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.outputs import note_output
from segmint.infra.errors import UnfinishedError, UsageError
from segmint.infra.storage.location import Location
from segmint.infra.wording import counted, some


class ExportFolder:
    """A folder for files derived from a dataset. The dataset records the folder before the first file is written.

    A takedown therefore names the folder, even during the export or after it was interrupted. Memory grows with the
    number of files that an interrupted run left in the folder.
    """

    def __init__(self, dataset: Location, command: str, output: Location) -> None:
        """Record the folder in the dataset, and list its existing files."""
        self._dataset, self._command, self.location = dataset, command, output
        note_output(dataset, command, output, {})
        self._commits = CommitLog(dataset).committed()
        self._left = {entry.name for entry in output.walk()}
        self._folders: Counter[str] = Counter()  # number of files of this run per subfolder

    def wrote(self, name: str) -> None:
        """Record a file that this run writes or finds unchanged, once, by its path relative to the folder."""
        self._left.discard(name)
        if "/" in name:
            self._folders[_top(name)] += 1

    def complete(self, files: Mapping[str, str]) -> None:
        """Check the folder before its last file is written, and record that file's SHA-256 by its relative path.

        Raises `UsageError` if a subfolder, which tools read as a whole, contains files from elsewhere, because they may
        show images that were taken down. Raises `UnfinishedError` if files were added or deleted in the meantime, or if
        a shard was replaced since the start.
        """
        if left := sorted(name for name in self._left if _top(name) in self._folders):
            raise UsageError(
                f"{self.location} contains files that aren't part of this export, from another run or an earlier state "
                f"of the dataset: {some(left)}. Delete them, or choose another folder."
            )
        wrote = self._folders - Counter(_top(name) for name in files if "/" in name)
        if (there := self._count(files)) != wrote:
            raise UnfinishedError(
                f"{self.location} has {counted(there.total(), 'file')} in its folders, but this export wrote "
                f"{wrote.total():,}. Another run is writing there, or files were deleted. Delete it or choose another "
                "folder, then export again."
            )
        now = CommitLog(self._dataset).committed()
        if changed := [str(shard) for shard, generation in self._commits.items() if now.get(shard) != generation]:
            raise UnfinishedError(
                f"{self._dataset} was corrected during the export (shards: {some(changed)}), so images may have been "
                f"taken down or redacted. Delete {self.location} or choose another folder, then export again."
            )
        note_output(self._dataset, self._command, self.location, files)

    def _count(self, without: Container[str]) -> "Counter[str]":
        """Count the files of each subfolder that this run writes to."""
        names = (entry.name for entry in self.location.walk())
        return Counter(_top(name) for name in names if _top(name) in self._folders and name not in without)


def _top(name: str) -> str:
    return name.partition("/")[0]
