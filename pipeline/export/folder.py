"""The folder of an export: what a run before left in it, and whether the dataset is still what was exported."""

from collections import Counter
from collections.abc import Container, Mapping

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.outputs import note_output
from segmint.infra.errors import UnfinishedError, UsageError
from segmint.infra.storage.location import Location
from segmint.infra.wording import counted, some


class ExportFolder:
    """A folder that gets what is made of a dataset. The dataset's note of it is there before its first file.

    So a takedown that happens meanwhile, or after the export was killed, names the folder. Memory grows with the files
    that are in the folder at the start, of a run that was killed.
    """

    def __init__(self, dataset: Location, command: str, output: Location) -> None:
        """Note the folder in the dataset, and what it holds now."""
        self._dataset, self._command, self.location = dataset, command, output
        note_output(dataset, command, output, {})
        self._commits = CommitLog(dataset).committed()
        self._left = {entry.name for entry in output.walk()}
        self._folders: Counter[str] = Counter()  # how many files of this run each of the folders below it has

    def wrote(self, name: str) -> None:
        """Note a file that this run puts, or finds as it is, by its path below the folder; each one once."""
        self._left.discard(name)
        if "/" in name:
            self._folders[_top(name)] += 1

    def complete(self, files: Mapping[str, str]) -> None:
        """Check the folder before its last file is put, and note that one: its SHA-256 by its path below the folder.

        Raises `UsageError` if a folder below it, which tools read as a whole, has files that are not this run's: they
        may be of images that were taken down. Raises `UnfinishedError` if they were put or deleted meanwhile, or if a
        shard was replaced since the start.
        """
        if left := sorted(name for name in self._left if _top(name) in self._folders):
            raise UsageError(
                f"{self.location} has files that are not part of this export, of another run or of the dataset as it "
                f"was: {some(left)}: delete them, or choose another folder"
            )
        wrote = self._folders - Counter(_top(name) for name in files if "/" in name)
        if (there := self._count(files)) != wrote:
            raise UnfinishedError(
                f"{self.location} has {counted(there.total(), 'file')} in its folders, and this export put "
                f"{wrote.total():,}: another run is writing there, or files were deleted; delete it, or choose another "
                "folder, and export again"
            )
        now = CommitLog(self._dataset).committed()
        if changed := [str(shard) for shard, generation in self._commits.items() if now.get(shard) != generation]:
            raise UnfinishedError(
                f"{self._dataset} was corrected while it was exported (shards: {some(changed)}): images may have been "
                f"taken down or redacted; delete {self.location}, or choose another folder, and export again"
            )
        note_output(self._dataset, self._command, self.location, files)

    def _count(self, without: Container[str]) -> "Counter[str]":
        """Count the files of each folder that this run puts files into."""
        names = (entry.name for entry in self.location.walk())
        return Counter(_top(name) for name in names if _top(name) in self._folders and name not in without)


def _top(name: str) -> str:
    return name.partition("/")[0]
