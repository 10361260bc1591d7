"""Comparison of outputs for several prompts: the best of three masks by predicted IoU, or the single mask.

Corrections are clicks according to the SAM paper's protocol (`operators/evaluate/points.py`). They are given in two
ways: one by one, together with the previous clicks and the logits of the previous prediction, or all at once without
logits. Points that are chosen beforehand are uniform in the true mask. They are given in the same two ways, as in
`segmint masks --point … --point …`. Boxes of the true masks are measured as well.

There are three sets of ground truth. In scikit-image's coins, a threshold separates the objects exactly. In photographs
with pasted objects, the masks are exact. With --photos and --reference, the third set consists of masks that SAM
generated on photographs. The third set favors the three-mask output, because the same weights generated its masks with
this output.

    python benchmarks/evaluation/several_prompts.py --photos PHOTOS --reference REFERENCE
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import describe_machine
from benchmarks.measuring import RESULTS, write_result
from segmint.infra.assets import resolve
from segmint.infra.device import resolve_compute
from segmint.model.sam.predictor import Embedding, Predictor, PromptMasks
from segmint.operators.annotations.image import encode_mask
from segmint.operators.evaluate.points import Click, click_masks, random_click
from segmint.operators.evaluate.settings import PointsSettings, SeveralClicks
from segmint.operators.intervals import mean_intervals
from segmint.operators.segment.models import load_model

if TYPE_CHECKING:  # before torch is loaded, measuring.py must set how threads wait
    from torch import Tensor

CLICKS = (1, 2, 3, 5)
SCENES = 6
OBJECTS = 8
MOST_GENERATED = 8
BACKGROUNDS = ("coffee", "chelsea", "astronaut", "rocket")
CONTENTS = ("brick", "grass", "gravel", "retina", "immunohistochemistry", "coins", "moon")
OUTPUT = RESULTS / "several_prompts.json"

Pixels = NDArray[np.uint8]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class PromptScene:
    """Image, (H, W, 3) uint8 RGB, with its true masks, (H, W) bool."""

    image: Pixels
    truths: list[Bools]


def main() -> None:
    """Measure all sets, print the table, and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--photos", type=Path, help="folder of the photographs of --reference")
    parser.add_argument("--reference", type=Path, help="folder of JSON files with masks of these photographs")
    parser.add_argument("--weights", default="mobile_sam", help="a known name or a checkpoint's path")
    parser.add_argument("--sets", nargs="*", help="only these sets: coins, composed, generated")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    compute = resolve_compute("cpu")
    machine = describe_machine(compute.threads, "fp32")
    predictor = Predictor(load_model(resolve(options.weights), compute))
    sets: dict[str, list[PromptScene]] = {"coins": [coins()], "composed": list(composed())}
    if options.photos and options.reference:
        sets["generated"] = list(generated(options.photos, options.reference))
    results = {}
    for name, scenes in sets.items():
        if options.sets and name not in options.sets:
            continue
        started = time.monotonic()
        results[name] = {**measure(predictor, scenes), "seconds": round(time.monotonic() - started, 1)}
        print(json.dumps({name: results[name]}, indent=2), flush=True)
    write_result(
        options.output, "several_prompts", machine, {"weights": options.weights, "clicks": CLICKS, "sets": results}
    )


def measure(predictor: Predictor, scenes: Sequence[PromptScene]) -> dict[str, Any]:
    """Measure the mean IoU of both outputs, and the mean difference with its 95% interval over the masks."""
    found: dict[str, list[list[float]]] = {}
    for scene in scenes:
        embedding = predictor.embed(scene.image)
        truths = [encode_mask(truth) for truth in scene.truths]
        numbers = range(len(truths))
        for output in SeveralClicks:
            settings = PointsSettings(clicks=CLICKS, several=output)
            scores = click_masks(predictor, embedding, truths, numbers, settings)
            found.setdefault(f"corrections {output}", []).extend(list(score.iou) for score in scores)
            found.setdefault("oracle of three, first click", []).extend([score.oracle[0]] for score in scores)
            if output is SeveralClicks.THREE:  # both outputs get the same clicks
                clicks = [score.clicks for score in scores]
        random = [
            [random_click(truth, i, number) for i in range(CLICKS[-1])] for number, truth in enumerate(scene.truths)
        ]
        for truth, corrections, points in zip(scene.truths, clicks, random, strict=True):
            for output in SeveralClicks:
                for way, given, at_once in (
                    ("corrections at once", corrections, True),
                    ("points at once", points, True),
                    ("points in turn", points, False),
                ):
                    ious = after_points(predictor, embedding, truth, given, output, at_once)
                    found.setdefault(f"{way} {output}", []).append(ious)
                found.setdefault(f"box {output}", []).append([of_box(predictor, embedding, truth, output)])
    tables = {name: np.array(values) for name, values in found.items()}
    ways = {}
    several_ways = ("corrections at once", "points at once", "points in turn")
    for way, several in (("corrections", CLICKS), *((way, CLICKS[1:]) for way in several_ways), ("box", (1,))):
        three, single = tables[f"{way} {SeveralClicks.THREE}"], tables[f"{way} {SeveralClicks.SINGLE}"]
        ways[way] = {
            "numbers": list(several),
            "three": rounded(three.mean(axis=0)),
            "single": rounded(single.mean(axis=0)),
            "three less single": rounded((three - single).mean(axis=0)),
            "interval": [
                None if each is None else rounded(each)
                for each in mean_intervals(three - single, np.ones(len(single)), limits=(-1.0, 1.0))
            ],
        }
    return {
        "images": len(scenes),
        "masks": sum(len(scene.truths) for scene in scenes),
        "oracle of three, first click": rounded(tables["oracle of three, first click"].mean(axis=0))[0],
        **ways,
    }


def after_points(
    predictor: Predictor,
    embedding: Embedding,
    truth: Bools,
    clicks: Sequence[Click],
    output: SeveralClicks,
    at_once: bool,
) -> list[float]:
    """Measure the IoU of an output after 2, 3, and 5 points.

    The points are given at once, or one by one with the previous logits. The first prediction is always the best of
    three by predicted IoU.
    """
    ious = []
    logits = None
    for count in CLICKS[1:] if at_once else range(1, CLICKS[-1] + 1):
        given = clicks[:count]
        answer = predictor.predict_all(
            embedding,
            points=np.array([[(click.x, click.y) for click in given]], np.float64),
            labels=np.array([[click.label for click in given]], np.int64),
            masks=logits,
        )
        chosen = choice(answer, SeveralClicks.THREE if count == 1 else output)
        logits = None if at_once else chosen
        if count in CLICKS[1:]:
            ious.append(drawn_iou(predictor, embedding, chosen, truth))
    return ious


def of_box(predictor: Predictor, embedding: Embedding, truth: Bools, output: SeveralClicks) -> float:
    """Measure the IoU of an output for the mask's box."""
    y, x = np.nonzero(truth)
    box = np.array([[x.min(), y.min(), x.max() + 1, y.max() + 1]], np.float64)
    return drawn_iou(predictor, embedding, choice(predictor.predict_all(embedding, boxes=box), output), truth)


def choice(answer: PromptMasks, output: SeveralClicks) -> "Tensor":
    """Return the logits (1, 1, 256, 256) of an output for one prompt."""
    place = 0 if output is SeveralClicks.SINGLE else 1 + int(answer.predicted_iou[0, 1:].argmax())
    return answer.low_res_logits[:1, place : place + 1]


def drawn_iou(predictor: Predictor, embedding: Embedding, logits: "Tensor", truth: Bools) -> float:
    """Draw the mask of logits in the embedding's frame, and return its IoU with the ground truth."""
    mask = (predictor.upscale(logits, embedding)[0, 0] > 0).cpu().numpy()
    return float((mask & truth).sum() / (mask | truth).sum())


def coins() -> PromptScene:
    """Return scikit-image's 24 coins, each a watershed region between the dark background and the bright coins."""
    from scipy.ndimage import binary_fill_holes
    from skimage import data
    from skimage.filters import sobel
    from skimage.measure import label
    from skimage.segmentation import watershed

    gray = np.asarray(data.coins())
    markers = np.zeros(gray.shape, np.int32)
    markers[gray < 30], markers[gray > 150] = 1, 2
    regions = label(binary_fill_holes(watershed(sobel(gray), markers) == 2))
    truths = [regions == index for index in range(1, regions.max() + 1)]
    return PromptScene(np.repeat(gray[..., None], 3, axis=2), [truth for truth in truths if truth.sum() > 500])


def composed() -> Iterator[PromptScene]:
    """Yield photographs with pasted objects, which are disjoint smooth shapes of 30 to 90 pixels from other images."""
    random = np.random.default_rng(0)
    for number in range(SCENES):
        image = rgb(BACKGROUNDS[number % len(BACKGROUNDS)])
        image = np.ascontiguousarray(image if number < len(BACKGROUNDS) else image[:, ::-1])
        taken = np.zeros(image.shape[:2], np.bool_)
        truths: list[Bools] = []
        while len(truths) < OBJECTS:
            truth = blob(image.shape[:2], random)
            if (truth & taken).any():
                continue
            content = rgb(CONTENTS[int(random.integers(len(CONTENTS)))])
            content = cv2.resize(content, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_AREA)
            image[truth] = content[truth]
            taken |= cv2.dilate(truth.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(np.bool_)
            truths.append(truth)
        yield PromptScene(image, truths)


def blob(size: tuple[int, int], random: np.random.Generator) -> Bools:
    """Draw a smooth shape, (H, W) bool, inside the image's borders. Its radii follow three waves around a center."""
    height, width = size
    angles = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    radius = random.uniform(15, 45)
    waves = sum(random.uniform(0, 0.15) * np.sin(k * angles + random.uniform(0, 2 * np.pi)) for k in (2, 3, 5))
    radii = radius * (1 + waves)
    x = random.uniform(radii.max(), width - radii.max()) + radii * np.cos(angles)
    y = random.uniform(radii.max(), height - radii.max()) + radii * np.sin(angles)
    mask = np.zeros(size, np.uint8)
    cv2.fillPoly(mask, [np.stack([x, y], axis=1).round().astype(np.int32)], 1)
    return mask.astype(np.bool_)


def generated(photos: Path, reference: Path) -> Iterator[PromptScene]:
    """Yield photographs with masks from JSON files.

    A file contains `image`, a name without suffix, and `annotations`, in compressed RLE. Each scene gets
    `MOST_GENERATED` masks, evenly spread over the file's order by predicted IoU.
    """
    from PIL import Image
    from pycocotools import mask as coco

    for file in sorted(reference.glob("*_layers0.json")):
        document = json.loads(file.read_text())
        with Image.open(next(photos.glob(f"{document['image']}.*"))) as opened:
            image = np.asarray(opened.convert("RGB"))
        codes = [annotation["segmentation"] for annotation in document["annotations"]]
        codes = [codes[place * len(codes) // MOST_GENERATED] for place in range(MOST_GENERATED)]
        yield PromptScene(
            image, [coco.decode({**code, "counts": code["counts"].encode()}).astype(bool) for code in codes]
        )


def rgb(name: str) -> Pixels:
    """Return one of scikit-image's images, (H, W, 3) uint8."""
    from skimage import data

    pixels = np.asarray(getattr(data, name)())
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., :3])


def rounded(values: Any) -> list[float]:
    """Return numbers rounded to four decimals."""
    return [round(float(value), 4) for value in values]


if __name__ == "__main__":
    main()
