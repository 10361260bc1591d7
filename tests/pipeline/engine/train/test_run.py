"""A whole run of MobileSAM on photographs: its files, going on after a kill, and what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from segmint.catalogs.dataset.outputs import OUTPUTS, line_of, read_notes
from segmint.catalogs.layout import canonical_json
from segmint.catalogs.lineage import TRAINING, lineage_of
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.model.sam.load import load_sam
from segmint.pipeline.commands.cli import app
from segmint.pipeline.engine.train.record import TrainingRecord
from segmint.pipeline.engine.train.run import TrainingResult, run_train
from segmint.pipeline.engine.train.settings import load_train_config
from tests.support.builds import ROOT
from tests.support.everything import upload
from tests.support.locations import location_of
from tests.support.tensorboard import tensorboard_points


def record_of(output: Path) -> TrainingRecord:
    return TrainingRecord.model_validate(json.loads((output / TRAINING).read_bytes()))


def again(run, *overrides: str) -> list[str]:
    """Run a configuration with overrides, and return the lines that it printed."""
    printed: list[str] = []
    run_train(load_train_config(str(run.config), list(overrides)), printed.append)
    return printed


def test_what_comes_out_is_a_checkpoint_of_sam_and_says_where_it_comes_from(ended, mobile_sam_path):
    record = record_of(ended.output)
    trained, parent = load_sam(ended.output / record.file).state_dict(), load_sam(mobile_sam_path).state_dict()
    raw = torch.load(ended.output / record.file, weights_only=True)
    assert raw.keys() == parent.keys()
    changed = {name.split(".")[0] for name, tensor in trained.items() if not torch.equal(tensor, parent[name])}
    assert changed == {"prompt_encoder", "mask_decoder"}
    assert record.file == f"sam-{record.weights[:12]}.pth"
    assert [(link.name, len(link.datasets)) for link in record.lineage] == [("mobile_sam", 0), (record.file, 1)]
    assert record.datasets[0].name == "small"
    held_out = record.lineage[-1].held_out
    assert held_out is not None
    assert (held_out.images, held_out.measured, held_out.masks) == (1, 1, record.evaluations[0]["masks"])
    assert [held_out.before, held_out.after] == [each["one_click"] for each in record.evaluations]
    assert lineage_of(str(ended.output / record.file), record.weights, Storage()) == record.lineage
    assert record.trained["images"] == 2
    assert record.held_out["images"] == 1
    assert [each["step"] for each in record.evaluations] == [0, 2]
    assert record.skipped["counts"] == {"masks over max_mask_area_ratio": 3}
    assert str(ended.dataset) not in (ended.output / TRAINING).read_text()


def test_each_step_and_evaluation_has_a_line_and_a_point(ended):
    assert [line.split(":")[0] for line in ended.printed] == [
        "2 images with 4 masks to train on, 1 image held out",
        "held out, before training",
        "step 1/2",
        "step 2/2",
        "held out, after step 2",
    ]
    points = dict(tensorboard_points(next((ended.output / "logs").iterdir())))
    assert {name for name, _ in points} >= {"train/loss", "train/gradient", "held_out/one_click", "held_out/oracle"}
    assert points["held_out/one_click", 2] == pytest.approx(record_of(ended.output).evaluations[-1]["one_click"])
    assert f"loss {points['train/loss', 2]:.4f}" in ended.printed[3]


def test_datasets_name_the_weights_for_a_takedown(ended):
    record = record_of(ended.output)
    lines = [line_of(note) for note in read_notes(location_of(ended.dataset))]
    assert f"../run (segmint train: {record.file})" in lines
    assert any("../cache" in line for line in lines)


def test_a_run_goes_on_from_its_checkpoint_to_the_same_weights(ended, tmp_path):
    output = tmp_path / "again"
    shutil.copytree(ended.output, output, ignore=shutil.ignore_patterns("sam-*", TRAINING, "step-000002*"))
    (output / "checkpoints" / "step-000002-000000000000.pt").write_bytes(b"half a checkpoint")
    printed = again(ended, f"output={output}")
    assert printed[1] == "resuming from the checkpoint of step 1"
    assert [line.split(":")[0] for line in printed[2:]] == [line.split(":")[0] for line in ended.printed[3:]]
    assert record_of(output) == record_of(ended.output)
    names = [path.name for path in (output / "checkpoints").iterdir()]
    assert sorted(names) == sorted(path.name for path in (ended.output / "checkpoints").iterdir())
    assert (output / record_of(output).file).read_bytes() == (ended.output / record_of(output).file).read_bytes()


@pytest.mark.parametrize("best", ["there", "damaged", pytest.param("gone", marks=pytest.mark.long)])
def test_a_best_checkpoint_that_cannot_be_used_gives_way_to_the_next_best(ended, tmp_path, best):
    output = tmp_path / "again"
    shutil.copytree(ended.output, output, ignore=shutil.ignore_patterns("sam-*", TRAINING))
    last = output / "checkpoints" / "step-000002.json"
    document = json.loads(last.read_bytes())
    document["evaluations"].insert(1, {**document["evaluations"][0], "step": 1, "one_click": 0.999})
    last.write_text(json.dumps(document))
    (weights,) = (output / "checkpoints").glob("step-000001-*.pt")
    if best == "damaged":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif best == "gone":
        weights.unlink()
        (output / "checkpoints" / "step-000001.json").unlink()
    lines = run_train(load_train_config(str(ended.config), [f"output={output}"]), print).lines()
    assert lines[1].endswith(" (the best of 2 evaluations)")
    trained = record_of(output).trained
    held_out = record_of(output).lineage[-1].held_out
    assert held_out is not None
    if best == "there":
        assert (trained["best_step"], held_out.after) == (1, 0.999)
        assert "passed_over" not in trained
    else:
        assert (trained["best_step"], held_out.after) == (2, document["evaluations"][2]["one_click"])
        assert trained["passed_over"] == [{"step": 1, "one_click": 0.999}]
        assert "step 1 was better, 0.9990, but its checkpoint is damaged or gone" in lines
        assert record_of(output).weights == record_of(ended.output).weights


def test_a_run_that_has_ended_is_not_repeated_and_another_one_is_refused(ended):
    weights = record_of(ended.output).weights.encode()
    noted = [path for path in (ended.dataset / OUTPUTS).iterdir() if weights in path.read_bytes()]
    for path in noted:
        path.unlink()  # as if it had been killed right after its record
    trained = run_train(load_train_config(str(ended.config)), print)
    assert sum(path.exists() for path in noted) == 1
    assert not trained.new
    assert trained.record == record_of(ended.output)
    assert "was already finished, so nothing was trained" in trained.lines()[0]
    with pytest.raises(
        UsageError, match=r"contains a run that differs in optimizer\.learning_rate, seed. Choose another output"
    ):
        again(ended, "seed=1", "optimizer.learning_rate=0.001")
    pinned = ended.output / "run.json"
    begun = pinned.read_bytes()
    document = json.loads(begun)
    document["config"]["text"] = {"clip": "ab" * 32, "min_mask_area": 10_000}  # as version 0.3 recorded it
    pinned.write_bytes(canonical_json(document))
    with pytest.raises(UsageError, match=r"differs in text \(projections of CLIP, which can't be trained anymore\)"):
        again(ended)
    pinned.write_bytes(begun)
    with pytest.raises(UsageError, match=r"output: .* is inside the dataset"):
        again(ended, f"output={ended.dataset}/run")
    with pytest.raises(UsageError, match=r"cache\.folder is s3://bucket/cache: expected a folder on a local disk"):
        again(ended, "cache.folder=s3://bucket/cache")


@pytest.mark.parametrize(
    ("images", "share", "told"),
    [
        (0, 0.0, "no images are held out, so any improvement is unknown. Set held_out.share"),
        (0, 0.3, "with held_out.share 0.3 all of these images are trained on. Raise held_out.share, or add images"),
        (2, 0.3, "nothing was measured on the held-out images, so any improvement is unknown"),
    ],
)
def test_a_run_without_a_measurement_says_why(ended, images, share, told):
    record = record_of(ended.output)
    held = {**record.held_out, "images": images, "share": share}
    record = record.model_copy(update={"evaluations": type(record.evaluations)(), "held_out": held})
    assert TrainingResult(str(ended.output), record, new=True).lines()[1].endswith(told)


def test_worse_weights_are_named_and_the_next_command_compares_them(ended):
    record = record_of(ended.output)
    scores = (0.9705, 0.964)
    worse = [{**each, "one_click": score} for each, score in zip(record.evaluations, scores, strict=True)]
    lines = TrainingResult("out", record.model_copy(update={"evaluations": worse}), new=True).lines()
    assert "on these images, the new weights are worse than the initial weights (0.9705 → 0.9640)" in lines
    done = CliRunner().invoke(app, ["train", str(ended.config)])
    weights = f"--weights mobile_sam --weights {ended.output}/{record.file}"
    assert done.stderr.endswith(f"next: segmint evaluate points HELD_OUT_DATASET {weights} --fail-if-worse iou_1\n")


def test_a_parent_whose_record_is_damaged_is_refused(ended, tmp_path):
    """Else the record of the new weights would lack the earlier rounds."""
    record = record_of(ended.output)
    for name in (record.file, TRAINING):
        shutil.copy(ended.output / name, tmp_path / name)
    (tmp_path / TRAINING).write_bytes((ended.output / TRAINING).read_bytes()[:-9])
    with pytest.raises(UsageError, match=r"weights: .*training\.json was not written by segmint train: .*Restore"):
        again(ended, f"weights={tmp_path / record.file}", f"output={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_a_first_start_that_fails_pins_nothing(ended, tmp_path):
    with pytest.raises(UsageError, match=r"all 3 images are held out"):
        again(ended, "held_out.share=0.9", f"output={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_only_with_the_images_it_began_with(ended, tmp_path):
    output = tmp_path / "again"
    shutil.copytree(ended.output, output, ignore=shutil.ignore_patterns("sam-*", TRAINING))
    images = json.loads((output / "images.json").read_bytes())
    assert (images["images"], images["masks"]) == (3, 6)
    (output / "images.json").write_text(json.dumps({**images, "masks": 5, "sha256": "0" * 64}))
    with pytest.raises(UsageError, match=r"the 3 images with 6 masks differ from those .*3 with 5 masks"):
        again(ended, f"output={output}")


@pytest.mark.long
def test_a_run_that_is_killed_at_any_step_ends_with_the_same_weights(ended, tmp_path):
    for step in (1, 2):
        output = tmp_path / f"killed-{step}"
        command = [sys.executable, "-m", "segmint", "train", str(ended.config), "--set", f"output={output}"]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for line in process.stderr:
            if line.startswith(f"step {step}/"):
                os.kill(process.pid, signal.SIGKILL)
                break
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (output / TRAINING).exists()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        assert record_of(output) == record_of(ended.output)


@pytest.mark.long
@pytest.mark.s3
def test_a_dataset_and_an_output_on_s3_give_the_same_files(ended, s3_bucket, s3_options, tmp_path):
    storage, bucket = Storage(s3_options), f"s3://{s3_bucket}"
    upload(ended.dataset, Location(storage, f"{bucket}/dataset"))
    text = ended.config.read_text().replace(str(ended.dataset), f"{bucket}/dataset")
    text = text.replace(f"output: {ended.output}\n", f"output: {bucket}/run\n")
    config = tmp_path / "train.yaml"
    config.write_text(f"{text}storage: {json.dumps(s3_options)}\n")
    cache = f"cache.folder={tmp_path / 'cache'}"
    run_train(load_train_config(str(config), [cache]), print)
    output = Location(storage, f"{bucket}/run")
    record = record_of(ended.output)
    files = {TRAINING, record.file, *(f"checkpoints/{path.name}" for path in (ended.output / "checkpoints").iterdir())}
    assert {file for file in files if (output / file).read() != (ended.output / file).read_bytes()} == set()
    assert {entry.name.partition("/")[0] for entry in output.walk()} >= {"logs", "run.json", "images.json"}
    notes = [line_of(note) for note in read_notes(Location(storage, f"{bucket}/dataset"))]
    assert f"../run (segmint train: {record.file})" in notes
    for file in files:
        if "step-000001" not in file:
            (output / file).delete()
    printed: list[str] = []
    run_train(load_train_config(str(config), [cache]), printed.append)
    assert printed[1] == "resuming from the checkpoint of step 1"
    assert (output / record.file).read() == (ended.output / record.file).read_bytes()
