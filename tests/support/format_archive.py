"""Archive of datasets of the frozen format in every state, and what tests need to continue them.

    python -m tests.support.format_archive build/version-N

builds the datasets of `STATES` in an empty folder, with `segmint build` and the functions behind `segmint redact`,
`takedown`, `label`, `annotate`, and `merge`. It writes them to `tests/end_to_end/version-N.tar.xz`, which must not
exist: after a release, the archive never changes. Only the random ID and the times are replaced, so the same machine
writes the same bytes again. NOTICE credits the photographs.
"""

import json
import shutil
import sys
import tarfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.dataset.submissions import Return, put_return, put_submission
from segmint.catalogs.dataset.tombstones import TakedownRequest
from segmint.catalogs.dataset.versions import latest_version, put_version
from segmint.catalogs.layout import DATASET_ID, SCHEMA_VERSION, canonical_json
from segmint.infra.storage.location import Location
from segmint.operators.custom.contract import StageRow, StageSpec, load_stage
from segmint.operators.shards.put import member_info
from segmint.pipeline.corrections.apply.columns import label
from segmint.pipeline.corrections.merge import merge_submissions
from segmint.pipeline.corrections.redact import redact
from segmint.pipeline.corrections.takedown import takedown
from tests.support.builds import NO_DETECTORS, segmint, write_catalog
from tests.support.described_rows import rectangle_mask
from tests.support.locations import location_of
from tests.support.photographs import photograph
from tests.support.rated import rate
from tests.support.submissions import answer_to, committed_row

NAME = f"version-{SCHEMA_VERSION}"
ARCHIVE = Path(__file__).resolve().parents[1] / "end_to_end" / f"{NAME}.tar.xz"
STATES = ("half-built", "finished", "corrected", "labeled", "annotated", "merged")
NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
TIME = f"{NOW:%Y-%m-%dT%H:%M:%SZ}"

SETTINGS: dict[str, Any] = {
    "name": NAME,
    "catalog": "catalog.jsonl",
    "output": "dataset",
    "images_per_shard": 3,
    "license": {"allow": ["CC0-1.0"], "policy_date": NOW.date()},
    "deidentify": NO_DETECTORS,
    "masks": {"points_per_side": 3, "crop_n_layers": 0, "pred_iou_thresh": 0.7, "stability_score_thresh": 0.8},
    "model": {"weights": "mobile_sam", "device": "cpu", "threads": 1, "kernels": "torch"},
    "rows_per_block": 2,
    "retry_wait_s": 1,
    "resources": {"segment": {"actors": 1}},
}
"""The configuration, whose numerics depend on as few packages as possible."""

PHOTOGRAPHERS = {"coffee": "Rachel Michetti", "chelsea": "Stefan van der Walt", "camera": "Lav Varshney"}
"""Photographers of scikit-image's photographs, each of whom chose CC0-1.0."""

CROPS = {"cup": ("coffee", (110, 0, 240, 150)), "eyes": ("chelsea", (30, 20, 170, 130))}
"""Crops of two photographs, in their pixels: left, top, right, and bottom. No row of the catalog names the second."""

REGIONS = [
    {"id": 1, "kind": "other", "x": 20, "y": 90, "w": 60, "h": 40},
    {"id": 2, "kind": "face", "x": 60, "y": 30, "w": 90, "h": 80},
]
TAKEN = TakedownRequest(ids=("camera",))
REASON = "the photographer asked for it"


class SizeLabels:
    """Labels each mask `large` or `small` by its share of the image, which is also the score."""

    name = "label"
    labels = True

    @classmethod
    def version(cls) -> str:
        return "5" * 64

    def __call__(self, rows: Sequence[StageRow]) -> list[StageRow]:
        return [row.with_mask_values([_label(mask) for mask in row["masks"]]) for row in rows]


def _label(mask: dict[str, Any]) -> dict[str, Any]:
    share = mask["relative_size"]
    return {"label": "large" if share > 0.25 else "small", "label_score": share, "label_source": f"model:{'5' * 64}"}


def size_labels() -> StageSpec:
    """The stage."""
    return load_stage(f"tests.support.format_archive.{SizeLabels.__name__}", {})


def unpack(folder: Path, name: str = NAME) -> Path:
    """Unpack the archive of a format; return the folder with `sources` and the datasets."""
    with tarfile.open(ARCHIVE.with_name(f"{name}.tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    return folder / name


def config_of(folder: Path, dataset: str) -> Path:
    """Write the configuration of a dataset in the folder of the archive; return its path."""
    tree = yaml.safe_load((folder / "sources" / "build.yaml").read_text("utf-8"))
    tree |= {"catalog": str(folder / "sources" / tree["catalog"]), "output": str(folder / dataset)}
    path = folder / f"{dataset}.yaml"
    path.write_text(yaml.safe_dump(tree), "utf-8")
    return path


def add_rows(folder: Path, *rows: dict[str, Any]) -> None:
    """Add rows to the source catalog."""
    with (folder / "sources" / "catalog.jsonl").open("a", encoding="utf-8") as catalog:
        catalog.writelines(json.dumps(row) + "\n" for row in rows)


def correct(folder: Path, dataset: str) -> None:
    """Redact regions of two images, and take down another one."""
    location = location_of(folder / dataset)
    redact(location, location_of(folder / "sources" / "regions.jsonl"))
    _set_time(location)
    takedown(location, TAKEN, REASON, NOW)


def _write_sources(folder: Path) -> None:
    folder.mkdir(parents=True)
    sizes = {"coffee": (240, 160), "chelsea": (240, 160), "camera": (180, 180)}
    images = {name: Image.fromarray(photograph(name, size)) for name, size in sizes.items()}
    images |= {name: images[of].crop(box) for name, (of, box) in CROPS.items()}
    for name, image in images.items():
        image.save(folder / f"{name}.jpg", quality=90)
    rows = [row_of(name) for name in ("coffee", "chelsea", "refused", "camera", "cup", "missing")]
    rows[0] |= {"redistributable": True, "valid_until": "2099-12-31", "opt_out": False}
    rows[2] |= {"license": "CC-BY-NC-4.0"}
    write_catalog(folder / "catalog.jsonl", rows)
    write_catalog(folder / "regions.jsonl", REGIONS)
    (folder / "build.yaml").write_text(yaml.safe_dump(SETTINGS), "utf-8")


def row_of(name: str) -> dict[str, Any]:
    """The row of a file in the source catalog, with its credits if it's a photograph or a crop of one."""
    row = {"uri": f"{name}.jpg", "image_id": name, "license": "CC0-1.0"}
    photo = CROPS[name][0] if name in CROPS else name
    if photo in PHOTOGRAPHERS:
        page = f"https://scikit-image.org/docs/stable/api/skimage.data.html#skimage.data.{photo}"
        row |= {"attribution": PHOTOGRAPHERS[photo], "provider": "scikit-image", "source_url": page}
    return row


def _build(folder: Path) -> None:
    """Build one shard, copy the dataset, and build the rest."""
    config, dataset = config_of(folder, "finished"), folder / "finished"
    segmint("build", config, "--shards", "0:1", timeout=800)
    (dataset / DATASET_ID).write_bytes(canonical_json({"dataset_id": "3" * 32}))
    _set_time(location_of(dataset))
    shutil.copytree(dataset, folder / "half-built")
    segmint("build", config, timeout=800)
    _set_time(location_of(dataset))


def _set_time(dataset: Location) -> None:
    """Record the latest version again, at `NOW`."""
    version = latest_version(dataset)
    assert version is not None
    (dataset / version.path).delete()
    put_version(dataset, version.command, version.reason, NOW)


def _annotate(dataset: Location) -> None:
    """Save submissions for all images, of which one is returned and one is a second assignment, and ratings."""
    weights = load_manifest(dataset).weights.sha256
    first, *others = [mask["annotation_id"] for mask in committed_row(dataset, 0)["masks"]]
    given = {"model": weights, "saved_at": TIME}
    submissions = [
        answer_to(
            dataset,
            1,
            [
                _drawn(dataset, 1, (20, 130, 120, 220), [_POINT, _BOX], label="cup", parent=first),
                _drawn(dataset, 1, (125, 10, 150, 60), [{"kind": "mask"}, {"kind": "text", "text": "spoon"}]),
            ],
            deleted=others[-1:],
            comment="The spoon was missing.\nThe cup had a hole.",
            flag=True,
            **given,
        ),
        answer_to(dataset, 2, [_drawn(dataset, 2, (40, 60, 90, 150), [], source="manual")], annotator="Bo", **given),
        answer_to(dataset, 4, annotator="Bo", stage="semi", complete=False, **given),
        answer_to(dataset, 4, annotator="Cy", assignment=1, **given),
    ]
    for submission in submissions:
        assert put_submission(dataset, submission)
    value = {"image": 2, "assignment": 0, "n": 1, "by": "Ada", "comment": "Please add the ears.", "saved_at": TIME}
    assert put_return(dataset, Return.model_validate(value))
    rate(dataset, {"Ada": [8, 6], "Bo": [9]})


_POINT = {"kind": "point", "x": 170.5, "y": 60.0, "label": 1}
_BOX = {"kind": "box", "x": 130.0, "y": 20.0, "w": 90.0, "h": 100.0}


def _drawn(
    dataset: Location,
    image: int,
    box: tuple[int, int, int, int],
    prompts: list[dict[str, Any]],
    parent: int | None = None,
    source: str = "assisted",
    label: str | None = None,
) -> dict[str, Any]:
    """A mask of a submission: the rectangle (top, left, bottom, right), which replaces the mask `parent`."""
    row = committed_row(dataset, image - 1)
    counts = rectangle_mask(row["height"], row["width"], *box)["segmentation"]["counts"]
    source = source if parent is None else "corrected"
    return {"counts": counts, "source": source, "seconds": 4.5, "label": label, "prompts": prompts, "parent": parent}


def _pack(folder: Path) -> None:
    """Pack the sources and the datasets: sorted, with the same times, owners, and modes everywhere."""
    with tarfile.open(ARCHIVE, "x:xz", format=tarfile.USTAR_FORMAT, preset=9) as archive:
        for top in ("sources", *STATES):
            for path in sorted(each for each in (folder / top).rglob("*") if each.is_file()):
                member = member_info(f"{NAME}/{path.relative_to(folder).as_posix()}", path.stat().st_size)
                member.mtime = int(NOW.timestamp())
                with path.open("rb") as file:
                    archive.addfile(member, file)


def main(folder: Path) -> None:
    """Build all states in a folder and pack them."""
    if ARCHIVE.exists():
        raise SystemExit(f"{ARCHIVE} exists, and the archive of a frozen format never changes")
    _write_sources(folder / "sources")
    _build(folder)
    for state in ("corrected", "labeled", "annotated"):
        shutil.copytree(folder / "finished", folder / state)
    correct(folder, "corrected")
    label(location_of(folder / "labeled"), size_labels(), now=NOW)
    _annotate(location_of(folder / "annotated"))
    shutil.copytree(folder / "annotated", folder / "merged")
    merge_submissions(location_of(folder / "merged"), now=NOW)
    _pack(folder)
    print(f"{ARCHIVE}: {ARCHIVE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
