"""Learning and forgetting in training: MobileSAM's decoder on scenes of textures, with replay of photographs.

    python benchmarks/training/textures.py --photos FOLDER [--seeds N ...] [--set KEY=VALUE ...] [--output FILE]

For each seed, the preset `finetune` trains twice. The first round uses scenes composed of brick, grass, and gravel,
mixed with ordinary photographs with the model's own masks. The second round uses the same scenes with the masks of
other scenes, from which nothing can be learned.

Both rounds are measured on three sets: other scenes of these textures, scenes of textures that no training scene
contains, and a guard set of ordinary photographs. The scores are the mIoU after one click (the model's choice, and the
best of its three masks) and after three clicks. `scenes.py` and `guard.py` create the images. Scenes and photographs
are written as datasets, and training uses them as `segmint train` does.

`--set` changes keys of the recipe or of the trial. `--cache` keeps embeddings and the model's own masks between runs,
and `--rounds` takes the printed rounds of an interrupted run. The result is written to
`benchmarks/results/textures.json`.
"""

import argparse
import hashlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.measuring import RESULTS, peak_mib, write_result  # noqa: E402
from benchmarks.training.datasets import train, write_scenes  # noqa: E402
from benchmarks.training.guard import guard, replayed  # noqa: E402
from benchmarks.training.scenes import LabeledScene, compose  # noqa: E402
from segmint.infra.assets import resolve  # noqa: E402
from segmint.infra.device import apply_compute, resolve_compute  # noqa: E402
from segmint.model.automatic.generator import MaskGenerator  # noqa: E402
from segmint.model.automatic.rle import decode  # noqa: E402
from segmint.model.automatic.settings import MaskSettings  # noqa: E402
from segmint.model.sam.load import load_sam  # noqa: E402
from segmint.model.sam.predictor import Embedding, Predictor  # noqa: E402
from segmint.model.training.recipe import FINETUNE, Recipe  # noqa: E402
from segmint.operators.annotations.image import encode_mask  # noqa: E402
from segmint.operators.evaluate.points import PointsSettings, click_masks  # noqa: E402

WEIGHTS = "mobile_sam"
POINTS = PointsSettings(clicks=(1, 3))
GRID = 16
"""Number of points per side of the grid that finds the masks for replay."""


@dataclass(frozen=True)
class Trial:
    """Settings of a trial: the recipe, the share of photographs for replay in the draws, and the numbers of scenes."""

    recipe: Recipe = FINETUNE
    replay: float = 0.4
    scenes: int = 48
    held_out: int = 24


@dataclass(frozen=True)
class EmbeddedScene:
    """Scene with its image embedding."""

    scene: LabeledScene
    embedding: Embedding


def main() -> None:
    """Train and measure, print the figures, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder with truck.jpg, dog.jpg and the others")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shuffled", type=int, nargs="*", default=[0], help="seeds that train on other scenes' masks")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path)
    parser.add_argument(
        "--rounds", type=Path, nargs="*", default=[], help="printed by runs of this trial, not run again"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "textures.json")
    arguments = parser.parse_args()
    trial = changed(Trial(), dict(entry.split("=", 1) for entry in arguments.set))
    apply_compute(resolve_compute("cpu", "fp32", arguments.threads))
    machine = describe_machine(arguments.threads, "fp32", packages=("scikit-image", "scikit-learn"))
    begun = time.perf_counter()
    with TemporaryDirectory() as folder:
        lab = Lab(arguments.photos, Path(folder), arguments.cache or Path(folder) / "cache", arguments.threads)
        done = printed_rounds(arguments.rounds, described(trial))
        print(json.dumps({"settings": described(trial)}), flush=True)
        rounds = []
        for seed in arguments.seeds:
            for shuffled in (False, True) if seed in arguments.shuffled else (False,):
                rounds.append(done.get((seed, shuffled)) or lab.round(trial, seed, shuffled))
                print(json.dumps(rounds[-1]), flush=True)
    parts = {
        "settings": described(trial),
        "guard": {each.scene.name: len(each.scene.masks) for each in lab.guard},
        "rounds": rounds,
        "gains": gains(rounds),
        "peak_mib": max(each["peak_mib"] for each in rounds),
        "seconds": round(time.perf_counter() - begun) + sum(each["seconds"] for each in done.values()),
    }
    print(json.dumps(parts["gains"], indent=2))
    write_result(arguments.output, "textures", machine, parts)


class Lab:
    """Model, photographs with their embeddings, and a folder for datasets, which all rounds share."""

    def __init__(self, photographs: Path, folder: Path, cache: Path, threads: int) -> None:
        self.folder, self.cache, self.threads = folder, cache, threads
        self.base = Predictor(load_sam(resolve(WEIGHTS)))
        self.guard = [self.embedded(scene) for scene in guard(photographs)]
        self.guard_before = measured(self.base, self.guard)
        self.before: dict[int, dict[str, dict[str, float]]] = {}
        """Scores of the base model, by the seed of the scenes."""
        generator = MaskGenerator(self.base, MaskSettings.sa1b(points_per_side=GRID, crop_n_layers=0))
        replay = [self._replayed(generator, *each) for each in replayed(photographs).items()]
        write_scenes(self.folder / "replay", replay, "automatic")
        self.replayed = len(replay)

    def round(self, trial: Trial, seed: int, shuffled: bool) -> dict[str, Any]:
        """Train with a seed, and measure before and after. `shuffled` swaps masks between scenes."""
        known = compose("known", trial.scenes + trial.held_out, seed)
        train_on, held_out = known[: trial.scenes], known[trial.scenes :]
        sets = {"held_out_scenes": held_out, "new_textures": compose("new", trial.held_out, seed)}
        measured_on = {name: [self.embedded(scene) for scene in scenes] for name, scenes in sets.items()}
        if seed not in self.before:
            found = {name: measured(self.base, those) for name, those in measured_on.items()}
            self.before[seed] = found | {"guard": self.guard_before}
        measured_on["guard"] = self.guard
        if shuffled:
            others = [*train_on[1:], train_on[0]]
            train_on = [replace(each, masks=other.masks) for each, other in zip(train_on, others, strict=True)]
        name = f"{seed}-{'shuffled' if shuffled else 'true'}"
        write_scenes(self.folder / f"scenes-{name}", train_on, "imported")
        started, cpu = time.perf_counter(), time.process_time()
        weights = train(
            self.folder / f"run-{name}",
            self.folder / f"scenes-{name}",
            self.folder / "replay",
            trial.replay / (1 - trial.replay) * len(train_on) / self.replayed,
            trial.recipe,
            seed,
            self.threads,
            self.cache / "train",
            lambda line: print(line, file=sys.stderr, flush=True),
        )
        seconds = {"seconds": round(time.perf_counter() - started), "cpu_seconds": round(time.process_time() - cpu)}
        trained = Predictor(load_sam(weights))
        return {
            "seed": seed,
            "shuffled": shuffled,
            "train_masks": sum(len(scene.masks) for scene in train_on),
            **seconds,
            "peak_mib": peak_mib(),
            "before": self.before[seed],
            "after": {name: measured(trained, those) for name, those in measured_on.items()},
        }

    def embedded(self, scene: LabeledScene) -> EmbeddedScene:
        """Return a scene with its embedding, from the cache if possible."""

        def embed() -> tuple[Any, ...]:
            found = self.base.embed(scene.pixels)
            return found.features.clone(), found.input_size, found.frame_size

        return EmbeddedScene(scene, Embedding(*self._cached(scene.pixels, "embedding", embed)))

    def _replayed(self, generator: MaskGenerator, name: str, pixels: NDArray[np.uint8]) -> LabeledScene:
        masks = self._cached(pixels, "masks", lambda: torch.from_numpy(automatic_masks(generator, pixels)))
        return LabeledScene(name, pixels, masks.numpy())

    def _cached(self, pixels: NDArray[np.uint8], kind: str, make: Callable[[], Any]) -> Any:
        path = self.cache / f"{hashlib.sha256(pixels.tobytes()).hexdigest()}-{kind}.pt"
        if not path.exists():
            self.cache.mkdir(parents=True, exist_ok=True)
            torch.save(make(), unfinished := path.with_suffix(f".{os.getpid()}"))
            unfinished.rename(path)
        return torch.load(path, weights_only=True)


def measured(predictor: Predictor, those: Sequence[EmbeddedScene]) -> dict[str, float]:
    """Measure mean IoUs over all masks: after one click (the model's choice, the best of three), and three clicks."""
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


def printed_rounds(files: Sequence[Path], settings: Mapping[str, Any]) -> dict[tuple[int, bool], dict[str, Any]]:
    """Read the rounds that runs of a trial printed, by seed and `shuffled`. Exits if they are from another trial."""
    done = {}
    for file in files:
        lines = [json.loads(line) for line in file.read_text().splitlines() if line.startswith('{"')]
        if [line["settings"] for line in lines if "settings" in line] != [json.loads(json.dumps(settings))]:
            sys.exit(f"{file}: expected rounds of a run with the same settings")
        done.update({(line["seed"], line["shuffled"]): line for line in lines if "seed" in line})
    return done


def gains(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compute the mean, minimum, and maximum gains over the seeds. Rounds with masks of other scenes are separate."""
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
    """Generate the model's own masks of a photograph, (N, H, W) bool."""
    return np.stack([decode(record.segmentation) for record in generator.generate(pixels).records])


def changed(trial: Trial, values: Mapping[str, str]) -> Trial:
    """Change keys of a trial, its recipe, its losses, or its sampling, and return the changed trial."""
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
    """Return the trial as a JSON object."""
    return {"weights": WEIGHTS, "replay_grid": GRID, **asdict(trial)}


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": round(statistics.fmean(values), 4), "least": round(min(values), 4), "most": round(max(values), 4)}


if __name__ == "__main__":
    main()
