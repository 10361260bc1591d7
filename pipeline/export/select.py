"""Selection of a dataset's images by a condition, pinned in a file that other commands accept: `segmint select`."""

from dataclasses import dataclass
from hashlib import sha256

from segmint.catalogs.dataset.outputs import note_output, refuse_inside
from segmint.catalogs.dataset.reader import Dataset
from segmint.catalogs.dataset.subsets import Selection
from segmint.catalogs.dataset.versions.record import VersionName
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.wording import counted


@dataclass(frozen=True)
class SelectResult:
    """Result of `segmint select`: the file, the number of selected images, and the version that they belong to.

    `sha256` identifies the selection: the version's digest, the condition, and the images' ids.
    """

    file: str
    images: int
    of: int
    sha256: str
    version: VersionName

    def lines(self) -> list[str]:
        """Return the result as lines for the user."""
        counts = f"{self.images:,} of {counted(self.of, 'image')} → {self.file}"
        return [counts, f"selection: sha256:{self.sha256}", self.version.line()]


def select_images(dataset: Location, condition: str, output: Location) -> SelectResult:
    """Select the images of a dataset's current state that meet `condition`, and write the file `output`.

    The dataset notes the file, so that takedowns list it. Raises `UsageError` if the condition is invalid or selects no
    image, and if `output` is inside the dataset, doesn't end with .json, or exists with other content.
    """
    refuse_inside(dataset, output, "--output")
    if not output.name.endswith(".json"):
        raise UsageError(f"--output {output}: expected a file that ends with .json, so that --select recognizes it")
    selection = Selection.of(dataset, condition)
    data = selection.to_json()
    note_output(dataset, "select", output, {output.name: sha256(data).hexdigest()})
    if not output.put_if_absent(data):
        raise UsageError(f"{output} already exists with other content. Choose another file, or delete it")
    version = VersionName(selection.dataset_digest.removeprefix("sha256:"), selection.dataset_version)
    return SelectResult(str(output), len(selection.ids), len(Dataset.open(dataset)), selection.sha256, version)
