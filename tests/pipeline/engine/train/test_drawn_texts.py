"""A text finds its object: a run trains a projection on drawn scenes, and texts name pairs that it never saw."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from segmint.infra.assets.cache import sha256_of
from segmint.model.sam import load
from segmint.model.sam.common import EMBEDDING_CHANNELS
from segmint.model.sam.load import load_sam
from segmint.model.sam.predictor import Predictor
from segmint.model.training import settings as training_settings
from segmint.model.training import step as training_step
from segmint.pipeline.engine.evaluate.text import PROMPTS, TextMeasure
from segmint.pipeline.engine.evaluate.truth import TruthImage, TruthMask
from segmint.pipeline.engine.train.data import cache
from segmint.pipeline.engine.train.run import TrainingResult, run_train
from segmint.pipeline.engine.train.settings import load_train_config
from tests.support import committed
from tests.support.drawn_clip import load_drawn_clip, retrieval, train_drawn_clip
from tests.support.drawn_scenes import PAIRS, SIDE, TRAINED, WITHHELD, Scene, draw_scene
from tests.support.locations import location_of
from tests.support.small_sam import GRID, small_sam, train_small_sam
from tests.support.trainable import train_yaml


def row_of(scene: Scene, ordinal: int) -> dict[str, Any]:
    """A row of a scene whose masks are by people, as it reaches a shard's writer."""
    encoded = io.BytesIO()
    Image.fromarray(scene.image).save(encoded, "JPEG", quality=95, subsampling=0)
    return {
        "ordinal": ordinal,
        "id": ordinal + 1,
        "image_id": f"image-{ordinal}",
        "uri": f"/drawn/{ordinal}.jpg",
        "license": "CC0-1.0",
        "source_sha256": hashlib.sha256(scene.image.tobytes()).hexdigest(),
        "width": SIDE,
        "height": SIDE,
        "faces": 0,
        "plates": 0,
        "regions": [],
        "release": encoded.getvalue(),
        "release_sha256": hashlib.sha256(encoded.getvalue()).hexdigest(),
        "masks": [committed.mask_row(each.mask) | {"source": "manual"} for each in scene.objects],
    }


def train_text(
    folder: Path, scenes: Sequence[Scene], clip: Path, sam: Path, steps: int, **changes: Any
) -> TrainingResult:
    """Train a projection and a decoder on scenes with `segmint train`, in a new folder."""
    committed.write_dataset(
        location_of(folder / "dataset"),
        len(scenes) // committed.ROWS,
        make_row=lambda ordinal, refused: row_of(scenes[ordinal], ordinal),
        refuse=0,
    )
    keys: dict[str, Any] = {
        "weights": str(sam),
        "text": {"clip": str(clip), "min_mask_area": 300},
        "steps": steps,
        "batch": {"images": 4, "masks": 28, "masks_per_image": 7},
        "optimizer": {"learning_rate": 8e-4, "warmup": 20, "decay_steps": [steps * 4 // 5], "weight_decay": 0.01},
        "sampling": {"clicks": 1},
        "held_out": {"share": 0, "every": steps},
        "overlays": {"every": 0},
        "checkpoints": {"every": steps},
        "resources": {"device": "cpu", "threads": torch.get_num_threads()},
        **changes,
    }
    config = train_yaml(folder / "train.yaml", [folder / "dataset"], folder / "run", masks="human", **keys)
    return run_train(load_train_config(str(config)), lambda line: print(line, flush=True))


def evaluate(folder: Path, run: TrainingResult, scenes: Sequence[Scene], clip: Path) -> dict[str, np.ndarray]:
    """The IoUs by kind of prompt, as `segmint evaluate text` measures them, of all objects; `withheld` marks some."""
    output, record = folder / "run", run.record
    weights, projection = output / record.file, output / record.trained["projection"]["file"]
    labels = tuple(" ".join(pair) for pair in PAIRS)
    measure = TextMeasure(str(clip), str(projection), sha256_of(weights), labels, seed=0)
    predictor = Predictor(load_sam(weights))
    rows: list[dict[str, Any]] = []
    for number, scene in enumerate(scenes):
        masks = [
            TruthMask(index, coco.encode(np.asfortranarray(each.mask.view(np.uint8))), int(each.mask.sum()), each.label)
            for index, each in enumerate(scene.objects)
        ]
        found = measure.rows([predictor], TruthImage(0, str(number), str(number), scene.image, masks))
        pairs = [(each.color, each.shape) in WITHHELD for each in scene.objects]
        rows += [{**row, "scene": number, "withheld": known} for row, known in zip(found, pairs, strict=True)]
    return {name: np.array([row[name] for row in rows]) for name in (*PROMPTS, "scene", "withheld")}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints load with the small encoder, and a step predicts twice: by the crop, and with a click.

    The predictions that a step otherwise makes without a new point would double the time.
    """
    monkeypatch.setattr(load, "build_sam", small_sam)
    monkeypatch.setattr(cache, "SHAPE", (1, EMBEDDING_CHANNELS, GRID, GRID))
    monkeypatch.setattr(committed, "ROWS", 100)
    monkeypatch.setattr(training_settings, "PAUSES", 0)
    monkeypatch.setattr(training_step, "click_schedule", lambda seed, step, settings: [True] * settings.clicks)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_texts_find_objects_of_pairs_that_nothing_was_trained_on(
    mobile_sam_path: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    parent = load_sam(mobile_sam_path)
    request.getfixturevalue("small")
    scenes = [draw_scene(seed, TRAINED) for seed in range(600)]
    unseen = [draw_scene(1_000_000 + seed, PAIRS, wanted=2) for seed in range(50)]
    clip, sam = tmp_path / "clip", tmp_path / "small.pth"
    train_drawn_clip(clip, scenes, steps=600)
    right, cosine = retrieval(load_drawn_clip(clip), unseen, WITHHELD)
    print(f"CLIP picks the right label for {right:.0%} of withheld objects (cosine {cosine:.2f})")
    assert right > 0.9
    torch.save(train_small_sam(parent, scenes, steps=200).state_dict(), sam)
    run = train_text(tmp_path, scenes, clip, sam, steps=450)
    found = evaluate(tmp_path, run, unseen, clip)
    withheld = found["withheld"]
    assert len(set(found["scene"][withheld])) == 50
    for name, rows in {"trained": ~withheld, "withheld": withheld}.items():
        ious = {prompt: found[prompt][rows] for prompt in PROMPTS}
        figures = (f"{prompt} {each.mean():.3f} ({(each >= 0.8).mean():.0%})" for prompt, each in ious.items())
        print(f"mean IoU of {rows.sum()} {name} objects (share from 0.8): {', '.join(figures)}")
    own, other, empty, point, both = (found[name] for name in PROMPTS)
    assert (own >= 0.8).mean() >= 0.75
    assert (own[withheld] >= 0.8).mean() >= 0.7
    assert (other >= 0.8).mean() <= 0.3
    assert (empty >= 0.8).mean() <= 0.3
    assert both.mean() > point.mean()
