"""Grafana's alerts: of metrics that exist, in the form that Grafana provisions, each with its section for the person on
call."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from segmint.infra.metrics import METRICS
from segmint.pipeline.config.config import Config
from tests.support.metrics import exported_name

ROOT = Path(__file__).resolve().parents[2]
RULES = yaml.safe_load((ROOT / "infra/grafana/alerts.yaml").read_text(encoding="utf-8"))["groups"][0]["rules"]
PAGE = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
_NAME = re.compile(r"\bray_[a-z0-9_]+")
_LABELS_OF_RAY = {"SessionName"}


def expression(rule: dict[str, Any]) -> str:
    return rule["data"][0]["model"]["expr"]


@pytest.fixture(scope="module")
def metrics_of_ray() -> set[str]:
    """The names that Ray's agent on a node exports, in the version that is installed."""
    package = Path(next(iter(importlib.util.find_spec("ray").submodule_search_locations)))
    agent = (package / "dashboard/modules/reporter/reporter_agent.py").read_text(encoding="utf-8")
    return {f"ray_{name}" for name in re.findall(r'Gauge\(\s*"(\w+)"', agent)}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["uid"])
def test_a_rule_asks_for_metrics_that_exist_by_their_labels(rule: dict[str, Any], metrics_of_ray: set[str]) -> None:
    ours = {exported_name(metric): metric for metric in METRICS}
    asked = set(_NAME.findall(expression(rule)))
    assert asked
    assert asked <= ours.keys() | metrics_of_ray, asked
    labels = {"dataset", "SessionName"}.union(*(ours[name].labels for name in asked & ours.keys()))
    if asked & metrics_of_ray:
        labels = _LABELS_OF_RAY
    used = re.findall(r"(?:by|on) \((\w+)\)", expression(rule)) + re.findall(r"(\w+)=~?\"", expression(rule))
    assert set(used) <= labels
    assert expression(rule).count("(") == expression(rule).count(")")
    assert "$" not in expression(rule), "Grafana would put an environment variable in its place"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["uid"])
def test_a_rule_has_the_form_that_grafana_provisions(rule: dict[str, Any]) -> None:
    query, threshold = rule["data"]
    assert {"uid", "title", "condition", "for", "labels", "annotations"} <= rule.keys()
    assert rule["noDataState"] == "OK", "no build runs"
    assert (query["refId"], query["datasourceUid"], query["model"]["instant"]) == ("A", "prometheus", True)
    assert (threshold["refId"], threshold["datasourceUid"]) == (rule["condition"], "__expr__")
    assert (threshold["model"]["type"], threshold["model"]["expression"]) == ("threshold", "A")
    (condition,) = threshold["model"]["conditions"]
    assert condition["evaluator"]["type"] in ("gt", "lt")
    assert all(isinstance(limit, (int, float)) for limit in condition["evaluator"]["params"])
    for part in (query, threshold):
        assert part["model"]["refId"] == part["refId"]


def test_names_are_different_and_each_alert_has_its_section() -> None:
    assert len({rule["uid"] for rule in RULES}) == len({rule["title"] for rule in RULES}) == len(RULES)
    sections = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    for rule in RULES:
        assert rule["title"] in sections
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['title'].lower().replace(' ', '-')}"


def test_the_first_alert_waits_as_long_as_a_build_does() -> None:
    minutes = set(re.findall(r"(?:offset |\[)(\d+)m", expression(RULES[0])))
    assert minutes == {str(int(Config.model_fields["stall_timeout"].default / 60))}


def test_keys_named_on_the_page_are_keys_of_the_configuration() -> None:
    named = set(re.findall(r"`(?:resources\.)?(\w+(?:\.\w+)*)`", PAGE))
    resources = Config.model_fields["resources"].default
    for key in ("prepare.actors", "prepare.num_cpus", "rows_per_block", "window_shards", "outage_timeout_s"):
        assert key in named
        value = resources if "." in key else Config
        if "." in key:
            part, name = key.split(".")
            assert hasattr(getattr(value, part), name)
        else:
            assert key in Config.model_fields
