"""Whether training learns, and what it forgets: MobileSAM's decoder on scenes of textures, with replay of photographs.

    python benchmarks/training/textures.py --photos FOLDER [--seeds N] [--set KEY=VALUE ...] [--output FILE]

For each seed, scenes composed of brick, grass and gravel are trained on by the preset `finetune`, and among them
ordinary photographs with the model's own masks; then the same on the masks of other scenes, from which there is
nothing to learn. Both are measured on other scenes of these textures, on scenes of textures that no training scene has,
and on a guard set of ordinary photographs: mIoU of one click by the model's choice and by the best of its three masks,
and of three clicks. `scenes.py` and `guard.py` make the pictures. `--set` changes keys of the recipe or of the trial.
The image encoder is frozen, and each picture is encoded once; `--cache` keeps embeddings between runs. The result goes
to `benchmarks/results/textures.json`.
"""

import argparse
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.measuring import RESULTS, peak_mib, write_result  # noqa: E402
from benchmarks.training.guard import guard, replayed  # noqa: E402
from benchmarks.training.scenes import Scene, compose  # noqa: E402
from segmint.infra.assets.resolve import resolve  # noqa: E402
from segmint.infra.device import apply_compute, resolve_compute  # noqa: E402
from segmint.model.automatic.generator import MaskGenerator  # noqa: E402
from segmint.model.automatic.rle import decode  # noqa: E402
from segmint.model.automatic.settings import MaskSettings  # noqa: E402
from segmint.model.sam.load import load_sam  # noqa: E402
from segmint.model.sam.predictor import Embedding, Predictor  # noqa: E402
from segmint.model.training.optimizer import build_optimizer  # noqa: E402
from segmint.model.training.recipe import FINETUNE, Recipe  # noqa: E402
from segmint.model.training.step import ImageMasks, StepSettings, train_step  # noqa: E402
from segmint.model.training.targets import fit_targets  # noqa: E402
from segmint.operators.annotations.image import encode_mask  # noqa: E402
from segmint.operators.evaluate.points import PointsSettings, click_masks  # noqa: E402

WEIGHTS = "mobile_sam"
POINTS = PointsSettings(clicks=(1, 3))
GRID = 16
"""Points along a side of the grid that finds the masks for replay."""


@dataclass(frozen=True)
class Trial:
    """What is tried: the recipe, the share of images of a step that are photographs for replay, and the scenes."""

    recipe: Recipe = FINETUNE
    replay: float = 0.5
    scenes: int = 16
    held_out: int = 12


@dataclass(frozen=True)
class Embedded:
    """A scene with its image embedding."""

    scene: Scene
    embedding: Embedding


def main() -> None:
    """Train and measure, print the figures and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder with truck.jpg, dog.jpg and the others")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shuffled", type=int, default=1, help="seeds that train on masks of other scenes, too")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--output", type=Path, default=RESULTS / "textures.json")
    arguments = parser.parse_args()
    trial = changed(Trial(), dict(entry.split("=", 1) for entry in arguments.set))
    apply_compute(resolve_compute("cpu", "fp32", arguments.threads))
    machine = describe_machine(arguments.threads, "fp32", packages=("scikit-image", "scikit-learn"))
    begun = time.perf_counter()
    lab = Lab(arguments.photos, arguments.cache)
    rounds = []
    for seed in range(arguments.seeds):
        for shuffled in (False, True) if seed < arguments.shuffled else (False,):
            rounds.append(lab.round(trial, seed, shuffled))
            print(json.dumps(rounds[-1]), flush=True)
    parts = {
        "settings": described(trial),
        "guard": {each.scene.name: len(each.scene.masks) for each in lab.guard},
        "rounds": rounds,
        "gains": gains(rounds),
        "peak_mib": peak_mib(),
        "seconds": round(time.perf_counter() - begun),
    }
    print(json.dumps(parts["gains"], indent=2))
    write_result(arguments.output, "textures", machine, parts)


class Lab:
    """The model, and the photographs with their embeddings."""

    def __init__(self, photographs: Path, cache: Path | None = None) -> None:
        self.cache = cache
        self.before: dict[tuple[str, int | None], dict[str, float]] = {}
        """What the base model reaches, by the set and the seed of its scenes."""
        self.base = Predictor(load_sam(resolve(WEIGHTS)))
        self.guard = [self.embedded(scene) for scene in guard(photographs)]
        settings = MaskSettings.sa1b(points_per_side=GRID, crop_n_layers=0)
        generator = MaskGenerator(self.base, settings)
        self.replayed = [self.embedded(self._replayed(generator, *each)) for each in replayed(photographs).items()]

    def round(self, trial: Trial, seed: int, shuffled: bool) -> dict[str, Any]:
        """Train with a seed and measure before and after; `shuffled`: on the masks of other scenes."""
        known = [self.embedded(scene) for scene in compose("known", trial.scenes + trial.held_out, seed)]
        train, held_out = known[: trial.scenes], known[trial.scenes :]
        new = [self.embedded(scene) for scene in compose("new", trial.held_out, seed)]
        if shuffled:
            others = [*train[1:], train[0]]
            train = [
                Embedded(replace(each.scene, masks=other.scene.masks), each.embedding)
                for each, other in zip(train, others, strict=True)
            ]
        sets = {"held_out_scenes": held_out, "new_textures": new, "guard": self.guard}
        for name, those in sets.items():
            key = (name, None if name == "guard" else seed)
            if key not in self.before:
                self.before[key] = measured(self.base, those)
        before = {name: self.before[name, None if name == "guard" else seed] for name in sets}
        sam = load_sam(resolve(WEIGHTS))
        started, cpu = time.perf_counter(), time.process_time()
        losses = train_decoder(sam, train, self.replayed, trial, seed)
        seconds = {"seconds": round(time.perf_counter() - started), "cpu_seconds": round(time.process_time() - cpu)}
        trained = Predictor(sam)
        after = {name: measured(trained, those) for name, those in sets.items()}
        counted = {"train_masks": sum(len(each.scene.masks) for each in train)}
        return {"seed": seed, "shuffled": shuffled, **counted, **seconds, "losses": losses} | {
            "before": before,
            "after": after,
        }

    def embedded(self, scene: Scene) -> Embedded:
        """A scene with its embedding, from the cache if it has it."""

        def embed() -> tuple[Any, ...]:
            found = self.base.embed(scene.pixels)
            return found.features.clone(), found.input_size, found.frame_size

        return Embedded(scene, Embedding(*self._cached(scene.pixels, "embedding", embed)))

    def _replayed(self, generator: MaskGenerator, name: str, pixels: NDArray[np.uint8]) -> Scene:
        masks = self._cached(pixels, "masks", lambda: torch.from_numpy(automatic_masks(generator, pixels)))
        return Scene(name, pixels, masks.numpy())

    def _cached(self, pixels: NDArray[np.uint8], kind: str, make: Callable[[], Any]) -> Any:
        if self.cache is None:
            return make()
        path = self.cache / f"{hashlib.sha256(pixels.tobytes()).hexdigest()}-{kind}.pt"
        if not path.exists():
            self.cache.mkdir(parents=True, exist_ok=True)
            torch.save(make(), path)
        return torch.load(path, weights_only=True)


def train_decoder(
    sam: Any, train: Sequence[Embedded], replay: Sequence[Embedded], trial: Trial, seed: int
) -> dict[str, float]:
    """Train by the recipe on scenes and photographs for replay; returns the mean losses of a tenth of the steps."""
    recipe = trial.recipe
    optimizer, schedule = build_optimizer(sam, recipe)
    settings = StepSettings(losses=recipe.losses, sampling=recipe.sampling, seed=seed, dropout=recipe.dropout)
    targets: dict[str, torch.Tensor] = {}
    totals = []
    for step in range(recipe.steps):
        rng = np.random.default_rng([seed, step])
        from_replay = rng.binomial(recipe.batch_images, trial.replay) if replay else 0
        drawn = [train[i] for i in rng.choice(len(train), recipe.batch_images - from_replay, replace=False)]
        drawn += [replay[i] for i in rng.choice(len(replay), from_replay, replace=from_replay > len(replay))]
        images, count = [], 0
        for each in drawn:
            scene, size = each.scene, each.embedding.input_size
            if scene.name not in targets:
                resolution = recipe.losses.resolution
                targets[scene.name] = fit_targets(torch.from_numpy(scene.masks), size, resolution)
            masks = targets[scene.name]
            some = torch.from_numpy(rng.permutation(len(masks))[: recipe.masks_per_image])
            images.append(ImageMasks(masks[some], size, range(count, count + len(some))))
            count += len(some)
        schedule.set_rates(optimizer, step)
        features = torch.cat([each.embedding.features for each in drawn])
        losses = train_step(sam, features, images, settings, step, total_masks=count)
        optimizer.step()
        optimizer.zero_grad()
        totals.append(float(losses.total.mean()))
        if step % 20 == 0:
            print(f"step {step} of {recipe.steps}, loss {totals[-1]:.3f}", file=sys.stderr, flush=True)
    part = max(1, recipe.steps // 10)
    return {"first": round(float(np.mean(totals[:part])), 4), "last": round(float(np.mean(totals[-part:])), 4)}


def measured(predictor: Predictor, those: Sequence[Embedded]) -> dict[str, float]:
    """Mean IoUs over all masks: of one click the model's choice and the best of three masks, and of three clicks."""
    scores = [
        score
        for each in those
        for score in click_masks(
            predictor,
            each.embedding,
            [encode_mask(mask) for mask in each.scene.masks],
            range(len(each.scene.masks)),
            POINTS,
        )
    ]
    figures = {
        "one_click": [score.iou[0] for score in scores],
        "oracle_of_three": [score.oracle[0] for score in scores],
        "three_clicks": [score.iou[1] for score in scores],
    }
    return {"masks": len(scores), **{name: round(statistics.fmean(values), 4) for name, values in figures.items()}}


def gains(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What training changed, over the seeds: mean, least and most; apart for rounds on masks of other scenes."""
    found: dict[str, Any] = {}
    for kind in dict.fromkeys(each["shuffled"] for each in rounds):
        those = [each for each in rounds if each["shuffled"] is kind]
        found["shuffled" if kind else "trained"] = {
            name: {
                figure: _spread([each["after"][name][figure] - each["before"][name][figure] for each in those])
                for figure in ("one_click", "oracle_of_three", "three_clicks")
            }
            for name in those[0]["before"]
        }
    return found


def automatic_masks(generator: MaskGenerator, pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The model's own masks of a photograph, (N, H, W) bool."""
    return np.stack([decode(record.segmentation) for record in generator.generate(pixels).records])


def changed(trial: Trial, values: Mapping[str, str]) -> Trial:
    """The trial with other values: keys of the trial, of its recipe, of the losses or of the sampling."""
    for key, text in values.items():
        value = text if text.isalpha() else json.loads(text)
        recipe = trial.recipe
        if hasattr(trial, key):
            trial = replace(trial, **{key: value})
        elif hasattr(recipe.losses, key):
            trial = replace(trial, recipe=replace(recipe, losses=replace(recipe.losses, **{key: value})))
        elif hasattr(recipe.sampling, key):
            trial = replace(trial, recipe=replace(recipe, sampling=replace(recipe.sampling, **{key: value})))
        else:
            value = tuple(value) if isinstance(value, list) else value
            trial = replace(trial, recipe=replace(recipe, **{key: value}))
    return trial


def described(trial: Trial) -> dict[str, Any]:
    """The trial as JSON."""
    return {"weights": WEIGHTS, "replay_grid": GRID, **asdict(trial)}


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": round(statistics.fmean(values), 4), "least": round(min(values), 4), "most": round(max(values), 4)}


if __name__ == "__main__":
    main()
