"""Speed of `segmint build` compared with a plain loop over the same functions, on the same machine.

    python benchmarks/building/pipeline_vs_loop.py [--photos FOLDER] [--images N] [--rounds N] [--threads N]

Both sides create the same annotations from the same photographs: they prepare (including face and plate detection),
segment, and describe. Photographs are repeated up to the number of images. Both sides may use all cores. The loop's
model uses one thread per core, which is the fastest setting for a single process; the build divides the cores among its
actors by default. Each side runs in a separate process that is timed from start to end, including imports and loading
the model. The build also starts Ray, and writes and commits shards. Rounds alternate, and the ratio of throughputs is
reported with its spread.

The number of threads changes the last bits. After the rounds, the loop therefore runs once more with as many threads as
the build's actors. Every image's JSON from this run must match that of every build, byte for byte. The result is
written to `benchmarks/results/` as JSON.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.measuring import RESULTS, SUFFIXES, in_process, spread, write_result  # noqa: E402
from segmint.catalogs.layout import MANIFEST, annotation_name, image_name  # noqa: E402

SCIKIT_IMAGE = ("astronaut", "coffee", "chelsea", "rocket")


def main() -> None:
    """Measure and compare round by round, print a line per round, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="a folder of photographs; scikit-image's without it")
    parser.add_argument("--images", type=int, default=16, help="images in the catalog")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="torch's threads in the loop")
    parser.add_argument("--points-per-side", type=int, default=16)
    parser.add_argument("--output", type=Path, default=RESULTS / "pipeline_vs_loop.json")
    arguments = parser.parse_args()

    machine = describe_machine(arguments.threads, "fp32", packages=("ray", "pyarrow"))
    with tempfile.TemporaryDirectory(prefix="segmint-benchmark-") as name:
        folder = Path(name)
        settings = write_catalog(folder, arguments)
        megapixels = mean_megapixels(folder)
        rounds = [measure_round(folder, settings, arguments.threads, index) for index in range(arguments.rounds)]
        threads = rounds[0]["build_threads"]
        check_same(folder, run_loop(folder / "build-0.yaml", threads, once=True), arguments.rounds)
    print(f"the annotations of {arguments.images} images are the loop's with {threads} threads in every round")
    parts = {
        "settings": {
            "images": arguments.images,
            "photos": arguments.photos is not None,
            "megapixels": megapixels,
            "loop_threads": arguments.threads,
            **settings,
        },
        "rounds": rounds,
        "ratio": spread([each["ratio"] for each in rounds]),
    }
    write_result(arguments.output, "pipeline_vs_loop", machine, parts)
    print(f"throughput of the build over the loop's: {parts['ratio']}; written to {arguments.output}")


def write_catalog(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the photographs and a catalog to `folder`. Return the configuration without its paths."""
    sources = photographs(arguments.photos, folder)
    rows = [{"uri": str(sources[index % len(sources)]), "image_id": str(index)} for index in range(arguments.images)]
    lines = (json.dumps({**row, "license": "CC0-1.0"}) + "\n" for row in rows)
    (folder / "catalog.jsonl").write_text("".join(lines))
    return {
        "name": "benchmark",
        "images_per_shard": 8,
        "rows_per_block": 1,
        "license": {"allow": ["CC0-1.0"]},
        "masks": {
            "crop_n_layers": 0,
            "points_per_side": arguments.points_per_side,
            "drop_redaction_artifacts": "off",  # the loop doesn't look for them
        },
        "model": {"weights": "mobile_sam", "device": "cpu", "precision": "fp32"},
    }


def photographs(given: Path | None, folder: Path) -> list[Path]:
    """Return the files of the photographs in a folder, or of scikit-image's photographs, which are written as PNG."""
    if given is not None:
        found = [path.resolve() for path in sorted(given.iterdir()) if path.suffix.lower() in SUFFIXES]
        if not found:
            raise SystemExit(f"{given} has no photograph: expected files of {', '.join(sorted(SUFFIXES))}")
        return found
    from PIL import Image
    from skimage import data

    paths = [folder / f"{name}.png" for name in SCIKIT_IMAGE]
    for path in paths:
        Image.fromarray(getattr(data, path.stem)()).save(path)
    return paths


def mean_megapixels(folder: Path) -> float:
    """Return the average size of the catalog's photographs in megapixels."""
    from PIL import Image

    sizes = []
    for line in (folder / "catalog.jsonl").read_text().splitlines():
        with Image.open(json.loads(line)["uri"]) as image:
            sizes.append(image.width * image.height / 1e6)
    return round(sum(sizes) / len(sizes), 3)


def measure_round(folder: Path, settings: dict[str, Any], threads: int, index: int) -> dict[str, Any]:
    """Run both sides once, in alternating order."""
    paths = {"catalog": str(folder / "catalog.jsonl"), "output": str(folder / f"dataset-{index}")}
    config = folder / f"build-{index}.yaml"
    config.write_text(json.dumps({**settings, **paths}))  # JSON is YAML
    found: dict[str, Any] = {}
    for side in (run_loop, run_build) if index % 2 == 0 else (run_build, run_loop):
        started = time.perf_counter()
        found[side.__name__] = side(config, threads)
        found[f"{side.__name__}_s"] = time.perf_counter() - started
    accounting = found["run_build"]
    manifest = json.loads((Path(paths["output"]) / MANIFEST).read_text())
    row = {
        "loop_s": round(found["run_loop_s"], 2),
        "build_s": round(found["run_build_s"], 2),
        "ratio": round(found["run_loop_s"] / found["run_build_s"], 3),
        "images": accounting["written"],
        "masks": accounting["masks"],
        "build_threads": manifest["numerics"]["threads"],
        "build_images_per_s": round(accounting["images_per_s"], 4),
        "ceiling_images_per_s": round(accounting["ceiling_images_per_s"], 4),
        "share_of_ceiling": round(accounting["share_of_ceiling"], 4),
        "peak_flop_per_s": accounting["ceiling"]["flop_per_s"],
        "drawn_per_image": accounting["ceiling"]["drawn_per_image"],
    }
    print(
        f"round {index}: loop {row['loop_s']} s, build {row['build_s']} s, ratio {row['ratio']}; "
        f"{row['build_threads']} threads an actor; "
        f"{100 * row['share_of_ceiling']:.3g}% of the ceiling",
        flush=True,
    )
    return row


def check_same(folder: Path, expected: dict[str, bytes], rounds: int) -> None:
    """Raise `SystemExit` if an annotation of any round's build differs from the expected one."""
    for index in range(rounds):
        documents = read_annotations(folder / f"dataset-{index}")
        different = [name for name in {*documents, *expected} if documents.get(name) != expected.get(name)]
        if different or not documents:
            raise SystemExit(f"the build's annotations are not the loop's: {', '.join(sorted(different)) or 'none'}")


def run_build(config: Path, _threads: int) -> dict[str, Any]:
    """Run `segmint build` and return its accounting."""
    command = [sys.executable, "-m", "segmint", "build", str(config), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the build ended with {done.returncode}:\n{done.stderr}")
    accounting: dict[str, Any] = json.loads(done.stdout)
    return accounting


def run_loop(config: Path, threads: int, *, once: bool = False) -> dict[str, bytes]:
    """Run the plain loop in a new process. Return each image's annotations by their file name in a shard.

    With `once`, a repeated photograph is processed only once.
    """
    documents: dict[str, bytes] = in_process(loop, str(config), threads, once)
    return documents


def loop(config_path: str, threads: int, once: bool) -> dict[str, bytes]:
    """Process one image after another with the stages' pure functions. torch uses `threads` threads."""
    import torch

    from segmint.infra.assets import resolve
    from segmint.infra.device import resolve_compute
    from segmint.model.automatic.generator import MaskGenerator
    from segmint.model.sam.predictor import Predictor
    from segmint.operators.describe import coverage, describe_mask
    from segmint.operators.images import decode_jpeg
    from segmint.operators.prepare.deidentify import build_detectors
    from segmint.operators.prepare.prepare import PrepareConfig, prepare_image
    from segmint.operators.redactions import container_ids
    from segmint.operators.segment.models import load_model
    from segmint.operators.segment.segment import mask_columns
    from segmint.operators.shards.put import annotation_id, annotations_json
    from segmint.pipeline.config.config import load_config

    config = load_config(config_path)
    prepare = PrepareConfig(config.ingest, config.deidentify, config.release, crops=None)
    detectors = build_detectors(config.deidentify, threads=1)
    compute = resolve_compute(config.model.device, config.model.precision, threads)
    generator = MaskGenerator(Predictor(load_model(resolve(config.model.weights), compute)), config.masks.settings())

    def segmented(uri: str) -> tuple[tuple[int, int], list[dict[str, Any]]]:
        torch.set_num_threads(1)  # as in a build, where detectors run in parallel with the model
        prepared = prepare_image(Path(uri).read_bytes(), prepare, detectors)
        torch.set_num_threads(compute.threads)
        masks = mask_columns(generator.generate(decode_jpeg(prepared.release)))["masks"]
        return (prepared.height, prepared.width), masks

    documents = {}
    rows = [json.loads(line) for line in Path(config.catalog).read_text().splitlines()]
    take = functools.cache(segmented) if once else segmented
    for image_id, row in enumerate(rows, start=1):
        size, masks = take(row["uri"])
        codes = [mask["segmentation"]["counts"] for mask in masks]
        _ = [describe_mask(size, code) for code in codes], coverage(size, codes)
        containers = container_ids(masks, [annotation_id(image_id, index) for index in range(len(masks))])
        masks = [{**mask, "container": one} for mask, one in zip(masks, containers, strict=True)]
        documents[annotation_name(image_id)] = annotations_json(image_id, image_name(image_id), size, masks)
    return documents


def read_annotations(dataset: Path) -> dict[str, bytes]:
    """Return every annotations file in a dataset's shards, by name."""
    documents = {}
    for path in sorted((dataset / "shards").iterdir()):
        with tarfile.open(path) as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.name.endswith(".json") else None
                if stream is not None:
                    documents[member.name] = stream.read()
    return documents


if __name__ == "__main__":
    main()
