"""The sizes of a dataset's images by the names in a file: known before anything of a mask is decoded."""

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.infra.storage.location import Location
from segmint.operators.annotations.names import image_number
from segmint.operators.shards.committed_rows import read_file
from segmint.operators.shards.revise import with_holding
from segmint.operators.shards.tables import read_table
from segmint.pipeline.corrections.imports.matching import Match


def sizes_of(dataset: Location, manifest: DatasetManifest, match: Match) -> Callable[[str], tuple[int, int] | None]:
    """Return a function from the name of an image to its (height, width) in the dataset; None if it is not there.

    Only names with a number are looked up. Each shard's table is read once, whatever the order of the names; 8 bytes an
    image of these shards stay in memory.
    """
    per_shard = manifest.images_per_shard

    @cache
    def of_shard(shard: int) -> NDArray[np.int32]:
        """(images of a shard, 2): height and width; 0 where there is no image."""

        def read(commit: Commit) -> NDArray[np.int32]:
            table = read_table(read_file(dataset, commit.file("images")), "images")
            sizes = np.zeros((per_shard, 2), np.int32)
            sizes[np.asarray(table.column("ordinal")) - shard * per_shard] = np.stack(
                [np.asarray(table.column(name)) for name in ("height", "width")], axis=1
            )
            return sizes

        found = with_holding(dataset, shard, read)
        return np.zeros((per_shard, 2), np.int32) if found is None else found

    def size(name: str) -> tuple[int, int] | None:
        number = image_number(name) if match is Match.NUMBER else None
        if number is None or not 0 < number <= manifest.shards * per_shard:
            return None
        shard, place = divmod(number - 1, per_shard)
        height, width = of_shard(shard)[place].tolist()
        return (height, width) if height else None

    return size
