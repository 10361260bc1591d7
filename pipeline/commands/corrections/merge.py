"""`segmint merge`: merge annotators' submissions as the next generation of a dataset's shards."""

from segmint.pipeline.commands.common.arguments import AsJson, Config, Dataset, DryRun, Yes, storage_of
from segmint.pipeline.commands.common.console import (
    confirmation,
    exit_unless_clean,
    guarded,
    print_dry_run,
    print_next,
    print_result,
)
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
    if dry_run:
        listed = list_merge(location)
        print_dry_run(listed, as_json)
    else:
        merged = merge_submissions(location, confirmation("merge", yes))
        listed = merged.listed
        print_result(merged, as_json)
        print_next(as_json, "audit", dataset, config=config)
    exit_unless_clean((), listed.not_checked)
