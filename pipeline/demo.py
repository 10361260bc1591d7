"""Demo: a small build of real photographs with real weights in one folder, with overlay images to open."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.catalogs.layout import image_stem
from segmint.catalogs.source.collect import write_demo
from segmint.infra.errors import SegmintError
from segmint.model.automatic.rle import MaskRecord, Rle
from segmint.operators.overlay import draw_overlay, encode_png
from segmint.pipeline.build import run_build
from segmint.pipeline.building.execution.accounting import Accounting
from segmint.pipeline.config.config import load_config
from segmint.pipeline.masks.options import MasksOptions, masks_config
from segmint.pipeline.masks.run import make_masks, plan

CONFIG = {
    "name": "demo",
    "images_per_shard": 4,
    "license": {
        "allow": ["CC0-1.0", "CC-BY-2.0", "LicenseRef-public-domain"],
        "policy_date": "2026-11-22",  # keeps the digest the same on any day
    },
    "masks": {"profile": "sa1b", "crop_n_layers": 0},
    "rows_per_block": 1,
}
"""Demo configuration without its paths. To finish within minutes, the demo uses full 32x32 grids but no crops."""

CROPS_OF = "china.jpg"
"""Photograph to also segment with crops: china.jpg, which contains the most small objects."""

CROPS_SETTINGS = ("crop_n_layers=1",)
"""Settings for `CROPS_OF`, as for `segmint masks --set`. A single crop layer saves time."""


def run_demo(folder: Path, say: Callable[[str], None]) -> Accounting:
    """Write a catalog and a configuration to `folder`, build the dataset, and draw its masks.

    Then segment one photograph with a layer of crops. Calls `say` with each line for the user. The function is
    idempotent: a second call reuses all results.
    """
    folder.mkdir(parents=True, exist_ok=True)
    catalog = write_demo(folder)
    config = folder / "build.yaml"
    paths = {"catalog": str(catalog.resolve()), "output": str((folder / "dataset").resolve())}
    config.write_text(yaml.safe_dump({**CONFIG, **paths}, sort_keys=False), encoding="utf-8")
    say(f"segmint build {config}")
    accounting = run_build(load_config(str(config)))
    for line in accounting.lines():
        say(line)
    say("")
    say("rejected:")
    for path in sorted((folder / "dataset" / "rejects").glob("*.parquet")):
        for row in pq.read_table(path, partitioning=None).to_pylist():
            say(f"  {row['image_id']:<16} {row['reason']:<22} {row['detail']}")
    say("")
    say(f"the dataset: {folder / 'dataset'}")
    say("its masks:")
    for picture in draw_dataset(folder / "dataset", folder / "overlays"):
        say(f"  {picture}")
    say("")
    show_crops(folder / "photos" / CROPS_OF, folder / "overlays", say)
    return accounting


def draw_dataset(dataset: Path, folder: Path) -> list[Path]:
    """Draw the masks of each image in a small dataset, and return the paths of all overlays.

    Overlays that already exist in `folder` aren't drawn again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for sample in open_dataset(str(dataset)):
        picture = folder / f"{image_stem(sample.id)}.png"
        if not picture.exists():
            records = [MaskRecord(Rle(mask.size, mask.counts), mask.area) for mask in sample.masks]
            picture.write_bytes(encode_png(draw_overlay(sample.image, records)))
        pictures.append(picture)
    return pictures


def show_crops(photograph: Path, folder: Path, say: Callable[[str], None]) -> None:
    """Segment a photograph with crops, like `segmint masks`, and write the results to `folder` unless they exist.

    Raises `SegmintError` if the photograph can't be read or the masks can't be written.
    """
    document = folder / f"{photograph.stem}.json"
    picture = folder / f"{photograph.stem}.overlay.png"  # written after the document
    say(crops_command(photograph, document))
    if not (document.exists() and picture.exists()):
        options = MasksOptions(masks=masks_config("sa1b", CROPS_SETTINGS), overlay=True)
        (result,) = make_masks(plan([str(photograph)], str(document), options), report=lambda _: None)
        if result.error is not None:
            raise SegmintError(f"{photograph}: {result.error}")
    made = json.loads(document.read_text(encoding="utf-8"))
    whole = [0, 0, made["image"]["width"], made["image"]["height"]]
    from_image = sum(annotation["crop_box"] == whole for annotation in made["annotations"])
    from_crops = len(made["annotations"]) - from_image
    say(f"{from_image + from_crops} masks: {from_image} from the image, {from_crops} from its crops")
    say(f"  {picture}")


def crops_command(photograph: Path, document: Path) -> str:
    """Return the `segmint masks` command line that is equivalent to `show_crops`."""
    settings = [word for setting in CROPS_SETTINGS for word in ("--set", setting)]
    return shlex.join(["segmint", "masks", str(photograph), "-o", str(document), *settings, "--overlay"])
