"""The alerts of the PrometheusRule, by Prometheus's own tool: each one fires, and stays silent where it should.

`kubectl` renders the manifests, so that both files that it applies are the ones that are tested.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from segmint.infra.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "infra" / "kuberay"
CASES = Path(__file__).with_name("alerts.yaml")


def command(*words: str | Path) -> str:
    """Run a program that must succeed and return its output."""
    done = subprocess.run([*words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    """The groups of rules that the operator gives to Prometheus."""
    *_, rule = yaml.safe_load_all((FOLDER / "prometheus.yaml").read_text(encoding="utf-8"))
    assert rule["kind"] == "PrometheusRule"
    return rule["spec"]


def test_each_alert_fires_and_stays_silent_as_promtool_sees_it(tmp_path: Path, spec: dict[str, Any]) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    shutil.copy(CASES, tmp_path)
    rules = [rule["alert"] for group in spec["groups"] for rule in group["rules"]]
    assert f"SUCCESS: {len(rules)} rules found" in command("promtool", "check", "rules", tmp_path / "rules.yaml")
    cases = [case for test in yaml.safe_load(CASES.read_text())["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(rules)
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == set(rules)
    command("promtool", "test", "rules", tmp_path / CASES.name)


def test_promtool_would_find_a_wrong_threshold(tmp_path: Path, spec: dict[str, Any]) -> None:
    wrong = yaml.safe_dump(spec).replace("> 0.2", "> 0.4")
    assert wrong != yaml.safe_dump(spec)
    (tmp_path / "rules.yaml").write_text(wrong, encoding="utf-8")
    shutil.copy(CASES, tmp_path)
    done = subprocess.run(["promtool", "test", "rules", tmp_path / CASES.name], capture_output=True, text=True)
    assert done.returncode != 0
    assert "SegmintRefusals" in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["rayjob.yaml", "raycluster.yaml", "trainjob.yaml"])
def test_kubectl_puts_the_images_into_the_manifests(tmp_path: Path, name: str) -> None:
    shutil.copytree(FOLDER, tmp_path / "kuberay")
    file = tmp_path / "kuberay" / "kustomization.yaml"
    text = file.read_text(encoding="utf-8")
    changed = text.replace("- rayjob.yaml", f"- {name}").replace("# - prometheus.yaml", "- prometheus.yaml")
    file.write_text(changed, encoding="utf-8")
    rendered = list(yaml.safe_load_all(command("kubectl", "kustomize", tmp_path / "kuberay")))
    assert {"PodMonitor", "PrometheusRule", "ConfigMap", "ServiceAccount"} < {each["kind"] for each in rendered}
    assert {each["metadata"]["namespace"] for each in rendered} == {"segmint"}
    (cluster,) = [each["spec"] for each in rendered if each["kind"].startswith("Ray")]
    cluster = cluster.get("rayClusterSpec", cluster)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = {each["image"] for group in groups for each in group["template"]["spec"]["containers"]}
    assert images == {f"registry.example.com/segmint:{VERSION}-{kind}" for kind in ("cpu", "cuda")}
