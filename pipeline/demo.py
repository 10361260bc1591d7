"""The demonstration: a small build of real photographs with real weights, in one folder, with pictures to open."""

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from catalogs.demo import write_demo
from catalogs.reader import MaskAnnotation, open_dataset
from model.automatic.records import MaskRecord
from model.automatic.rle import Rle
from pipeline.accounting import Accounting
from pipeline.build import run_build
from pipeline.config import load_config
from pipeline.overlay import draw_overlay, encode_png

CONFIG = {
    "name": "demo",
    "images_per_shard": 4,
    "license": {"allow": ["CC0-1.0", "CC-BY-2.0", "LicenseRef-public-domain"]},
    "masks": {"profile": "sa1b", "crop_n_layers": 0},
    "rows_per_block": 1,
}
"""The demonstration's configuration but for its paths: full 32x32 grids, no crops, so that it takes minutes."""


def run_demo(folder: Path, say: Callable[[str], None]) -> Accounting:
    """Writes a catalog and a configuration into `folder`, builds the dataset, and draws its masks.

    A second call finds that nothing is left to do. `say` takes what is to be told, line by line.
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
    say("refused:")
    for path in sorted((folder / "dataset" / "rejects").glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            say(f"  {row['image_id']:<16} {row['reason']:<22} {row['detail']}")
    say("")
    say(f"the dataset: {folder / 'dataset'}")
    say("its masks, to look at:")
    for picture in draw_dataset(folder / "dataset", folder / "overlays"):
        say(f"  {picture}")
    return accounting


def draw_dataset(dataset: Path, folder: Path) -> list[Path]:
    """Draws the masks of each image of a small dataset into `folder`; returns the pictures, drawn or there already."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for sample in open_dataset(str(dataset)):
        picture = folder / f"sa_{sample.row['id']}.png"
        if not picture.exists():
            records = [_record(annotation) for annotation in sample.masks]
            picture.write_bytes(encode_png(draw_overlay(sample.image, records)))
        pictures.append(picture)
    return pictures


def _record(annotation: MaskAnnotation) -> MaskRecord:
    return MaskRecord(
        segmentation=Rle(annotation.size, annotation.counts),
        area=annotation.area,
        bbox=annotation.bbox,
        predicted_iou=annotation.predicted_iou,
        stability_score=annotation.stability_score,
        crop_box=annotation.crop_box,
        point_coords=annotation.point_coords[0],
    )
