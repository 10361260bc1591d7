"""`segmint merge`: what people answered, as the next generation of a dataset's images."""

from segmint.pipeline.commands.common.arguments import AsJson, Config, Dataset, DryRun, Yes, storage_of
from segmint.pipeline.commands.common.confirm import confirm, require_terminal
from segmint.pipeline.commands.common.console import answer_with, guarded, say_next
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
    """Put what people answered into the dataset's tables.

    Answers that were merged before change nothing.
    """
    from segmint.infra.storage.location import Location
    from segmint.pipeline.corrections.merge.run import list_merge, merge_answers

    location = Location(storage_of(config), dataset)
    if dry_run:
        answer_with(list_merge(location), as_json)
        return
    if not yes:
        require_terminal("merge")
    answer_with(merge_answers(location, None if yes else confirm), as_json)
    say_next(as_json, "audit", dataset, config=config)
