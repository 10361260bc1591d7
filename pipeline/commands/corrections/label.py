"""`segmint label`: label masks from a vocabulary."""

from typing import Annotated, Any

import typer

from segmint.pipeline.commands.common.arguments import AsJson, Config, Dataset, Device, DryRun, Yes, build_of
from segmint.pipeline.commands.common.console import confirmation, guarded, print_checked, print_dry_run
from segmint.pipeline.commands.common.extras import needs


@guarded
@needs("build")
def label(
    dataset: Dataset,
    vocabulary: Annotated[
        str | None, typer.Option("--vocabulary", metavar="FILE", help="Text file with one label per line.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="PATH", help="CLIP folder or TorchScript file, at the same path on all nodes."),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove all labels that models set.")] = False,
    device: Device = "cpu",
    dry_run: DryRun = False,
    yes: Yes = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Label masks from a vocabulary with CLIP.

    Labels from people and imports aren't changed. Uses Ray only on CPUs.
    """
    from segmint.infra.errors import UsageError
    from segmint.infra.storage.location import Location
    from segmint.pipeline.config.config import LOCAL
    from segmint.pipeline.corrections.label import label as label_masks
    from segmint.pipeline.corrections.label import list_labels

    if remove == (vocabulary is not None) or remove == (model is not None):
        raise UsageError("expected --vocabulary FILE and --model PATH, or --remove")
    build, storage = build_of(config)
    stage = None
    if vocabulary is not None and model is not None:
        from pathlib import Path

        from segmint.infra.device import resolve_compute
        from segmint.operators.custom.load import load_stage
        from segmint.operators.text.labels import MaskLabels
        from segmint.pipeline.export.categories import read_vocabulary

        texts = list(read_vocabulary(Location(storage, vocabulary)))
        arguments: dict[str, Any] = {"model": str(Path(model).resolve()), "vocabulary": texts}
        arguments["device"] = resolve_compute(device, "fp32").device
        MaskLabels.version(**arguments)  # check the arguments here, so that the errors of `version` aren't wrapped
        stage = load_stage(f"{MaskLabels.__module__}.{MaskLabels.__name__}", arguments)
    location = Location(storage, dataset)
    if dry_run:
        print_dry_run(list_labels(location, stage), as_json)
        return
    resources = LOCAL if build is None else build.resources
    done = label_masks(location, stage, confirmation("label", yes), resources=resources)
    print_checked(done, as_json, not_checked=done.listed.not_checked)
