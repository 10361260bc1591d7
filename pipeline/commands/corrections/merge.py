"""`segmint merge`: merge annotators' submissions as the next generation of a dataset's shards."""

from segmint.pipeline.commands.common.arguments import AsJson, Config, Dataset, DryRun, Yes, storage_of
from segmint.pipeline.commands.common.console import confirmation, guarded, print_revision
from segmint.pipeline.commands.common.extras import needs


@guarded
@needs("build")
def merge(
    dataset: Dataset,
    dry_run: DryRun = False,
    yes: Yes = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Merge annotators' submissions into the dataset's tables.

    Submissions that are already merged are skipped.
    """
    from segmint.infra.storage.location import Location
    from segmint.pipeline.corrections.merge.run import list_merge, merge_submissions

    location = Location(storage_of(config), dataset)
    merged = list_merge(location) if dry_run else merge_submissions(location, confirmation("merge", yes))
    print_revision(merged, as_json, dataset, config)
