"""Plants one-line faults, one at a time, in a copy of the project, and names the test that catches each.

    make mutants [MUTANTS="nms rle"]

A mutant that no test catches survives, and the run fails. The tests named beside each fault are those that mirror the
file it is in: they alone must catch it.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Mutant:
    """One fault: `old` stands exactly once in `file`, and `new` takes its place."""

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = (
    Mutant(
        "iou filter lets equals pass",
        "model/automatic/filters.py",
        "return predicted_iou > threshold",
        "return predicted_iou >= threshold",
        "tests/model/automatic/test_filters.py",
    ),
    Mutant(
        "stability filter drops equals",
        "model/automatic/filters.py",
        "return scores >= threshold",
        "return scores > threshold",
        "tests/model/automatic/test_filters.py",
    ),
    Mutant(
        "stability over the wrong threshold",
        "model/automatic/filters.py",
        "logits > -offset",
        "logits > 0",
        "tests/model/automatic/test_filters.py",
    ),
    Mutant(
        "95 percent filter lets equals pass",
        "model/automatic/filters.py",
        "areas < ratio *",
        "areas <= ratio *",
        "tests/model/automatic/test_filters.py",
    ),
    Mutant(
        "crop edge a pixel narrower",
        "model/automatic/filters.py",
        "near_crop = np.abs(boxes - np.array(crop_box)) <= EDGE_TOLERANCE",
        "near_crop = np.abs(boxes - np.array(crop_box)) < EDGE_TOLERANCE",
        "tests/model/automatic/test_filters.py",
    ),
    Mutant(
        "crops do not overlap",
        "model/automatic/crops.py",
        "x0 = (crop_width - overlap) * i",
        "x0 = crop_width * i",
        "tests/model/automatic/test_crops.py",
    ),
    Mutant(
        "crops row by row",
        "model/automatic/crops.py",
        "for i, j in product",
        "for j, i in product",
        "tests/model/automatic/test_crops.py",
    ),
    Mutant(
        "grid points column by column",
        "model/automatic/crops.py",
        'np.meshgrid(line, line, indexing="ij")',
        'np.meshgrid(line, line, indexing="xy")',
        "tests/model/automatic/test_crops.py",
    ),
    Mutant(
        "run lengths row by row",
        "model/automatic/rle.py",
        "np.repeat(values, counts).reshape(width, height).T",
        "np.repeat(values, counts).reshape(height, width)",
        "tests/model/automatic/test_rle.py",
    ),
    Mutant(
        "suppression at the threshold",
        "model/automatic/nms.py",
        "overlap.astype(np.float64) > threshold",
        "overlap.astype(np.float64) >= threshold",
        "tests/model/automatic/test_nms.py",
    ),
    Mutant(
        "suppression breaks ties backwards",
        "model/automatic/nms.py",
        'order = np.argsort(-scores.astype(np.float32), kind="stable")',
        'order = np.argsort(scores.astype(np.float32), kind="stable")[::-1]',
        "tests/model/automatic/test_nms.py",
    ),
    Mutant(
        "boxes a pixel wider",
        "model/automatic/boxes.py",
        "return x0, y0, x1 - x0, y1 - y0",
        "return x0, y0, x1 - x0 + 1, y1 - y0 + 1",
        "tests/model/automatic/test_boxes.py",
    ),
    Mutant(
        "clean-up takes holes of the limit",
        "model/automatic/cleanup.py",
        "small = areas < min_area",
        "small = areas <= min_area",
        "tests/model/automatic/test_cleanup.py",
    ),
    Mutant(
        "the last, shorter band is dropped",
        "model/sam/point_decoder.py",
        "for start in range(0, length, step)]",
        "for start in range(0, length // step * step, step)]",
        "tests/model/sam/test_point_decoder.py",
    ),
    Mutant(
        "bands take the first one's scale",
        "model/sam/point_decoder.py",
        "scale[:, band]",
        "scale[:, : band.stop - band.start]",
        "tests/model/sam/test_point_decoder.py",
    ),
    Mutant(
        "attended values are not scaled",
        "model/sam/factored_image.py",
        "by_head(torch.unflatten(weights * image.scale,",
        "by_head(torch.unflatten(weights,",
        "tests/model/sam/test_factored_image.py",
    ),
    Mutant(
        "the spread of attended values counts once",
        "model/sam/factored_image.py",
        "onto=linear.mul_(2))",
        "onto=linear)",
        "tests/model/sam/test_factored_image.py",
    ),
    Mutant(
        "upscaling in the mask's own box",
        "model/automatic/upscaling.py",
        "over = logits.numpy() > -offset",
        "over = logits.numpy() > 0",
        "tests/model/automatic/test_upscaling.py",
    ),
    Mutant(
        "upscaling in a box not dilated",
        "model/automatic/interpolation.py",
        "_spans(used.T)",
        "_spans(weights.numpy().T > 0.5)",
        "tests/model/automatic/test_upscaling.py",
    ),
    Mutant(
        "upscaling reaches a logit less",
        "model/automatic/interpolation.py",
        "spans = self.reached[first : last + 1]",
        "spans = self.reached[first : max(last, first + 1)]",
        "tests/model/automatic/test_upscaling.py",
    ),
    Mutant(
        "clean-up in too small a window",
        "model/automatic/cleanup.py",
        "across, down = -(-min_area // height), -(-min_area // width)",
        "across, down = 1, 1",
        "tests/model/automatic/test_cleanup.py",
    ),
    Mutant(
        "worker threads share their work",
        "model/automatic/workers.py",
        "    torch.set_num_threads(1)",
        "    torch.set_num_threads(2)",
        "tests/model/automatic/test_workers.py",
    ),
    Mutant(
        "workers give what is done first",
        "model/automatic/workers.py",
        "yield from self._pool.map(function, items)",
        "from concurrent.futures import as_completed as done; "
        "yield from (one.result() for one in done([self._pool.submit(function, item) for item in items]))",
        "tests/model/automatic/test_workers.py",
    ),
    Mutant(
        "prompts half a pixel off",
        "model/sam/prompt_encoder.py",
        "(coordinates + 0.5) / IMAGE_SIZE",
        "coordinates / IMAGE_SIZE",
        "tests/model/sam/test_prompt_encoder.py",
    ),
    Mutant(
        "resized sides rounded down",
        "model/sam/preprocess.py",
        "max(1, int(height * scale + 0.5))",
        "max(1, int(height * scale))",
        "tests/model/sam/test_preprocess.py",
    ),
    Mutant(
        "ids begin at zero",
        "catalogs/normalize.py",
        '"id": pa.array(ordinals + 1),',
        '"id": pa.array(ordinals),',
        "tests/catalogs/test_normalize.py",
    ),
    Mutant(
        "annotation ids collide",
        "operators/shard_files.py",
        "return image_id * MASKS_PER_IMAGE_LIMIT + index",
        "return image_id * 100 + index",
        "tests/operators/test_shard_files.py",
    ),
    Mutant(
        "license ends a day early",
        "catalogs/licenses.py",
        "valid_until < self.policy_date",
        "valid_until <= self.policy_date",
        "tests/catalogs/test_licenses.py",
    ),
    Mutant(
        "an old generation is read",
        "catalogs/commits.py",
        "shard: max(generations[shard])",
        "shard: min(generations[shard])",
        "tests/catalogs/test_commits.py",
    ),
    Mutant(
        "a shard takes any rows of its number",
        "operators/write_shard.py",
        "if ordinals != list(range(task.start, task.stop)):",
        "if len(ordinals) != task.stop - task.start:",
        "tests/operators/test_write_shard.py",
    ),
    Mutant(
        "a shard with a fault is committed",
        "operators/write_shard.py",
        'as_py()}" if len(found) else ""',
        'as_py()}" if len(found) > 1 else ""',
        "tests/operators/test_write_shard.py",
    ),
    Mutant(
        "the last row goes to the next shard",
        "pipeline/windows.py",
        "        if need == 0:",
        "        if need <= 1:",
        "tests/pipeline/test_windows.py",
    ),
    Mutant(
        "committed shards are built again",
        "pipeline/work.py",
        "sorted(set(wanted) - self._commits.committed().keys())",
        "sorted(set(wanted))",
        "tests/end_to_end/test_build_local.py",
    ),
    Mutant(
        "orientation is forgotten",
        "operators/ingest.py",
        "    if orientation >= 5:",
        "    if orientation >= 9:",
        "tests/operators/test_ingest.py",
    ),
    Mutant(
        "any hash will do",
        "operators/read_image.py",
        "if expected is not None and expected.lower() != digest:",
        "if expected is not None and not digest:",
        "tests/operators/test_read_image.py",
    ),
    Mutant(
        "local files are overwritten",
        "infra/stores.py",
        "            os.link(temporary, path)",
        "            os.rename(temporary, path)",
        "tests/infra/test_stores.py tests/infra/test_storage.py",
    ),
)


def main() -> int:
    """Runs the mutants whose names contain one of the words given, or all; 1 when one survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="run only mutants whose name contains one of these")
    words = parser.parse_args().words
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    survivors = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder) / "project"
        ignored = shutil.ignore_patterns(".git", ".venv", "demo", "__pycache__", ".*_cache", "*.egg-info")
        shutil.copytree(ROOT, copy, ignore=ignored)
        for mutant in chosen:
            started = time.monotonic()
            caught_by = run(mutant, copy)
            verdict = caught_by or "SURVIVED"
            print(f"{mutant.name:<34} {time.monotonic() - started:6.1f} s  {verdict}", flush=True)
            if not caught_by:
                survivors.append(mutant.name)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants were caught")
    if survivors:
        print("survivors: " + ", ".join(survivors))
    return 1 if survivors else 0


def run(mutant: Mutant, copy: Path) -> str:
    """The first test that fails with the mutant planted; empty when none does."""
    path = copy / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise SystemExit(
            f"{mutant.name}: {mutant.old!r} stands {text.count(mutant.old)} times in {mutant.file}, not once"
        )
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-x",
                "-q",
                "--no-header",
                "-p",
                "no:cacheprovider",
                *mutant.tests.split(),
            ],
            cwd=copy,
            env={
                **os.environ,
                "PYTHONPATH": str(copy),
                "PYTHONDONTWRITEBYTECODE": "1",
                "HYPOTHESIS_PROFILE": "default",
            },
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
    finally:
        path.write_text(text, encoding="utf-8")
    if done.returncode == 0:
        return ""
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode != 1 or not failed or failed[0].startswith("ERROR"):
        raise SystemExit(f"{mutant.name}: the tests did not run:\n{done.stdout[-3000:]}{done.stderr[-2000:]}")
    return failed[0].removeprefix("FAILED ").split(" - ")[0]


if __name__ == "__main__":
    sys.exit(main())
