"""Two workers of Ray Train: as good as one, restarted after a kill, and ended by what cannot be mended."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from segmint.catalogs.lineage import TRAINING
from segmint.infra.errors import UsageError
from segmint.infra.ray_session import Cluster
from segmint.pipeline.engine.train.reading import WorkerRank
from segmint.pipeline.engine.train.run import run_train
from segmint.pipeline.engine.train.settings import TrainConfig, TrainResources, load_train_config, with_preset
from segmint.pipeline.engine.train.workers import settle
from tests.support.builds import ROOT
from tests.support.recorded_steps import StepSetup, take_part, take_steps
from tests.support.tensorboard import tensorboard_points
from tests.support.trainable import train_yaml

pytestmark = pytest.mark.ray

LOCAL = Cluster(local=True, cpus=8, gpus=0, nodes=1, cores=4)
GPUS = Cluster(local=False, cpus=64, gpus=8, nodes=2, cores=4, gpu_nodes=2)
CPUS = Cluster(local=False, cpus=48, gpus=0, nodes=3, cores=4)


@pytest.mark.parametrize(
    ("keys", "cluster", "expected"),
    [
        ({"workers": 2}, LOCAL, ("cpu", 2, 2, 0)),
        ({"workers": 2, "threads": 1}, LOCAL, ("cpu", 1, 1, 0)),
        ({"workers": 2, "threads": 3, "num_cpus": 1}, LOCAL, ("cpu", 3, 1, 0)),
        ({"workers": 4}, CPUS, ("cpu", 8, 8, 0)),
        ({"workers": 8}, GPUS, ("cuda", 1, 1, 1)),
        ({"workers": 8, "device": "cuda", "num_cpus": 4}, GPUS, ("cuda", 4, 4, 1)),
        ({"workers": 2, "device": "cpu"}, GPUS, ("cpu", 32, 32, 0)),
    ],
)
def test_resources_are_settled_by_the_cluster(keys, cluster, expected):
    settled = settle(TrainResources(**keys), cluster)
    assert (settled.device, settled.threads, settled.num_cpus, settled.gpus_per_worker) == expected


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"workers": 9}, "resources request 9 GPUs for 9 workers, but the cluster has 8: lower resources.workers"),
        ({"workers": 8, "num_cpus": 9}, "resources request 72 CPUs for 8 workers, but the cluster has 64: lower"),
        ({"workers": 2, "device": "cuda", "gpus_per_worker": 0}, "device is cuda and resources.gpus_per_worker 0"),
        ({"workers": 2, "device": "cpu", "gpus_per_worker": 1}, "device is cpu and resources.gpus_per_worker 1"),
    ],
)
def test_what_the_cluster_does_not_have_is_refused(keys, message):
    with pytest.raises(UsageError, match=message.replace(".", r"\.")):
        settle(TrainResources(**keys), GPUS)


def test_a_worker_without_an_image_of_a_step_is_refused(tmp_path):
    text = "datasets: [{uri: a}]\noutput: out\nbatch: {images: 2}\nresources: {workers: 3}\n"
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"resources\.workers is 3 for 2 images per step: expected at most batch"):
        with_preset(load_train_config(str(tmp_path / "t.yaml")), "mobile_sam")


def config_of(folder: Path, ended, name: str, workers: int, **changes: object) -> Path:
    """A run of the dataset of `ended` on so many workers, which finds its embeddings."""
    keys = {
        "steps": 3,
        "batch": {"images": 2, "masks": 2, "masks_per_image": 1},
        "optimizer": {"warmup": 1},
        "sampling": {"clicks": 1},
        "held_out": {"share": 0.3, "every": 3},
        "checkpoints": {"every": 1, "keep": 9},
        "cache": {"folder": str(ended.output.parent / "cache")},
        "resources": {"device": "cpu", "threads": 1, "workers": workers},
        **changes,
    }
    return train_yaml(folder / f"{name}.yaml", [ended.dataset], folder / name, **keys)


def points_of(output: Path) -> dict[tuple[str, int], float]:
    (file,) = (output / "logs").iterdir()
    return dict(tensorboard_points(file))


@pytest.mark.long
def test_two_workers_go_on_where_one_stopped_and_have_its_losses(ended, tmp_path, local_ray, one_thread):
    two = tmp_path / "two"
    later = ("sam-*", TRAINING, "step-000002*", "logs")
    shutil.copytree(ended.output, two, ignore=shutil.ignore_patterns(*later))
    keys = [f"output={two}", "resources.workers=2"]
    printed: list[str] = []
    trained = run_train(load_train_config(str(ended.config), keys), printed.append)
    assert [line.split(":")[0] for line in printed if "other_numerics" not in line] == [
        "2 images with 4 masks to train on, 1 image held out",
        "resuming from the checkpoint of step 1",
        "step 2/2",
        "held out, after step 2",
    ]
    alone, together = points_of(ended.output), points_of(two)
    assert {step for _, step in together} == {2}
    for (name, step), value in together.items():
        kind = name.partition("/")[2]
        exact = kind in ("loss", "focal", "dice", "iou_error", "rate", "masks")  # the others count pixels
        assert value == pytest.approx(alone[name, step], rel=1e-4 if exact else 5e-3), f"{name} of step {step}"
    record = trained.record
    assert [each.get("workers") for each in record.numerics] == [None, 2]
    assert record.held_out == json.loads((ended.output / TRAINING).read_bytes())["held_out"]
    assert [(each["step"], each["images"], each["masks"]) for each in record.evaluations] == [(0, 1, 1), (2, 1, 1)]


LONG = {"steps": 4, "held_out": {"share": 0.3, "every": 2}, "checkpoints": {"every": 2, "keep": 9}}


def trained(config: Path, act: Callable[[int], None] | None = None, at: str = "") -> tuple[int, str]:
    """Run the command; once it prints a line that starts with `at`, call `act` with its process. Code and lines."""
    command = [sys.executable, "-m", "segmint", "train", str(config)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    lines = []
    for line in process.stderr:
        lines.append(line)
        if act is not None and line.startswith(at):
            act(process.pid)
            act = None
    process.wait()
    assert act is None, "".join(lines)
    return process.returncode, "".join(lines)


def workers_of(pid: int) -> list[psutil.Process]:
    """The processes in which Ray Train's workers run."""
    found = psutil.Process(pid).children(recursive=True)
    return [process for process in found if "ray::RayTrainWorker" in " ".join(process.cmdline())]


@pytest.mark.long
def test_workers_one_of_which_is_killed_end_with_the_same_weights(ended, tmp_path):
    code, printed = trained(config_of(tmp_path, ended, "whole", 2, **LONG))
    assert code == 0, printed

    def kill(pid: int) -> None:
        workers = workers_of(pid)
        assert len(workers) == 2
        os.kill(workers[1].pid, signal.SIGKILL)

    code, printed = trained(config_of(tmp_path, ended, "killed", 2, **LONG), kill, "step 3/")
    assert code == 0, printed
    assert "restarting all workers" in printed
    assert "resuming from the checkpoint of step" in printed
    whole, killed = (json.loads((tmp_path / name / TRAINING).read_bytes()) for name in ("whole", "killed"))
    assert killed == whole
    assert (tmp_path / "killed" / killed["file"]).read_bytes() == (tmp_path / "whole" / whole["file"]).read_bytes()
    states = [sorted(path.name for path in (tmp_path / name / "checkpoints").iterdir()) for name in ("whole", "killed")]
    assert states[0] == states[1]


@pytest.mark.long
def test_a_full_disk_ends_the_run_at_once_with_its_message(ended, tmp_path):
    def fill(pid: int) -> None:
        for worker in workers_of(pid):
            worker.rlimit(psutil.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    code, printed = trained(config_of(tmp_path, ended, "full", 2, **LONG), fill, "step 1/")
    assert code == 3
    assert "error: can't write the checkpoint to" in printed
    assert "Traceback" not in printed
    assert "restarting" not in printed


@pytest.mark.long
def test_a_bad_shard_ends_the_run_before_a_worker_starts(ended, tmp_path):
    dataset = tmp_path / "dataset"
    shutil.copytree(ended.dataset, dataset)
    (tar,) = dataset.rglob("*.tar")
    tar.write_bytes(tar.read_bytes()[:3000])
    config = config_of(tmp_path, ended, "bad", 2, cache={"folder": str(tmp_path / "cache")})
    config.write_text(config.read_text().replace(str(ended.dataset), str(dataset)))
    code, printed = trained(config)
    assert code == 3
    assert "can't be read, so nothing was trained" in printed
    assert "Traceback" not in printed


@pytest.mark.long
def test_two_workers_have_the_losses_of_one_over_twenty_steps_with_recorded_clicks(
    ended, tmp_path, local_ray, one_thread, mobile_sam_path
):
    """To 1e-4 in the losses' unit, that of an IoU; of a loss it is more, as losses are small: see docs/train.md."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    changes = {"steps": 20, "batch": {"images": 2, "masks": 2, "masks_per_image": 1}, "sampling": {"clicks": 2}}
    steps = StepSetup(tmp_path, ended.dataset, ended.output.parent / "cache", mobile_sam_path, changes, 20)
    alone, weights = take_steps(steps, WorkerRank())
    recorded = [dict(result.clicks) for result in alone]
    for clicks in (recorded, None):
        TorchTrainer(
            take_part,
            train_loop_config={"steps": steps, "recorded": clicks},
            torch_config=TorchConfig("gloo"),
            scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(name=f"run-{clicks is None}", storage_path=str(tmp_path)),
        ).fit()
        ranks = [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=False) for rank in range(2)]
        assert all(torch.equal(ranks[0]["weights"][name], ranks[1]["weights"][name]) for name in weights)
        pairs = [(result.loss, before.loss) for result, before in zip(ranks[0]["results"], alone, strict=True)]
        most = max(abs(loss - before) for loss, before in pairs)
        share = max(abs(loss - before) / before for loss, before in pairs)
        how = "recorded" if clicks else "drawn"
        print(f"{how} clicks: losses differ by {most:.1e} at most over 20 steps, {share:.1e} of a loss")
        if clicks:
            assert most < 1e-4
            assert share < 1e-3  # AdamW moves a weight whose gradient is nearly 0 by its sign
            assert pairs[0][0] == pytest.approx(pairs[0][1], rel=1e-6)  # and there is no other reason


def test_the_configuration_says_how_many_workers_and_its_keys_decide_nothing(tmp_path):
    (tmp_path / "t.yaml").write_text("datasets: [{uri: a}]\noutput: out\nresources: {gpus_per_worker: 2}\n")
    with pytest.raises(UsageError, match=r"gpus_per_worker is 2: expected auto, 0, or 1"):
        load_train_config(str(tmp_path / "t.yaml"))
    (tmp_path / "t.yaml").write_text("datasets: [{uri: a}]\noutput: out\nresources: {workers: 8, num_cpus: 4}\n")
    config: TrainConfig = load_train_config(str(tmp_path / "t.yaml"))
    assert (config.resources.workers, config.resources.num_cpus, config.resources.gpus_per_worker) == (8, 4, "auto")
