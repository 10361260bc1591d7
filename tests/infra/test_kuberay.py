"""The KubeRay manifests: against KubeRay's own schemas, and against what a run asks of its cluster."""

import copy
import dataclasses
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from segmint.infra.assets import ASSETS
from segmint.infra.errors import UsageError
from segmint.infra.ray_session import Cluster
from segmint.infra.stopping import STOP_S
from segmint.infra.storage.storage import Storage
from segmint.infra.version import VERSION
from segmint.pipeline.building.dataset import BuildDataset, open_or_create
from segmint.pipeline.building.execution.stages import Stages, lay_out
from segmint.pipeline.config.config import Config, load_config
from segmint.pipeline.engine.train.settings import TrainConfig, load_train_config, with_preset
from segmint.pipeline.engine.train.workers import settle
from tests.support.builds import write_catalog
from tests.support.gpu_numerics import on_a_gpu

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "infra" / "kuberay"
DEFINITIONS = {"RayCluster": "ray.io_rayclusters.yaml", "RayJob": "ray.io_rayjobs.yaml"}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")))


def cluster_spec(name: str) -> dict[str, Any]:
    *_, manifest = documents(name)
    return manifest["spec"].get("rayClusterSpec", manifest["spec"])


def strict(schema: Any) -> Any:
    """A structural schema of Kubernetes with unknown fields refused, as the server's strict validation does."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


@pytest.fixture(scope="module")
def validators(crds: Path) -> dict[str, jsonschema.Draft202012Validator]:
    """A validator for each kind, of the version that our manifests name."""
    found = {}
    for kind, name in DEFINITIONS.items():
        definition = yaml.load((crds / name).read_text(encoding="utf-8"), yaml.CSafeLoader)
        assert definition["spec"]["names"]["kind"] == kind
        (schema,) = [
            version["schema"]["openAPIV3Schema"]
            for version in definition["spec"]["versions"]
            if version["name"] == "v1" and version["served"]
        ]
        found[kind] = jsonschema.Draft202012Validator(strict(schema))
    return found


def problems(validators: dict[str, jsonschema.Draft202012Validator], manifest: dict[str, Any]) -> list[str]:
    found = validators[manifest["kind"]].iter_errors(manifest)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


MANIFESTS = [
    (path.name, manifest)
    for path in sorted(FOLDER.glob("*.yaml"))
    for manifest in documents(path.name)
    if manifest["kind"] in DEFINITIONS
]


@pytest.mark.parametrize(("name", "manifest"), MANIFESTS)
def test_every_manifest_fits_its_definition(
    validators: dict[str, jsonschema.Draft202012Validator], name: str, manifest: dict[str, Any]
) -> None:
    assert manifest["apiVersion"] == "ray.io/v1"
    assert problems(validators, manifest) == []


@pytest.mark.parametrize(("name", "manifest"), MANIFESTS)
def test_wrong_fields_and_values_are_found(
    validators: dict[str, jsonschema.Draft202012Validator], name: str, manifest: dict[str, Any]
) -> None:
    def spec(wrong: dict[str, Any]) -> dict[str, Any]:
        return wrong["spec"].get("rayClusterSpec", wrong["spec"])

    wrong = copy.deepcopy(manifest)
    spec(wrong)["headGroupSpec"]["replicsa"] = 1
    assert any("'replicsa' was unexpected" in problem for problem in problems(validators, wrong))
    wrong = copy.deepcopy(manifest)
    spec(wrong)["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["volumeMount"] = []
    assert any("'volumeMount' was unexpected" in problem for problem in problems(validators, wrong))
    wrong = copy.deepcopy(manifest)
    spec(wrong)["workerGroupSpecs"][-1]["maxReplicas"] = "four"
    assert any("'four' is not of type 'integer'" in problem for problem in problems(validators, wrong))
    wrong = copy.deepcopy(manifest)
    del spec(wrong)["headGroupSpec"]["template"]
    assert any("'template' is a required property" in problem for problem in problems(validators, wrong))


def test_the_two_clusters_are_alike() -> None:
    standing, passing = cluster_spec("raycluster.yaml"), cluster_spec("rayjob.yaml")
    assert standing.pop("gcsFaultToleranceOptions")["redisAddress"]
    assert standing == passing


def pods(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pod specification of the head, then those of the workers."""
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        yield group["template"]["spec"]


def test_versions_are_those_of_this_checkout() -> None:
    spec = cluster_spec("rayjob.yaml")
    assert f"ray=={spec['rayVersion']}" in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    (kustomization,) = documents("kustomization.yaml")
    tags = {image["name"]: image["newTag"] for image in kustomization["images"]}
    assert tags == {"segmint-cpu": f"{VERSION}-cpu", "segmint-cuda": f"{VERSION}-cuda"}


def test_only_the_kustomization_names_images_and_only_the_configuration_names_weights() -> None:
    (kustomization,) = documents("kustomization.yaml")
    assert set(kustomization["resources"]) < {path.name for path in FOLDER.iterdir()}
    for name, _ in MANIFESTS:
        images = {container["image"] for pod in pods(cluster_spec(name)) for container in pod["containers"]}
        assert images == {image["name"] for image in kustomization["images"]}, name
        assert (FOLDER / name).read_text(encoding="utf-8").count("vit_") == 0
    config, _ = documents("config.yaml")
    assert yaml.safe_load(config["data"]["build.yaml"])["model"]["weights"] in ASSETS


def test_retries_outlast_an_outage_of_ten_hours() -> None:
    for name in ("rayjob.yaml", "trainjob.yaml"):
        *_, job = documents(name)
        assert job["spec"]["backoffLimit"] * Config.model_fields["outage_timeout_s"].default >= 10 * 3600
        assert job["spec"]["ttlSecondsAfterFinished"] <= 600, "a finished cluster holds a GPU"


def test_references_meet() -> None:
    config, account = documents("config.yaml")
    spec = cluster_spec("rayjob.yaml")
    head, *workers = pods(spec)
    mounted = {mount["name"]: mount["mountPath"] for mount in head["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in head["volumes"]}
    assert volumes["build"]["configMap"]["name"] == config["metadata"]["name"]
    (job,) = documents("rayjob.yaml")
    assert f"segmint build {mounted['build']}/{next(iter(config['data']))} " in job["spec"]["entrypoint"]
    for pod in (head, *workers):
        assert pod["serviceAccountName"] == account["metadata"]["name"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        names = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} <= names


def test_no_manifest_holds_a_credential() -> None:
    for path in FOLDER.iterdir():
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.lstrip().startswith("#"):
                assert "AWS_" not in line, f"{path.name}: {line}"
    for spec in (cluster_spec(name) for name, _ in MANIFESTS):
        assert spec["authOptions"] == {"mode": "token"}
        given = [
            each["name"] for pod in pods(spec) for container in pod["containers"] for each in container.get("env", [])
        ]
        assert set(given) <= {"RAY_JOB_STOP_WAIT_TIME_S"}


@pytest.mark.parametrize("name", ["rayjob.yaml", "trainjob.yaml"])
def test_workers_may_be_spot_and_the_head_may_not(name: str) -> None:
    head, *workers = pods(cluster_spec(name))
    spot = {"cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority", "spot"}
    assert "tolerations" not in head
    for worker in workers:
        assert spot <= {toleration["key"] for toleration in worker["tolerations"]}
    assert "nvidia.com/gpu" in {toleration["key"] for toleration in workers[0]["tolerations"]}


def resources(replicas: str, name: str = "rayjob.yaml") -> Cluster:
    """What Ray sees of the cluster with `minReplicas` or `maxReplicas` of each group; KubeRay tells it the limits."""
    spec = cluster_spec(name)
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = [
        (group[replicas], group["template"]["spec"]["containers"][0]["resources"]["limits"])
        for group in spec["workerGroupSpecs"]
    ]
    return Cluster(
        local=False,
        cpus=sum(count * int(limits["cpu"]) for count, limits in groups),
        gpus=sum(count * int(limits.get("nvidia.com/gpu", 0)) for count, limits in groups),
        nodes=1 + sum(count for count, _ in groups),
        cores=4,
    )


def laid_out(folder: Path, cluster: Cluster, *overrides: str) -> Stages:
    """The stages of the ConfigMap's build, of a dataset that was begun beside a GPU."""
    config, _ = documents("config.yaml")
    (text,) = config["data"].values()
    path = folder / "build.yaml"
    path.write_text(text, encoding="utf-8")
    loaded = load_config(str(path), list(overrides))
    assert loaded.model.device == "cuda"
    assert loaded.catalog.startswith("s3://")

    rows = [{"uri": f"{index}.jpg", "license": "CC0-1.0"} for index in range(1000)]
    catalog = write_catalog(folder / "c.jsonl", rows)
    here = [f"catalog={catalog}", f"output={folder / 'dataset'}", "model.device=cpu", "model.precision=fp32"]
    here.append("model.weights=mobile_sam")  # which the tests have
    begun = open_or_create(load_config(str(path), [*overrides, *here]), Storage())
    manifest = begun.manifest.model_copy(update={"numerics": on_a_gpu(begun.manifest.numerics)})
    return lay_out(loaded, BuildDataset(begun.location, manifest, begun.weights), cluster)


@pytest.mark.usefixtures("weights")
def test_the_smallest_cluster_starts_the_build(tmp_path: Path) -> None:
    smallest = resources("minReplicas")
    stages = laid_out(tmp_path, smallest)
    assert stages.segment_pool.smallest * stages.segment_pool.num_gpus <= smallest.gpus


@pytest.mark.usefixtures("weights")
def test_the_largest_pools_use_the_largest_cluster_and_no_more(tmp_path: Path) -> None:
    largest = resources("maxReplicas")
    stages = laid_out(tmp_path, largest)
    segment, prepare = stages.segment_pool, stages.prepare_pool
    assert segment.largest * segment.num_gpus == largest.gpus
    asked = segment.largest * segment.num_cpus + prepare.largest * prepare.num_cpus + stages.writers
    assert 0.9 * largest.cpus < asked <= largest.cpus


@pytest.mark.usefixtures("weights")
def test_actors_and_tasks_fit_a_single_pod(tmp_path: Path) -> None:
    stages = laid_out(tmp_path, resources("minReplicas"))
    gpu, cpu = (pod["containers"][0]["resources"] for pod in list(pods(cluster_spec("rayjob.yaml")))[1:])
    assert gpu["requests"] == gpu["limits"]
    assert cpu["requests"] == cpu["limits"]
    assert stages.segment_pool.num_gpus <= int(gpu["limits"]["nvidia.com/gpu"])
    assert stages.segment_pool.num_cpus <= int(gpu["limits"]["cpu"])
    assert stages.prepare_pool.num_cpus <= int(cpu["limits"]["cpu"])


@pytest.mark.usefixtures("weights")
def test_a_cluster_that_is_too_small_is_refused(tmp_path: Path) -> None:
    smallest = resources("minReplicas")
    with pytest.raises(UsageError, match="the smallest pools do not fit"):
        laid_out(tmp_path, dataclasses.replace(smallest, cpus=7))
    with pytest.raises(UsageError, match="the cluster has 0 GPUs"):
        laid_out(tmp_path, dataclasses.replace(smallest, gpus=0))


def train_config(folder: Path) -> TrainConfig:
    """The configuration of the ConfigMap beside the training job."""
    config, _ = documents("trainjob.yaml")
    (text,) = config["data"].values()
    path = folder / "train.yaml"
    path.write_text(text, encoding="utf-8")
    return with_preset(load_train_config(str(path)), "mobile_sam")


def test_the_workers_of_the_training_job_fit_their_pods_and_the_cluster(tmp_path: Path) -> None:
    keys = train_config(tmp_path).resources
    (group,) = cluster_spec("trainjob.yaml")["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == keys.workers
    container = group["template"]["spec"]["containers"][0]
    assert container["image"] == "segmint-cuda"
    assert container["resources"]["requests"] == container["resources"]["limits"]
    cluster = resources("minReplicas", "trainjob.yaml")
    settled = settle(keys, cluster)
    assert settled.num_cpus <= int(container["resources"]["limits"]["cpu"])
    assert settled.gpus_per_worker == int(container["resources"]["limits"]["nvidia.com/gpu"])
    with pytest.raises(UsageError, match="resources request 4 GPUs for 4 workers, but the cluster has 3"):
        settle(keys, dataclasses.replace(cluster, gpus=3))


def test_references_of_the_training_job_meet(tmp_path: Path) -> None:
    config, job = documents("trainjob.yaml")
    _, account = documents("config.yaml")
    keys = train_config(tmp_path)
    spec = cluster_spec("trainjob.yaml")
    assert spec["rayVersion"] == cluster_spec("rayjob.yaml")["rayVersion"]
    head, *workers = pods(spec)
    volumes = {volume["name"]: volume for volume in head["volumes"]}
    assert volumes["train"]["configMap"]["name"] == config["metadata"]["name"]
    for pod in (head, *workers):
        mounted = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounted.keys() <= {volume["name"] for volume in pod["volumes"]}
        assert mounted["cache"] == keys.cache.folder
        assert pod["serviceAccountName"] == account["metadata"]["name"]
        assert pod["securityContext"]["runAsNonRoot"] is True
    mounted = {mount["name"]: mount["mountPath"] for mount in head["containers"][0]["volumeMounts"]}
    assert f"segmint train {mounted['train']}/{next(iter(config['data']))} " in job["spec"]["entrypoint"]
    dockerfile = (ROOT / "infra" / "docker" / "Dockerfile").read_text(encoding="utf-8")
    assert dockerfile.count("'.[build,report,train]'") == 2


@pytest.mark.parametrize("name", ["rayjob.yaml", "raycluster.yaml"])
def test_a_head_that_is_deleted_gives_its_drivers_time_to_stop(name: str, tmp_path: Path) -> None:
    head = next(pods(cluster_spec(name)))
    (container,) = head["containers"]
    waits = {each["name"]: each["value"] for each in container["env"]}
    assert int(waits["RAY_JOB_STOP_WAIT_TIME_S"]) > STOP_S + 1
    assert head["terminationGracePeriodSeconds"] >= 16 + 30
    *shell, script = container["lifecycle"]["preStop"]["exec"]["command"]
    script, _, rest = script.partition(" && ")
    assert int(rest.removeprefix("sleep ").removesuffix(" || true")) > STOP_S + 1
    program = tmp_path / "segmint"
    program.write_text(
        "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(3))\nprint(flush=True)\ntime.sleep(60)\n"
    )
    drivers = [subprocess.Popen([sys.executable, program, "build"], stdout=subprocess.PIPE) for _ in range(2)]
    others = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", f"{program} build"])
    for driver in drivers:
        assert driver.stdout is not None
        driver.stdout.readline()
    # Elsewhere than in a pod, there may be other drivers.
    subprocess.run([*shell, script.replace("/bin/segmin[t]", f"{tmp_path}/segmin[t]")], timeout=50, check=True)
    assert [driver.wait(50) for driver in drivers] == [3, 3]
    assert others.poll() is None
    others.kill()
    assert others.wait() == -signal.SIGKILL
