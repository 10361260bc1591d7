"""Opens a dataset for its raters; no model is loaded."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.dataset.versions.record import name_now
from segmint.infra.storage.location import Location
from segmint.pipeline.engine.annotate.rating.desk import RatingAbout, RatingDesk
from segmint.pipeline.engine.annotate.rating.sample import SampleOptions, draw_sample
from segmint.pipeline.engine.annotate.source import ImageSource, check_images
from segmint.pipeline.quality.statistics.open_tables import open_tables
from segmint.pipeline.quality.view.index import ImageIndex


@contextmanager
def open_rating_desk(dataset: Location, options: SampleOptions) -> Iterator[RatingDesk]:
    """Draw the masks to rate, and open their images; scratch files are deleted at the end.

    Raises `UsageError` if there is no dataset that segmint wrote or it has no images, and as `draw_sample`.
    """
    manifest = load_manifest(dataset)
    check_images(dataset, manifest)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="segmint-rate-")))
        with open_tables(dataset, scratch=folder) as tables:
            sample = draw_sample(tables, options)
            index = stack.enter_context(closing(ImageIndex(tables, (), folder)))
        source = stack.enter_context(closing(ImageSource(dataset, index, folder)))
        about = RatingAbout(manifest.name, name_now(dataset))
        yield RatingDesk(dataset, about, source, sample, options.seed)
